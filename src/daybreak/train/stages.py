"""Stages of a run: smaller images first, and fewer of their patches hidden (DailyMAE, Wu et al. 2024, arXiv 2404.00509)."""

from dataclasses import dataclass
from typing import Any

from ..config import Training
from ..errors import Refused

FULL = 224  # pixels of the schemes' whole image
RAMP = 0.5  # share of the budget at which the last stage begins; the ones before share the time evenly
# (pixels of 224, share of patches hidden) of each stage, by the number of the scheme in the authors' code.
SCHEMES = {
    "daily-1": ((160, 0.5), (192, 0.66), (224, 0.75)),
    "daily-2": ((160, 0.75), (192, 0.75), (224, 0.75)),
    "daily-3": ((224, 0.75), (192, 0.75), (160, 0.75)),
    "daily-4": ((160, 0.75), (192, 0.8), (224, 0.85)),
    "daily-5": ((224, 0.75), (192, 0.75), (224, 0.75)),
    "daily-6": ((224, 0.75), (192, 0.75), (224, 0.85)),
}


@dataclass(frozen=True)
class Stage:
    """From ``start``, a share of the budget: the size of images as a share of the whole, and of patches hidden."""

    start: float
    size: float
    mask_ratio: float | None


WHOLE = Stage(0.0, 1.0, None)


def stages_of(training: Training, method: Any) -> list[Stage]:
    """The stages of a training, one where it names none.

    Args:
        method: the method's settings, which tell whether it hides a share of the patches.

    Raises:
        Refused: a scheme that changes how much is hidden, with a method that has no such setting.
    """
    if training.scheme == "constant":
        return [WHOLE]
    scheme = SCHEMES[training.scheme]
    hides, ratios = hasattr(method, "mask_ratio"), {ratio for _, ratio in scheme}
    if not hides and len(ratios) > 1:
        raise Refused(f"training.scheme = {training.scheme!r} changes the share of hidden patches, and this method has no "
                      "mask_ratio; daily-2, daily-3 and daily-5 change the size of images alone.")
    step = RAMP / (len(scheme) - 1)
    return [Stage(step * i, size / FULL, ratio if hides else None) for i, (size, ratio) in enumerate(scheme)]


def stage_at(stages: list[Stage], progress: float) -> Stage:
    """The one that has begun last at this share of the budget, in [0, 1]."""
    return max((stage for stage in stages if stage.start <= progress), key=lambda stage: stage.start)
