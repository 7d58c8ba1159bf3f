"""What predictions are worth: accuracy, balanced accuracy, macro F1, AUC, average precision.

n queries, C classes.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

METRICS = ("accuracy", "balanced accuracy", "macro F1", "AUC")
HEADLINES = ("accuracy", "mean AUC", "mean average precision")  # how the metrics begin that a summary shows


class Number(NamedTuple):
    """One number of a protocol."""

    metric: str
    value: float
    error: float | None  # standard error over the test images; None where none is computed


class Scores(NamedTuple):
    """Predictions of n queries with their scores."""

    prediction: np.ndarray  # (n,) int64
    score: np.ndarray  # (n, C) float32, non-negative, rows sum to 1
    metrics: dict[str, float]  # of METRICS; AUC is missing where it is undefined
    settings: dict[str, float]  # what was used or chosen, such as k or the learning rate


def score(probabilities: Tensor, truth: Tensor, **settings: float) -> Scores:
    """Make ``Scores`` of probabilities (n, C) against true classes (n,) int64 in [0, C)."""
    table, labels = probabilities.float().cpu().numpy(), truth.cpu().numpy()
    prediction = table.argmax(1)
    return Scores(prediction, table, classification_metrics(prediction, table, labels), settings)


def classification_metrics(prediction: np.ndarray, table: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro F1 and AUC, all in [0, 1].

    Balanced accuracy is the mean recall of the classes that occur in ``truth``; macro F1 the mean over those
    that occur in ``truth`` or ``prediction``. AUC is one class against the rest, mean over the classes of
    ``truth`` (of two classes in all: that of the second); undefined, hence missing, if only one occurs.
    """
    from sklearn.metrics import f1_score

    present = np.unique(truth)
    found = {"accuracy": float((prediction == truth).mean()),
             "balanced accuracy": float(np.mean([(prediction[truth == c] == c).mean() for c in present])),
             "macro F1": float(f1_score(truth, prediction, average="macro", zero_division=0))}
    if len(present) > 1:
        judged = present[1:] if table.shape[1] == 2 else present
        found["AUC"] = float(np.mean([Ranking(table[:, c], truth == c).auc() for c in judged]))
    return found


class Ranking:
    """n items sorted by a score once, so that what depends on their order costs one pass for each set of weights.

    ``score`` (n,), higher for what should be positive; ``truth`` (n,) bool. Weights (n,) say how often an item
    counts; None is once. Every number is NaN if there is no positive or no negative.
    """

    def __init__(self, score: np.ndarray, truth: np.ndarray):
        values, place = np.unique(-np.asarray(score, np.float64), return_inverse=True)  # equal scores have one place, highest first
        self.place, self.truth, self.num_places = place, np.asarray(truth, bool), len(values)

    def masses(self, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Weight of the positives and of the negatives at each place; None if either is nothing."""
        weights = np.ones(len(self.place)) if weights is None else weights
        positive, negative = (np.bincount(self.place, weights=weights * side, minlength=self.num_places)
                              for side in (self.truth, ~self.truth))
        return (positive, negative) if positive.any() and negative.any() else None

    def auc(self, weights: np.ndarray | None = None) -> float:
        """Probability that a positive's score is above a negative's, half for ties."""
        if (masses := self.masses(weights)) is None:
            return float("nan")
        positive, negative = masses
        below = negative.sum() - negative.cumsum()
        return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))

    def average_precision(self, weights: np.ndarray | None = None) -> float:
        """Mean over the positives of the precision among all that score at least as high."""
        if (masses := self.masses(weights)) is None:
            return float("nan")
        positive, negative = masses
        above = positive.cumsum()
        precision = above / np.maximum(above + negative.cumsum(), 1e-300)  # places of no weight hold no positive either
        return float((positive * precision).sum() / positive.sum())

    def false_positives(self, weights: np.ndarray | None = None, recall: float = 0.95) -> float:
        """Share of the negatives that score at least the highest threshold which ``recall`` of the positives reach."""
        if (masses := self.masses(weights)) is None:
            return float("nan")
        positive, negative = masses
        place = int(np.argmax(positive.cumsum() / positive.sum() >= recall))
        return float(negative.cumsum()[place] / negative.sum())
