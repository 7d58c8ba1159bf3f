"""What predictions are worth: accuracy, balanced accuracy, macro F1, AUC.

n queries, C classes.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

METRICS = ("accuracy", "balanced accuracy", "macro F1", "AUC")


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
    from sklearn.metrics import f1_score, roc_auc_score

    present = np.unique(truth)
    found = {"accuracy": float((prediction == truth).mean()),
             "balanced accuracy": float(np.mean([(prediction[truth == c] == c).mean() for c in present])),
             "macro F1": float(f1_score(truth, prediction, average="macro", zero_division=0))}
    if len(present) > 1:
        judged = present[1:] if table.shape[1] == 2 else present
        found["AUC"] = float(np.mean([roc_auc_score(truth == c, table[:, c]) for c in judged]))
    return found
