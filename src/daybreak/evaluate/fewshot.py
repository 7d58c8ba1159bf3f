"""fewshot-v1: how far a few labels go: 1, 2, 4, 8, 16 images a class, 1 % and 10 % of the labels.

Logistic regression as MSN measures it (arXiv 2204.07141): each vector less its own mean, divided by its length; no
intercept; 4000 times the summed cross-entropy plus |W|^2 / 2, so almost no penalty. Five draws; smaller ones lie
within larger ones. Images are drawn one by one, whatever their groups.

N training vectors, n queries, D width, C classes, T draws.
"""

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from ..data.philox import permutation
from .bootstrap import errors_of
from .logistic import regression, solve
from .metrics import Number

SHOTS = (1, 2, 4, 8, 16)  # images a class
SHARES = (0.01, 0.1)  # of each class, at least one image
DRAWS = 5
WEIGHT = 4000.0


def fewshot_v1(train: Tensor, train_labels: Tensor, queries: Tensor, query_labels: Tensor, num_classes: int, *, seed: int = 0,
               query_groups: list[str] | None = None, classes: tuple[str, ...] = ()) -> tuple[list[Number], list[str]]:
    """Accuracy for each number of labels, its mean and its deviation over the draws; and what was left out, as sentences.

    The error of a mean joins both doubts: sqrt(e^2 + s^2 / T), where e is the bootstrap error over the queries of
    their accuracy averaged over the draws, and s the deviation over the draws (with T - 1).

    Args:
        train: (N, D), of at least two classes; its labels (N,) int64 in [0, num_classes).
        queries: (n, D); labels (n,) int64 in [0, num_classes).
        classes: names, for the sentences.
    """
    x, z = (centred(table).numpy() for table in (train, queries))
    labels, truth = train_labels.numpy(), query_labels.numpy()
    counts = np.bincount(labels, minlength=num_classes)
    wanted: list[tuple[str, np.ndarray]] = []  # name, and how many of each class, (C,)
    notes = []
    rarest = int(np.where(counts > 0, counts, counts.max()).argmin())
    for shots in SHOTS:
        if shots > counts[rarest]:
            name = classes[rarest] if classes else str(rarest)
            notes.append(f"{shots} a class is left out: '{name}' has {counts[rarest]} training image"
                         f"{'s' if counts[rarest] > 1 else ''}.")
        else:
            wanted.append((f"{shots} a class", np.full(num_classes, shots)))
    wanted += [(f"{share:.0%} of the labels", np.maximum(1, np.floor(share * counts + 0.5)).astype(int)) for share in SHARES]
    turns = [turn_in_class(labels, permutation(seed, draw, len(labels))) for draw in range(DRAWS)]
    right = np.empty((len(wanted), DRAWS, len(z)))
    for i, (_, many) in enumerate(wanted):
        for draw, turn in enumerate(turns):
            chosen = turn < many[labels]
            model = solve(regression(WEIGHT, fit_intercept=False), x[chosen], labels[chosen])
            right[i, draw] = model.predict(z) == truth
    by_query = right.mean(1).T  # (n, S)
    doubts = errors_of(lambda w: w @ by_query / w.sum(), (len(z), query_groups), seed=seed)
    numbers = []
    for (name, _), accuracies, doubt in zip(wanted, right.mean(2), doubts, strict=True):
        deviation = float(accuracies.std(ddof=1))
        error = ((doubt or 0.0) ** 2 + deviation**2 / DRAWS) ** 0.5
        numbers += [Number(f"accuracy ({name})", float(accuracies.mean()), error),
                    Number(f"deviation over draws ({name})", deviation, None)]
    return numbers, notes


def centred(vectors: Tensor) -> Tensor:
    """Each of (N, D) less its own mean, of length 1, float64; a constant one becomes 0."""
    table = vectors.double()
    return normalize(table - table.mean(1, keepdim=True), dim=1)


def turn_in_class(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The place (N,) that each vector has among those of its class, in ``order`` (N,), a permutation."""
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        turn[rows] = np.arange(len(rows))
    return turn
