"""multilabel-v1: one logistic regression a label on frozen vectors; AUC and average precision of each, and their means.

For each label c, over the n_c images whose label is known, minimises (1/n_c) sum_i BCE(w_c x_i + b_c, y_ic) +
(penalty / 2) |w_c|^2 on vectors standardised by the training set, by L-BFGS. One penalty serves all labels: that
with the lowest mean loss on a held-out tenth; then all images are fitted once more. Unknown labels (NaN, as
"uncertain" is read) take part neither in the fit nor in the measure: the U-Ignore of CheXpert (arXiv 1901.07031).

N training vectors, n queries, D width, C labels.
"""

import numpy as np
from torch import Tensor

from .bootstrap import errors_of
from .linear import held_out, standardise_by
from .logistic import ITERATIONS, PENALTIES, TOLERANCE
from .metrics import Number, Ranking


def multilabel_v1(train: Tensor, train_labels: Tensor, queries: Tensor, query_labels: Tensor, classes: tuple[str, ...], *,
                  seed: int = 0, groups: list[str] | None = None, query_groups: list[str] | None = None) -> list[Number]:
    """AUC and average precision of each label, and their unweighted means over the labels, with bootstrap errors.

    Args:
        train: (N, D), N at least 2; its labels (N, C) of 0, 1 and NaN.
        queries: (n, D); labels (n, C). Each label has both values among the known of either side.
        classes: C names.
        groups, query_groups: what is held out, and resampled, as one.
    """
    x, z = (table.double().numpy() for table in standardise_by(train, train, queries))
    y, truth = (table.double().numpy() for table in (train_labels, query_labels))
    weight, bias = fit_chosen(x, y, groups)
    return judge_labels(z @ weight + bias, truth, classes, seed=seed, groups=query_groups)


def judge_labels(scores: np.ndarray, truth: np.ndarray, classes: tuple[str, ...], *, seed: int = 0,
                 groups: list[str] | None = None) -> list[Number]:
    """AUC and average precision of scores (n, C) against labels (n, C) of 0, 1 and NaN, their means first, with errors."""
    known = ~np.isnan(truth)
    rankings = [Ranking(scores[known[:, c], c], truth[known[:, c], c] == 1) for c in range(len(classes))]

    def measure(weights: np.ndarray) -> np.ndarray:
        each = np.array([(r.auc(weights[known[:, c]]), r.average_precision(weights[known[:, c]]))
                         for c, r in enumerate(rankings)])  # (C, 2)
        return np.concatenate([each.mean(0), each.ravel()])

    names = ["mean AUC", "mean average precision"]
    names += [f"{metric} ({name})" for name in classes for metric in ("AUC", "average precision")]
    values = measure(np.ones(len(scores)))
    errors = errors_of(measure, (len(scores), groups), seed=seed)
    return [Number(name, float(value), error) for name, value, error in zip(names, values, errors, strict=True)]


def fit_chosen(x: np.ndarray, y: np.ndarray, groups: list[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Weights (D, C) and biases (C,) of the regressions on all of ``x`` (N, D) with the penalty that the held-out tenth chose."""
    held = held_out(len(x), groups)
    start, losses = np.zeros((x.shape[1] + 1, y.shape[1])), []
    for penalty in PENALTIES:  # strongest first, each started from the one before
        start = fit(x[~held], y[~held], penalty, start)
        losses.append(loss_and_slope(x[held] @ start[:-1] + start[-1], y[held])[0])
    found = fit(x, y, PENALTIES[int(np.argmin(losses))], np.zeros_like(start))
    return found[:-1], found[-1]


def fit(x: np.ndarray, y: np.ndarray, penalty: float, start: np.ndarray) -> np.ndarray:
    """Weights and, in the last row, biases (D + 1, C) of the regressions with one penalty."""
    from scipy.optimize import minimize

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(start.shape)
        loss, slope = loss_and_slope(x @ w[:-1] + w[-1], y)
        gradient = np.vstack([x.T @ slope + penalty * w[:-1], slope.sum(0)])
        return loss + penalty / 2 * float((w[:-1] ** 2).sum()), gradient.ravel()

    options = {"maxiter": ITERATIONS, "gtol": TOLERANCE, "ftol": 1e-12}
    return minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(start.shape)


def loss_and_slope(z: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Binary cross-entropy of logits ``z`` (N, C), mean over each label's known images, summed over labels; its slope by ``z``."""
    from scipy.special import expit

    known = ~np.isnan(y)
    target, share = np.where(known, y, 0), known / np.maximum(known.sum(0), 1)
    return float(((np.logaddexp(0, z) - target * z) * share).sum()), (expit(z) - target) * share
