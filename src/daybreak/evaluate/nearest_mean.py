"""nearest-mean-v1: each query gets the class with the nearest mean vector; also with classes that come one after another.

Vectors have length 1, means are not normalised again; nothing is trained and nothing can be forgotten but by
confusion with what came later. Janson et al. 2022 (arXiv 2210.04428).

N training vectors, n queries, D width, C classes, T tasks.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..data.philox import permutation
from .bootstrap import errors_of
from .metrics import Number, Scores, score

TASKS = 10  # at most, of two or more classes each


def nearest_mean_v1(train: Tensor, train_labels: Tensor, queries: Tensor, query_labels: Tensor, num_classes: int) -> Scores:
    """Classify queries by the nearest class mean; the score is the softmax of the negative squared distance.

    Args:
        train: (N, D); its labels (N,) int64 in [0, num_classes). A class without a vector is never given.
        queries: (n, D); labels (n,) int64 in [0, num_classes).
    """
    return score((-distances(train, train_labels, queries, num_classes)).softmax(1), query_labels)


def distances(train: Tensor, labels: Tensor, queries: Tensor, num_classes: int) -> Tensor:
    """Squared distances (n, C) float64 of unit queries to the class means; infinite to a class without vectors."""
    x, z = (normalize(table.double(), dim=1) for table in (train, queries))
    counts = torch.bincount(labels, minlength=num_classes)[:, None]  # (C, 1)
    means = x.new_zeros(num_classes, x.shape[1]).index_add_(0, labels, x) / counts.clamp(min=1)
    # Not torch.cdist: its square root of nearly nothing would lose half of the digits.
    squared = 1 + means.square().sum(1) - 2 * z @ means.T  # |z| is 1
    return squared.masked_fill(counts[:, 0] == 0, torch.inf)


def incremental(train: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, num_classes: int, *, seed: int = 0,
                query_groups: list[str] | None = None) -> list[Number]:
    """Average incremental accuracy and forgetting when the classes come in T tasks, in an order drawn from the seed.

    A_t is the accuracy over the queries of all classes seen up to task t, among these classes. The average is
    (1/T) sum_t A_t; forgetting is the mean over all tasks j but the last of max_{t<T} a_tj - a_Tj, where a_tj is the
    accuracy over the queries of task j after task t. The last A_T is the accuracy of ``nearest_mean_v1``. Empty
    for fewer than 4 classes, which make no two tasks, or where a task has no query.
    """
    if num_classes < 4:
        return []
    table, target = distances(train, labels, queries, num_classes).numpy(), truth.numpy()
    tasks = np.array_split(permutation(seed, 0, num_classes), min(TASKS, num_classes // 2))
    task_of = np.empty(num_classes, np.int64)  # of each class
    for number, members in enumerate(tasks):
        task_of[members] = number
    when = task_of[target]  # the task of each query, (n,)
    if len(np.unique(when)) < len(tasks):
        return []
    right = np.stack([np.where(task_of <= t, table, np.inf).argmin(1) == target for t in range(len(tasks))])  # (T, n)

    def both(weights: np.ndarray) -> np.ndarray:
        mass = np.bincount(when, weights=weights, minlength=len(tasks))  # of the queries of each task
        if not mass.all():
            return np.full(2, np.nan)
        hits = np.stack([np.bincount(when, weights=weights * row, minlength=len(tasks)) for row in right])  # (T, T)
        average = np.mean([hits[t, : t + 1].sum() / mass[: t + 1].sum() for t in range(len(tasks))])
        by_task = np.where(np.arange(len(tasks))[:, None] >= np.arange(len(tasks)), hits / mass, -np.inf)  # none before it is seen
        return np.array([average, (by_task[:-1, :-1].max(0) - by_task[-1, :-1]).mean()])

    errors = errors_of(both, (len(target), query_groups), seed=seed)
    names = (f"average incremental accuracy ({len(tasks)} tasks)", f"forgetting ({len(tasks)} tasks)")
    values = both(np.ones(len(target)))
    return [Number(name, float(value), error) for name, value, error in zip(names, values, errors, strict=True)]
