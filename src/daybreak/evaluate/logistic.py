"""logistic-v1: softmax regression with an L2 penalty on frozen vectors, by L-BFGS.

Minimises (1/N) sum_i -log softmax(W x_i + b)[y_i] + (penalty / 2) |W|^2 over vectors standardised by the training
set. After DINOv2's logistic regression (arXiv 2304.07193): a tenth of the training set chooses the penalty, then
all of it is fitted once more. With two classes scikit-learn fits one vector of weights, for the second.

N training vectors, n queries, D width, C classes.
"""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import Refused
from .linear import held_out, standardise_by
from .metrics import Scores, score

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

PENALTIES = tuple(10.0**power for power in range(2, -7, -1))  # strongest first, each started from the one before
ITERATIONS = 300
TOLERANCE = 1e-5  # of the largest component of the gradient


def logistic_v1(train: Tensor, train_labels: Tensor, queries: Tensor, query_labels: Tensor, num_classes: int, *,
                groups: list[str] | None = None) -> Scores:
    """Fit a logistic regression and apply it to queries; nothing is random.

    Args:
        train: (N, D), of at least two classes; its labels (N,) int64 in [0, num_classes).
        queries: (n, D); labels (n,) int64 in [0, num_classes).
        groups: of the training vectors; none stands on both sides of the held-out tenth.

    Raises:
        Refused: without the held-out tenth only one class is left.
    """
    x, z = (table.double().numpy() for table in standardise_by(train, train, queries))
    model, penalty = fit_chosen(x, train_labels.numpy(), groups)
    table = np.zeros((len(z), num_classes))
    table[:, model.classes_] = model.predict_proba(z)  # what the training set lacks stays 0
    return score(torch.from_numpy(table), query_labels, penalty=penalty, iterations=int(model.n_iter_[0]))


def fit_chosen(x: np.ndarray, labels: np.ndarray, groups: list[str] | None) -> tuple["LogisticRegression", float]:
    """The regression on all of ``x`` (N, D) with the penalty that is best on a held-out tenth, the strongest if several are."""
    held = held_out(len(x), groups)
    if len(np.unique(labels[~held])) < 2:
        raise Refused(f"{len(x)} training images are of one class once a tenth is held out to choose the penalty; give more.")
    model = regression(1.0, warm_start=True)
    right = []
    for penalty in PENALTIES:
        model.set_params(C=1 / (penalty * int((~held).sum())))  # scikit-learn's C weighs the sum, not the mean
        right.append((solve(model, x[~held], labels[~held]).predict(x[held]) == labels[held]).mean())
    penalty = PENALTIES[int(np.argmax(right))]
    return solve(regression(1 / (penalty * len(x))), x, labels), penalty


def regression(c: float, **settings) -> "LogisticRegression":
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(**({"C": c, "max_iter": ITERATIONS, "tol": TOLERANCE} | settings))


def solve(model: "LogisticRegression", x: np.ndarray, labels: np.ndarray) -> "LogisticRegression":
    """Fit; that the iterations ended first is no warning here, since their number is part of the protocol."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, labels)
