"""Where a run stands in its budget, and what the rates are there. All are pure functions of progress in [0, 1]."""

from collections.abc import Callable
from dataclasses import dataclass

from ..nn.momentum import cosine


def warm_cosine(progress: float, peak: float, final: float, warmup: float) -> float:
    """Linear from 0 to ``peak`` over the first ``warmup`` share of the budget, then half a cosine to ``final``."""
    if progress < warmup:
        return peak * progress / warmup
    return cosine(peak, final, (progress - warmup) / (1 - warmup) if warmup < 1 else 1.0)


@dataclass
class Budget:
    """How many images a run will see: a fixed number, or what fits in ``seconds`` of training.

    A budget of time is turned into images by the speed seen so far and corrected at each ``look``, so that the
    schedules end when the time does. It is the one thing in a run that depends on a clock, so a run that must
    be repeated to the bit takes its budget in images.
    """

    images: int
    seconds: float | None = None
    clock: Callable[[], float] | None = None
    spent: float = 0.0  # seconds of training before this process
    began: float | None = None

    def start(self) -> None:
        self.began = self.clock() if self.clock else None

    def elapsed(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.spent + (self.clock() - self.began if self.clock and self.began is not None else 0.0)

    def look(self, images_seen: int) -> None:
        """Correct a budget of time by the mean speed so far, and end it when the time is over; a fixed one stays."""
        if self.seconds is not None and images_seen > 0 and self.elapsed() > 0:
            is_over = self.elapsed() >= self.seconds
            self.images = max(images_seen + (not is_over), round(images_seen * self.seconds / self.elapsed()))

    def progress(self, images_seen: int) -> float:
        return min(images_seen / self.images, 1.0)

    def over(self, images_seen: int) -> bool:
        return images_seen >= self.images

    def state_dict(self) -> dict:
        return {"images": self.images, "spent": self.elapsed()}

    def load_state_dict(self, state: dict) -> None:
        self.spent = state["spent"]
        if self.seconds is not None:  # a fixed number is the settings', which --force may have changed
            self.images = state["images"]
