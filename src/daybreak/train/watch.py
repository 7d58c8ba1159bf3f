"""Whether a run is learning: signs of collapse in what is logged anyway, and a sentence once two of them agree.

It reads the lines of ``metrics.jsonl`` and nothing else, so a resumed run, or a program that looks at a folder, comes to
the same judgement. One sign alone says nothing: losses start at their degenerate value, a random network may be narrow. Only
images that are all alike need no second. K prototypes.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

# The thresholds. The furthest that runs went which still learned, while these were set: 0.16 of the rank and 0.32 of the
# spread of the start (SiT), a loss 0.24 % from ln K and 0.987 of the full entropy (DINO), gradients 0.015 of the first ones
# (MAE). Runs that did not had at most 0.11 of the rank and 0.27 of the spread, or 0.001 of the gradient, or at least 0.996
# of the entropy (DINO and planted failures).
GRACE = 0.05  # share of the budget in which nothing is said
RECORDS = 5  # last lines of training whose median is judged, so that one odd batch is none
STILL = 0.2  # share of the budget after which a loss or a full entropy that is where it began is a sign; a warm-up is over by
# then. The lines that are compared must be others than the first ones, or it stands by definition
EARLY = 3  # first lines of training that later ones are compared with
LOSS_NEAR = 0.002  # relative distance from a degenerate value, or from the first loss, that is none
LOSS_RISE = 1.3  # times the first loss
ENTROPY_FULL = 0.995  # of ln K, of single assignments: all prototypes alike
# An output that was uniform, as it is where DINO and its kin begin, is leaving that state while the gap between its entropy and
# the full one is so many times the least gap so far, and between these shares of the full entropy.
LEAVING, LEAVING_FROM, LEAVING_TO = 2, 1e-3, 0.1
ENTROPY_NONE = 0.05  # of ln K, of the mean assignment: one prototype for all
AGREEMENT = 0.999  # cosine of the two views of an image
GRADIENT_LEFT, GRADIENT_NONE = 2e-3, 1e-8  # of the first norms, and at all
GRADIENT_GROWTH = 100  # times the first norms
SPREAD_LEFT, SPREAD_NONE = 0.3, 1e-3  # of the random start, and at all
RANK_LEFT = 0.13  # of RankMe - 1 of the random start, since 1 is the least
# Of weights that a run continues from (benchmarks/continuation.py): continuations that did not hurt kNN accuracy kept at least
# 0.34 of the neighbours and 0.40 of RankMe throughout; those that did, at 10 to 1,000 times the learning rate, fell to at most
# 0.25 and 0.32. The least are put nearer to the latter: longer healthy runs go further.
RANK_KEPT = 1 / 3  # of their RankMe
NEIGHBOURS_KEPT = 0.2  # of the nearest neighbours under them
PIXELS_NONE = 0.01  # deviation of normalised pixels, which is near 1 where images differ
KNN_ERRORS = 3  # standard errors of the difference below the random start
STOP_AFTER = 0.1  # share of the budget that an alarm may last under "warn-then-stop"

AGREEING = ("images", "entropy", "gradient", "still", "agreement", "spread", "rank")  # of two signs one must be of these

OTHER = "other settings of the method, and look at the images it is given"  # no rate helps where nothing is learned


@dataclass(frozen=True)
class Sign:
    """One thing that looks wrong: a clause, what it means, what usually helps."""

    name: str
    text: str
    meaning: str
    helps: str


@dataclass(frozen=True)
class Alarm:
    """What is wrong, in a sentence, since which image; without signs it says that an alarm has passed."""

    sentence: str
    since: int
    signs: tuple[str, ...]


class Watch:
    """Fed with each record of a run, it says when two signs of collapse agree.

    Args:
        degenerate: readings ``value: meaning`` of a loss that has collapsed, and the loss; ``name: value: meaning`` is
            of one of the method's numbers instead.
        prototypes: K of methods that log ``assignment_entropy`` and ``mean_entropy``, in nats.
        start: what the health of image 0 is of: "random weights", or weights that a run continues from.
        several_labels: whether the method learns from several labels an image: narrower and other features are then what it is
            asked for, and where no kNN accuracy tells whether they serve only those that are all alike are a sign.
    """

    def __init__(self, degenerate: Mapping[str, float], *, prototypes: int | None = None, start: str = "random weights",
                 several_labels: bool = False):
        self.degenerate = {reading: value for reading, value in degenerate.items() if reading.count(": ") < 2}  # of the loss
        self.of_parts = {reading: value for reading, value in degenerate.items() if reading not in self.degenerate}
        self.of_start = start
        self.several_labels = several_labels
        self.is_worse_said = start == "random weights"  # there two signs must agree; of given weights one suffices
        self.full = math.log(prototypes) if prototypes and prototypes > 1 else None
        self.lines = 0  # of training
        self.early: list[Mapping[str, Any]] = []
        self.least_gap = math.inf  # of the assignment entropy to the full one, so far
        self.recent: deque[Mapping[str, Any]] = deque(maxlen=RECORDS)
        self.start: Mapping[str, Any] = {}  # health of the random start
        self.health: Mapping[str, Any] = {}
        self.since: dict[str, int] = {}  # image at which each sign of now began
        self.alarm: Alarm | None = None
        self.alarmed = 0.0  # progress at which it was raised

    def see(self, record: Mapping[str, Any], progress: float) -> Alarm | None:
        """Take in a line of ``metrics.jsonl`` at ``progress`` in [0, 1]; an alarm that is new or has passed, or None."""
        if record["kind"] == "train":
            self.recent.append(record)
            self.lines += 1
            if len(self.early) < EARLY:
                self.early.append(record)
            if (gap := self.gap()) is not None:
                self.least_gap = min(self.least_gap, gap)
        elif record["kind"] == "health" and record["images"] == 0:
            self.start = record
        elif record["kind"] == "health":
            self.health = record
        else:
            return None
        signs = self.signs(progress)
        self.since = {sign.name: self.since.get(sign.name, record["images"]) for sign in signs}
        found = agreeing(signs) if progress >= GRACE else ()
        if found and self.alarm is None:
            self.alarm, self.alarmed = self.describe(*found), progress
            return self.alarm
        may_be_said = not self.is_worse_said and progress >= GRACE and self.alarm is None
        if may_be_said and (worse := self.knn() or self.narrower() or self.unlearned()):
            self.is_worse_said = True
            return Alarm(f"{worse.text}: {worse.meaning}. Try {worse.helps}.", record["images"], (worse.name,))
        if not found and self.alarm is not None:
            passed, self.alarm = self.alarm, None
            return Alarm(f"what stood since image {passed.since:,} has passed.", record["images"], ())
        return None

    def stops(self, policy: str, progress: float) -> bool:
        """Whether an alarm ends the run, under "warn", "stop" or "warn-then-stop"."""
        if self.alarm is None or policy == "warn":
            return False
        return policy == "stop" or progress - self.alarmed >= STOP_AFTER

    def describe(self, first: Sign, *second: Sign) -> Alarm:
        signs = (first, *second)
        since = max(self.since[sign.name] for sign in signs)
        at_no_rate = signs[-1].name in ("gradient", "still") and first.name != "images"  # then nothing is learned at any
        helps = signs[-1].helps if at_no_rate else first.helps
        return Alarm(f"since image {since:,} {' and '.join(sign.text for sign in signs)}: {first.meaning}. Try {helps}.", since,
                     tuple(sign.name for sign in signs))

    def signs(self, progress: float) -> list[Sign]:
        """All that looks wrong now, the most telling first."""
        is_late = progress >= STILL and self.lines >= EARLY + RECORDS
        found = [self.images(), self.stands(), self.assignment(is_late), self.gradient(), self.rise(), self.above(),
                 self.still() if is_late else None, self.agreement(), *self.features(), self.knn()]
        return [sign for sign in found if sign]

    def value(self, name: str) -> float | None:
        """Median of the last lines of training."""
        values = [r[name] for r in self.recent if name in r]
        return median(values) if len(values) >= EARLY else None

    def first(self, name: str) -> float:
        return median(r[name] for r in self.early)

    def gap(self) -> float | None:
        """How far the assignment entropy of the last lines is from the full one, in nats."""
        each = self.value("assignment_entropy")
        return None if each is None or self.full is None else max(self.full - each, 0.0)

    def is_leaving(self) -> bool:
        """Whether an output that was uniform is becoming less so: what began there, or fell there, and learns again."""
        gap = self.gap()
        if gap is None or self.full is None:
            return False
        return max(LEAVING * self.least_gap, LEAVING_FROM * self.full) <= gap <= LEAVING_TO * self.full

    def images(self) -> Sign | None:
        spread = self.value("pixel_spread")
        if spread is None or spread > PIXELS_NONE:
            return None
        return Sign("images", f"the images of a batch are all the same, or flat (their pixels deviate by {spread:.2g})",
                    "there is nothing to tell apart", "a look at the images that are read")

    def stands(self) -> Sign | None:
        scale = max(map(abs, (self.degenerate | self.of_parts).values()), default=0.0)
        for reading, value in (self.degenerate | self.of_parts).items():
            part = reading.partition(": ")[0] if reading in self.of_parts else ""
            now = self.value(part or "loss")
            if now is not None and abs(now - value) <= LOSS_NEAR * scale and not (value > 0 and self.is_leaving()):
                name, meaning = parts(reading.removeprefix(f"{part}: "))
                return Sign("loss", f"the {part or 'loss'}{' loss' * bool(part)} stands at {now:.3f}{name}", meaning, self.lower())
        return None

    def above(self) -> Sign | None:
        """A loss above the largest degenerate value, which a network that knows nothing has."""
        loss, reading = self.value("loss"), max(self.degenerate, key=self.degenerate.__getitem__, default="")
        if loss is None or not 0 < self.degenerate.get(reading, 0.0) * (1 + LOSS_NEAR) < loss:
            return None
        name, meaning = parts(reading)
        return Sign("above", f"the loss of {loss:.3f} is above {self.degenerate[reading]:.3f}{name}", meaning, self.lower())

    def lower(self) -> str:
        return "a lower learning rate or a longer warm-up" + (" of the teacher temperature" if self.full else "")

    def assignment(self, is_late: bool) -> Sign | None:
        """A full entropy, if the run did not begin with it or should have left it by now; or one prototype for all."""
        each, mean = self.value("assignment_entropy"), self.value("mean_entropy")
        if self.full is None or each is None or mean is None:
            return None
        full = ENTROPY_FULL * self.full
        if each >= full and not self.is_leaving() and (is_late or self.first("assignment_entropy") < full):
            return Sign("entropy", "the assignment entropy is full", "the output is uniform", self.lower())
        if mean <= ENTROPY_NONE * self.full:
            return Sign("entropy", f"the entropy of the mean assignment is {mean:.2g} of {self.full:.2f}",
                        "every image goes to one prototype", "a higher teacher temperature or a lower learning rate")
        return None

    def gradient(self) -> Sign | None:
        norm = self.value("gradient_norm")
        if norm is None:
            return None
        first = self.first("gradient_norm")
        if norm <= GRADIENT_NONE or norm <= GRADIENT_LEFT * first:
            text = "the gradient is zero" if norm <= GRADIENT_NONE else f"the gradient norm fell from {first:.2g} to {norm:.2g}"
            return Sign("gradient", text, "nothing is learned any more", OTHER)
        if norm >= GRADIENT_GROWTH * first:
            return Sign("explosion", f"the gradient norm rose from {first:.2g} to {norm:.2g}", "the training diverges",
                        "a tenth of the learning rate, or a clip (--set training.clip=1)")
        return None

    def rise(self) -> Sign | None:
        loss = self.value("loss")
        if loss is None or not 0 < LOSS_RISE * self.first("loss") <= loss:
            return None
        return Sign("rise", f"the loss rose from {self.first('loss'):.3g} to {loss:.3g}", "the training diverges",
                    "a tenth of the learning rate, or a longer warm-up")

    def still(self) -> Sign | None:
        """A loss that is where it began; one that rose counts only above all degenerate values: DINO's rises and it learns.

        A part that is where it began while the whole falls is no sign: SiT on one image repeated was better for it in kNN
        accuracy, and DeVAE paints the mean of all images before it uses its code.
        """
        loss = self.value("loss")
        if loss is None or (first := self.first("loss")) <= 0 or self.is_leaving():
            return None
        if loss < (1 - LOSS_NEAR) * first or (loss > (1 + LOSS_NEAR) * first and not self.above()):
            return None
        return Sign("still", f"the loss has not fallen since the start ({first:.3f})", "nothing is learned",
                    OTHER)

    def agreement(self) -> Sign | None:
        cosine = self.value("agreement")
        if cosine is None or cosine < AGREEMENT:
            return None
        return Sign("agreement", f"the views of an image agree to {cosine:.4f}", "all images get one vector",
                    "a lower learning rate or a higher momentum of the teacher")

    def features(self) -> list[Sign]:
        """Narrow features, unless labels show that they tell more than those of the start: MAE's do, at a sixth of the spread."""
        if not self.start or not self.health or self.is_better():
            return []
        found, helps = [], "a lower learning rate or a smaller weight decay"
        spread, before = self.health["spread"], self.start["spread"]
        if spread <= (SPREAD_NONE if self.is_blind() else max(SPREAD_LEFT * before, SPREAD_NONE)):
            found.append(Sign("spread", f"the spread of the features is {spread:.2g} ({before:.2g} at the start)",
                              "the features of all images are nearly one vector", helps))
        rank, before = self.health["rankme"], self.start["rankme"]
        if rank - 1 <= RANK_LEFT * (before - 1):
            found.append(Sign("rank", f"the features use {rank:.1f} directions by RankMe ({before:.1f} at the start)",
                              "the features have lost most of their directions", helps))
        return found

    def is_better(self) -> bool:
        """Whether kNN accuracy is as many standard errors above the start as, below it, are a sign."""
        now, before = self.health.get("knn_accuracy"), self.start.get("knn_accuracy")
        if now is None or before is None:
            return False
        error = math.hypot(self.health.get("knn_error", 0.0), self.start.get("knn_error", 0.0))
        return bool(now > before + KNN_ERRORS * error)

    def is_blind(self) -> bool:
        """Whether nothing tells if features that have changed have become worse."""
        return self.several_labels and "knn_accuracy" not in self.start

    def knn(self) -> Sign | None:
        now, before = self.health.get("knn_accuracy"), self.start.get("knn_accuracy")
        if now is None or before is None:
            return None
        error = math.hypot(self.health.get("knn_error", 0.0), self.start.get("knn_error", 0.0))
        if now >= before - KNN_ERRORS * error:
            return None
        return Sign("knn", f"kNN accuracy is {now:.1%}, below the {before:.1%} of {self.of_start}",
                    "training has made the features worse", "a lower learning rate or milder augmentation")

    def narrower(self) -> Sign | None:
        """Where there are no labels: the rank is a third of what it was at the start."""
        if "knn_accuracy" in self.start or not self.start or not self.health or self.is_blind():
            return None
        rank, before = self.health["rankme"], self.start["rankme"]
        if rank > RANK_KEPT * before:
            return None
        return Sign("rank", f"the features use {rank:.1f} directions by RankMe, {before:.1f} those of {self.of_start}",
                    "training has made them narrower", "a lower learning rate")

    def unlearned(self) -> Sign | None:
        """Where there are no labels: hardly any of an image's neighbours at the start is still one."""
        kept = self.health.get("neighbours_kept")
        if kept is None or kept > NEIGHBOURS_KEPT or self.is_blind():
            return None
        return Sign("neighbours", f"{kept:.1%} of the nearest neighbours under {self.of_start} remain",
                    "what they told apart is no longer told", "a lower learning rate or a longer warm-up")


def parts(reading: str) -> tuple[str, str]:
    """`` = value`` and the meaning of a reading ``value: meaning``; without a value only the meaning."""
    name, colon, meaning = reading.partition(": ")
    return (f" = {name}", meaning) if colon else ("", reading)


def agreeing(signs: list[Sign]) -> tuple[Sign, ...]:
    """The most telling pair of which one is of ``AGREEING``; a loss that rose has not fallen, which is no second sign.

    Images that are all alike need no second: that is a fact about the input, which no healthy run shows on its way.
    """
    pair = next(((one, two) for one, two in combinations(signs, 2)
                 if {one.name, two.name} & set(AGREEING) and (one.name, two.name) != ("rise", "still")), ())
    return pair or tuple(sign for sign in signs if sign.name == "images")
