"""Protocols: a name and a version for every number, so that two numbers of one name may be compared.

N bank or training images, n queries, D width, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import Refused, nearest
from .bootstrap import standard_error
from .knn import knn_v1
from .linear import linear_v1
from .metrics import Scores

if TYPE_CHECKING:
    from ..data.sources import Labels

Backbone = Literal["trained", "random", "pixels"]


@dataclass(frozen=True)
class Result:
    """One number and all that is needed to compare it."""

    protocol: str  # "knn", "linear"
    version: str  # "v1"
    metric: str  # one of metrics.METRICS, "(standardised)" appended where that is a second row
    value: float  # in [0, 1]
    error: float | None  # standard error over the test images; None where none is computed
    backbone: Backbone
    data: str  # fingerprint or name of the data
    seed: int
    num_train: int = 0  # images in the bank, or trained on
    num_test: int = 0
    num_classes: int = 0


@dataclass(frozen=True)
class Skipped:
    """A protocol that gave no number, or left images out, with the reason as a sentence."""

    protocol: str
    reason: str

    def __str__(self) -> str:
        return f"{self.protocol}: {self.reason}"


class Task(NamedTuple):
    """Vectors with known classes, ready for a protocol."""

    train: Tensor  # (N, D)
    train_labels: Tensor  # (N,) int64 in [0, C)
    queries: Tensor  # (n, D)
    query_labels: Tensor  # (n,)
    num_classes: int
    train_groups: list[str] | None
    query_groups: list[str] | None


def run_knn(task: Task, seed: int) -> dict[str, Scores]:
    """knn-v1 and its second row; draws nothing."""
    return {suffix: knn_v1(*task[:5], standardise=bool(suffix)) for suffix in ("", " (standardised)")}


def run_linear(task: Task, seed: int) -> dict[str, Scores]:
    return {"": linear_v1(*task[:5], seed=seed, groups=task.train_groups)}


PROTOCOLS: dict[str, Callable[[Task, int], dict[str, Scores]]] = {"knn-v1": run_knn, "linear-v1": run_linear}
DEFAULT = ("knn-v1", "linear-v1")


def evaluate_features(bank: Tensor, bank_labels: "Labels | None", queries: Tensor,
                      query_labels: "Labels | None", *, protocols: Sequence[str] = DEFAULT,
                      backbone: Backbone = "trained", data: str = "", seed: int = 0,
                      bank_groups: list[str] | None = None, query_groups: list[str] | None = None,
                      ) -> tuple[list[Result], list[Skipped]]:
    """Apply protocols to vectors of labelled images.

    Images of unknown class are left out, and classes of fewer than two images, which a sentence says. Classes
    are matched by name; a query of a class that the bank lacks counts as an error.

    Args:
        bank: (N, D), with one label each; also what linear-v1 trains on.
        queries: (n, D), none of them in the bank.
        bank_groups, query_groups: what belongs together (patient, video): held out, and resampled, as one.

    Returns:
        Results and what was skipped; without labels everything is skipped.

    Raises:
        Refused: an unknown protocol.
    """
    for name in protocols:
        if name not in PROTOCOLS:
            raise Refused(f"unknown protocol '{name}'; {nearest(name, list(PROTOCOLS))}")
    reason = why_not(bank_labels) or why_not(query_labels)
    if reason or bank_labels is None or query_labels is None:
        return [], [Skipped(name, reason) for name in protocols]
    task, sentence = make_task(bank, bank_labels, queries, query_labels, bank_groups, query_groups)
    skipped = [Skipped(name, sentence) for name in protocols if sentence]
    if task is None:
        return [], skipped
    results = []
    for name in protocols:
        protocol, _, version = name.rpartition("-")
        for suffix, scores in PROTOCOLS[name](task, seed).items():
            right = scores.prediction == task.query_labels.cpu().numpy()
            for metric, value in scores.metrics.items():
                error = standard_error(right, task.query_groups, seed=seed) if metric == "accuracy" else None
                results.append(Result(protocol, version, metric + suffix, value, error, backbone, data, seed,
                                      len(task.train), len(task.queries), task.num_classes))
    return results, skipped


def why_not(labels: "Labels | None") -> str:
    """Why these labels give no accuracy, as a sentence; empty if they do."""
    if labels is None:
        return "The images have no labels, so no accuracy can be measured."
    if labels.kind == "class":
        return ""
    kind = {"multi": "several labels an image", "value": "numbers for labels"}[labels.kind]
    return f"The data have {kind}; this protocol needs one class an image."


def make_task(bank: Tensor, bank_labels: "Labels", queries: Tensor, query_labels: "Labels",
              bank_groups: list[str] | None, query_groups: list[str] | None) -> tuple[Task | None, str]:
    """Keep what can be judged; the sentence says what was left out (empty: nothing but unknown classes)."""
    classes = list(dict.fromkeys([*bank_labels.classes, *query_labels.classes]))
    place = {name: i for i, name in enumerate(classes)}
    table = [np.array([*map(place.get, labels.classes), -1])[np.asarray(labels.values, dtype=np.int64)]
             for labels in (bank_labels, query_labels)]  # an unknown class, -1, reads the last entry
    counts = np.bincount(np.concatenate(table) + 1, minlength=len(classes) + 1)[1:]
    rare = [name for name, count in zip(classes, counts, strict=True) if count == 1]
    kept = np.append(counts > 1, False)  # the last entry is the unknown class
    renamed = np.append(np.cumsum(counts > 1) - 1, -1)
    keep = [np.flatnonzero(kept[values]) for values in table]
    num_classes = int((counts > 1).sum())
    sentence = ""
    if rare:
        named = ", ".join(rare[:5]) + (", ..." if len(rare) > 5 else "")
        sentence = f"{len(rare)} of {len(classes)} classes have fewer than 2 images; left out: {named}."
    if num_classes < 2 or min(map(len, keep)) == 0 or len(keep[0]) < 2:
        return None, (f"{num_classes} of {len(classes)} classes have at least 2 images, with {len(keep[0])} "
                      f"in the bank and {len(keep[1])} queries; 2 classes, 2 images and 1 query are needed.")
    (train, train_labels, train_groups), (test, test_labels, test_groups) = (
        (vectors[torch.from_numpy(rows)].float(), torch.from_numpy(renamed[values[rows]]),
         None if groups is None else [groups[i] for i in rows])
        for vectors, values, rows, groups in zip((bank, queries), table, keep, (bank_groups, query_groups),
                                                 strict=True))
    return Task(train, train_labels, test, test_labels, num_classes, train_groups, test_groups), sentence
