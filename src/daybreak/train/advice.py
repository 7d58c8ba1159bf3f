"""Where the loader is the limit: the change that would help most, and by how much, in one sentence.

The model.  For one image a thread of the loader needs w seconds by the clock, of these c of a processor; all
else in the process needs o of a processor; copy beside augmentation and step need d by the clock once images
are there.  T threads on K processors load

    min(T / w, K / (c + o))    images a second.

The rest, w - c, is waiting: for a processor where the processors have no time left, else for the disk.  More
threads raise T.  A pack changes c by a share that a trial on some of the images measures (``data.trial``), and
the waiting by the same share, or, where it is for the disk, by that of the bytes.  A gain is the ratio of the
rates after and before, and no more than 1 / (d x speed): from there on the device is the limit.

Not in the model: a CPU that trains and loads computes its step quicker once loading costs less, so gains there
come out small rather than large; and threads are taken to work side by side, which OpenCV and the system's reads
do and Python does not, so more threads are advised only where an image has work for them.
"""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.trial import Packing

LEAST_WAITING = 0.1  # share of the time below which nothing is said
LEAST_GAIN = 1.1
NEAR = 0.9  # share of the best gain from which the change that costs less comes first
LEAST_WORK = 2e-4  # seconds an image below which threads wait for the interpreter rather than for a processor
BUSY = 0.85  # share of the processors' time from which waiting is for a processor
NEW = 1.5  # a gain that moved by this factor is said again
MOST_THREADS = 64
TRIAL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds an image: of the clock, except where a processor's are meant."""

    read: float  # in a thread of the loader, as the next two
    decode: float
    place: float
    processor: float  # of a processor, in the three of them
    others: float  # of a processor, in all else that this process does
    copy: float  # on the device, as the next two
    augment: float
    step: float

    @property
    def thread(self) -> float:
        return self.read + self.decode + self.place

    @property
    def device(self) -> float:
        return max(self.copy, self.augment + self.step)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How a run went over some steps."""

    waiting: float  # share of the time spent waiting for images
    speed: float  # images a second
    costs: Costs
    threads: int
    processors: int

    def rate(self, threads: int, packing: Packing | None = None) -> float:
        """Images a second that the loader can make, by the model."""
        c, busy = self.costs, self.speed * (self.costs.processor + self.costs.others) / self.processors
        processor, waiting = c.processor, max(0.0, c.thread - c.processor)
        if packing:
            processor *= packing.processor
            waiting *= packing.processor if busy >= BUSY else packing.size
        return min(threads / max(processor + waiting, 1e-9), self.processors / max(processor + c.others, 1e-9))

    def gain(self, threads: int, packing: Packing | None = None) -> float:
        """The speed after a change beside the speed now."""
        return min(self.rate(threads, packing) / self.rate(self.threads), 1 / max(self.costs.device * self.speed, 1e-9))

    def useful_threads(self) -> int:
        """As many as the processors or the device can make use of; no fewer than now."""
        c = self.costs
        if c.processor < LEAST_WORK and c.read < LEAST_WORK:
            return self.threads
        limit = min(self.processors / max(c.processor + c.others, 1e-9), 1 / max(c.device, 1e-9))
        return max(self.threads, min(math.ceil(limit * max(c.thread, 1e-9) - 0.01), MOST_THREADS))


@dataclass(frozen=True)
class Change:
    """What could be done next."""

    kind: str  # "threads", or the encoding of a pack
    name: str
    how: str
    gain: float


def changes(pace: Pace, packings: Sequence[Packing], path: Path) -> list[Change]:
    """Return what is worth doing, the best first: of changes with nearly the same gain the one that costs less."""
    threads = pace.useful_threads()
    found = [Change("threads", f"{threads} threads", f"--set data.threads={threads}", pace.gain(threads))]
    for packing in packings:
        raw = packing.encoding == "raw"
        how = f"daybreak pack {shlex.quote(str(path))} OUT --short-side {packing.short_side}{' --encoding raw' * raw}"
        name = f"packing to {packing.short_side} px{' as raw pixels' * raw}"
        found.append(Change(packing.encoding, name, how, pace.gain(pace.threads, packing)))
    found = [change for change in found if change.gain >= LEAST_GAIN]
    if not found:
        return []
    best = max(change.gain for change in found)
    first = next(change for change in found if change.gain >= NEAR * best)  # they stand in the order of what they cost
    return [first, *sorted((c for c in found if c is not first), key=lambda change: -change.gain)]


def sentence(pace: Pace, found: Sequence[Change]) -> str:
    """Return the sentence that a run says, such as "waiting for images takes 62% of the time: ..."."""
    gains = [f"{change.name} would give about {shown(change.gain)}x" if i == 0 else f"{change.name} about {shown(change.gain)}x"
             for i, change in enumerate(found)]
    return f"waiting for images takes {pace.waiting:.0%} of the time: {'; '.join(gains)} (next: {found[0].how})"


def shown(gain: float) -> str:
    """Two figures, as many as the model is good for."""
    return f"{gain:.0f}" if gain >= 10 else f"{gain:.1f}"


class Adviser:
    """Says the sentence once, and again when another change would be the best or its gain is another.

    ``trial`` measures packs, given the time in seconds and that of one image; it is asked once for each set of
    views, and only where the loader is the limit.
    """

    def __init__(self, path: Path, trial: Callable[[float, float], list[Packing]]):
        self.path, self.trial = path, trial
        self.packings: list[Packing] | None = None
        self.said: Change | None = None
        self.is_start = True

    def look(self, pace: Pace) -> str | None:
        """Return what is to be said after some steps at this pace.

        Nothing after the first steps, for which nothing was loaded ahead, and those after a trial, for which more
        was than in a usual step.
        """
        if self.is_start:
            self.is_start = False
            return None
        if pace.waiting < LEAST_WAITING or 1 / max(pace.costs.device * pace.speed, 1e-9) < LEAST_GAIN:
            return None
        if self.packings is None:
            self.packings, self.is_start = self.trial(TRIAL_SECONDS, pace.costs.thread), True
        found = changes(pace, self.packings, self.path)
        if not found:
            return None
        first, said = found[0], self.said
        if said and said.kind == first.kind and 1 / NEW < first.gain / said.gain < NEW:
            return None
        self.said = first
        return sentence(pace, found)
