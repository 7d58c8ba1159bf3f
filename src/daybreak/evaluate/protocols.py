"""Protocols: a name and a version for every number, so that two numbers of one name may be compared.

N bank or training images, n queries, D width, C classes.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from torch import Tensor

from ..errors import Refused, nearest
from .bootstrap import standard_error
from .fewshot import fewshot_v1
from .knn import K, knn_v1
from .linear import linear_v1
from .logistic import logistic_v1
from .metrics import Number, Scores
from .multilabel import judge_labels, multilabel_v1
from .nearest_mean import incremental, nearest_mean_v1
from .ood import ood_v1
from .rank import rank_v1
from .retrieval import retrieval_v1
from .tasks import Outside, Task, few, make_task, not_finite, why_not

if TYPE_CHECKING:
    from ..data.sources import Labels

Backbone = Literal["trained", "random", "pixels", "constant"]


@dataclass(frozen=True)
class Result:
    """One number and all that is needed to compare it."""

    protocol: str  # "knn", "linear"
    version: str  # "v1"
    metric: str  # such as one of metrics.METRICS, "(standardised)" appended where that is a second row
    value: float
    error: float | None  # standard error over the test images; None where none is computed
    backbone: Backbone
    data: str  # fingerprint or name of the data
    seed: int
    num_train: int = 0  # images in the bank, or trained on
    num_test: int = 0
    num_classes: int = 0
    test_data: str = ""  # fingerprint of the test images, "+" and that of the OOD images where there are any
    backbone_hash: str = ""  # of the weights, "" for pixels and constants
    width: int = 0  # of the vectors
    settings: str = ""  # what was set other than the protocol has it, such as "epochs = 20"


@dataclass(frozen=True)
class Skipped:
    """A protocol that gave no number, or left something out, with the reason as a sentence."""

    protocol: str
    reason: str

    def __str__(self) -> str:
        return f"{self.protocol}: {self.reason}"


class Found(NamedTuple):
    """What a protocol gives: numbers, and sentences on what was left out."""

    numbers: list[Number]
    notes: Sequence[str] = ()


def judged(scores: Scores, task: Task, seed: int, suffix: str = "") -> list[Number]:
    """The metrics of predictions; accuracy comes with its error."""
    right = scores.prediction == task.query_labels.cpu().numpy()
    return [Number(metric + suffix, value, standard_error(right, task.query_groups, seed=seed) if metric == "accuracy" else None)
            for metric, value in scores.metrics.items()]


def run_knn(task: Task, seed: int) -> Found:
    """knn-v1 and its second row; draws nothing."""
    few = [f"the bank has {len(task.train)} images, fewer than k = {K}; all of them vote."] if len(task.train) < K else []
    return Found([number for suffix in ("", " (standardised)")
                  for number in judged(knn_v1(*task[:5], standardise=bool(suffix)), task, seed, suffix)], few)


def run_linear(task: Task, seed: int) -> Found:
    return Found(judged(linear_v1(*task[:5], seed=seed, groups=task.train_groups), task, seed))


def run_logistic(task: Task, seed: int) -> Found:
    return Found(judged(logistic_v1(*task[:5], groups=task.train_groups), task, seed))


def run_fewshot(task: Task, seed: int) -> Found:
    return Found(*fewshot_v1(*task[:5], seed=seed, query_groups=task.query_groups, classes=task.classes))


def run_nearest_mean(task: Task, seed: int) -> Found:
    return Found(judged(nearest_mean_v1(*task[:5]), task, seed)
                 + incremental(*task[:5], seed=seed, query_groups=task.query_groups))


def run_retrieval(task: Task, seed: int) -> Found:
    return Found(*retrieval_v1(*task[:4], seed=seed, query_groups=task.query_groups))


def run_multilabel(task: Task, seed: int) -> Found:
    return Found(multilabel_v1(*task[:4], task.classes, seed=seed, groups=task.train_groups, query_groups=task.query_groups))


def run_ood(task: Task, seed: int) -> Found:
    if task.outside is None:
        raise Refused("images of another kind are needed to tell from those of the test; give them with --ood DATA.")
    return Found(*ood_v1(*task[:3], task.outside.vectors, seed=seed, groups=task.train_groups, query_groups=task.query_groups,
                         outside_groups=task.outside.groups))


def run_rank(task: Task, seed: int) -> Found:
    """rank-v1 of the bank; draws nothing."""
    return Found([Number(metric, value, None) for metric, value in rank_v1(task.train, task.views).items()])


class Protocol(NamedTuple):
    run: Callable[[Task, int], Found]
    labels: Literal["class", "multi", "none"] = "class"  # what it needs


PROTOCOLS = {
    "knn-v1": Protocol(run_knn), "linear-v1": Protocol(run_linear), "logistic-v1": Protocol(run_logistic),
    "fewshot-v1": Protocol(run_fewshot), "nearest-mean-v1": Protocol(run_nearest_mean),
    "retrieval-v1": Protocol(run_retrieval), "multilabel-v1": Protocol(run_multilabel, "multi"),
    "ood-v1": Protocol(run_ood), "rank-v1": Protocol(run_rank, "none"),
}
DEFAULT = ("knn-v1", "linear-v1")


def default(labels: "Labels | None") -> tuple[str, ...]:
    """What is measured where nothing is named: multilabel-v1 where images have several labels, else ``DEFAULT``."""
    return ("multilabel-v1",) if labels is not None and labels.kind == "multi" else DEFAULT


def check(protocols: Sequence[str], known: Collection[str] = PROTOCOLS) -> None:
    """Refuse a name that is none of ``known``."""
    for name in protocols:
        if name not in known:
            raise Refused(f"unknown protocol '{name}'; {nearest(name, list(known))}")


def evaluate_features(bank: Tensor, bank_labels: "Labels | None", queries: Tensor,
                      query_labels: "Labels | None", *, protocols: Sequence[str] = DEFAULT,
                      backbone: Backbone = "trained", data: str = "", seed: int = 0,
                      bank_groups: list[str] | None = None, query_groups: list[str] | None = None, test_data: str = "",
                      backbone_hash: str = "", outside: Outside | None = None,
                      views: Tensor | None = None) -> tuple[list[Result], list[Skipped]]:
    """Apply protocols to vectors of images, labelled as each protocol needs them.

    Images of unknown class are left out, and classes of fewer than two images, which a sentence says. Classes
    are matched by name; a query of a class that the bank lacks counts as an error, which a sentence says too.

    Args:
        bank: (N, D), with one label each; also what classifiers are trained on.
        queries: (n, D), none of them in the bank.
        bank_groups, query_groups: what belongs together (patient, video): held out, and resampled, as one.
        data, test_data, backbone_hash: fingerprints that go into the results.
        outside: OOD images, which ood-v1 needs.
        views: (n, q, D), q augmented views of n images of the bank, without which rank-v1 has no LiDAR and no alignment.

    Returns:
        Results and what was skipped; vectors that are not finite, or labels that don't serve, give no result.

    Raises:
        Refused: an unknown protocol.
    """
    check(protocols)
    sides = {"bank": bank, "queries": queries} | ({} if outside is None else {"OOD images": outside.vectors})
    if views is not None:
        sides["views"] = views.flatten(0, 1)
    for side, vectors in sides.items():
        if reason := not_finite(vectors, side):
            return [], [Skipped(name, reason) for name in protocols]
    results: list[Result] = []
    skipped: list[Skipped] = []
    tasks = {kind: make_task(kind, bank, bank_labels, queries, query_labels, bank_groups, query_groups, outside, views)
             for kind in {PROTOCOLS[name].labels for name in protocols}}
    for name in protocols:
        task, notes = tasks[PROTOCOLS[name].labels]
        skipped += [Skipped(name, note) for note in notes]
        if task is None:
            continue
        try:
            found = PROTOCOLS[name].run(task, seed)
        except Refused as error:  # the other protocols may go on
            found = Found([], [str(error)])
        skipped += [Skipped(name, note) for note in found.notes]
        protocol, _, version = name.rpartition("-")
        tested, num_test = test_data, len(task.queries)
        if name == "ood-v1" and outside is not None:
            tested, num_test = f"{test_data}+{outside.data}", num_test + len(outside.vectors)
        elif PROTOCOLS[name].labels == "none":
            tested, num_test = "", 0
        results += [Result(protocol, version, number.metric, number.value, number.error, backbone, data, seed, len(task.train),
                           num_test, task.num_classes, tested, backbone_hash, bank.shape[1]) for number in found.numbers]
    return results, skipped


def evaluate_scores(scores: Tensor, names: Sequence[str], labels: "Labels | None", *, data: str = "", seed: int = 0,
                    groups: list[str] | None = None, test_data: str = "",
                    backbone_hash: str = "") -> tuple[list[Result], list[Skipped]]:
    """label-tokens-v1: what multilabel-v1 measures, of the logits that label tokens give themselves; nothing is fitted.

    Args:
        scores: (n, C) for the C labels ``names``, of images with ``labels``; matched by name.
        data: fingerprint of what the tokens learned from.
    """
    protocol = "label-tokens-v1"
    if reason := why_not(labels, "multi", "queries") or not_finite(scores, "queries"):
        return [], [Skipped(protocol, reason)]
    assert labels is not None
    columns = {name: labels.values[:, labels.classes.index(name)] for name in names if name in labels.classes}
    judged_names = tuple(name for name, values in columns.items() if {0.0, 1.0} <= set(values.tolist()))
    left = [name for name in dict.fromkeys([*names, *labels.classes]) if name not in judged_names]
    notes = [Skipped(protocol, f"{len(left)} labels have no token, or not both values in the queries; left out: {few(left)}.")
             ] if left else []
    if not judged_names:
        return [], notes
    truth = np.stack([columns[name] for name in judged_names], 1).astype(np.float64)
    table = scores[:, [list(names).index(name) for name in judged_names]].double().numpy()
    numbers = judge_labels(table, truth, judged_names, seed=seed, groups=groups)
    return [Result("label-tokens", "v1", n.metric, n.value, n.error, "trained", data, seed, 0, len(scores), len(judged_names),
                   test_data, backbone_hash) for n in numbers], notes
