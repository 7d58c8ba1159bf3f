"""What a run says while it goes on: one bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


def duration(seconds: float) -> str:
    """``75`` seconds as ``1:15``, an hour and more as ``1:02:03``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Bar:
    """What is being done, the share that is done, and a text such as speed and time left.

    Use as a context manager. Off a terminal it prints a line at every tenth of the work, or every ``seconds``.
    """

    def __init__(self, console: Console, *, title: str = "pretraining", seconds: float = 60.0,
                 clock: Callable[[], float] = time.monotonic):
        self.console, self.seconds, self.clock = console, seconds, clock
        self.progress = Progress(TextColumn(title), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
                                 TextColumn("{task.fields[text]}"), console=console, disable=not console.is_terminal)
        self.task = self.progress.add_task(title, total=1.0, text="")
        self.next_share, self.next_time = 0.0, 0.0
        self.first: tuple[float, float] | None = None

    def __enter__(self) -> "Bar":
        self.progress.start()
        self.next_time = self.clock() + self.seconds
        return self

    def __exit__(self, *error) -> None:
        self.progress.stop()

    def show(self, share: float, *, loss: float, speed: float, waiting: float, left: float) -> None:
        """Tell of training: speed, share of the time spent waiting for images, loss, time left for the whole run."""
        self.tell(share, f"{speed:,.0f} images/s, waiting {waiting:.0%}, loss {loss:.3f}, {duration(left)} left")

    def count(self, done: float, total: float, unit: str) -> None:
        """Tell of work that is counted; the speed is that since the first call."""
        if self.first is None:
            self.first = done, self.clock()
        speed = (done - self.first[0]) / max(self.clock() - self.first[1], 1e-9)
        text = f"{speed:,.0f} {unit}/s, {duration((total - done) / speed)} left" if speed else ""
        self.tell(done / total, f"{done:,.0f} of {total:,.0f} {unit} {text}".rstrip())

    def tell(self, share: float, text: str) -> None:
        self.progress.update(self.task, completed=share, text=text)
        if not self.console.is_terminal and (share >= self.next_share or self.clock() >= self.next_time):
            self.console.print(f"  {share:4.0%}  {text}")
            self.next_share, self.next_time = (int(share * 10) + 1) / 10, self.clock() + self.seconds
