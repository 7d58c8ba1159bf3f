"""logistic-v1: at the minimum of the loss as written, with the penalty that the held-out tenth prefers."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from daybreak.errors import Refused
from daybreak.evaluate.linear import held_out, standardise_by
from daybreak.evaluate.logistic import PENALTIES, fit_chosen, logistic_v1, regression, solve


def blobs(count: int, seed: int, num_classes: int = 3, width: int = 6, noise: float = 2.0):
    centres = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(9))
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_classes
    return centres[labels] + noise * torch.randn(count, width, generator=random), labels


def plain_loss(x, labels, weight, bias, penalty) -> float:
    """The formula, number by number."""
    total = 0.0
    for row, label in zip(x.tolist(), labels.tolist(), strict=True):
        logits = [sum(a * b for a, b in zip(row, w, strict=True)) + c for w, c in zip(weight, bias, strict=True)]
        total += math.log(sum(math.exp(z) for z in logits)) - logits[label]
    return total / len(x) + penalty / 2 * sum(w * w for row in weight for w in row)


def test_stands_at_the_minimum_of_the_loss_as_written():
    x, labels = (t.numpy() for t in blobs(60, 0))
    model, penalty = fit_chosen(x.astype(np.float64), labels, None)
    here = plain_loss(x, labels, model.coef_.tolist(), model.intercept_.tolist(), penalty)
    random = np.random.default_rng(0)
    for _ in range(20):
        weight = model.coef_ + 0.02 * random.normal(size=model.coef_.shape)
        bias = model.intercept_ + 0.02 * random.normal(size=3)
        assert plain_loss(x, labels, weight.tolist(), bias.tolist(), penalty) > here


def test_equals_scikit_learn_with_the_chosen_penalty():
    (x, y), (test, truth) = blobs(300, 0), blobs(100, 1)
    found = logistic_v1(x * 100 + 7, y, test * 100 + 7, truth, 3)  # scale and shift are taken out
    a, b = (t.double().numpy() for t in standardise_by(x, x, test))
    plain = LogisticRegression(C=1 / (300 * found.settings["penalty"]), max_iter=5000, tol=1e-10).fit(a, y)
    np.testing.assert_allclose(found.score, plain.predict_proba(b), atol=1e-3)
    assert 0.5 < found.metrics["accuracy"] < 0.95


def test_the_penalty_is_the_best_on_the_held_out_tenth():
    x, y = (t.numpy() for t in blobs(400, 0, noise=3.0))
    x, held = x.astype(np.float64), held_out(400)
    right = [solve(regression(1 / (360 * p)), x[~held], y[~held]).score(x[held], y[held]) for p in PENALTIES]
    assert len(set(right)) > 1
    assert fit_chosen(x, y, None)[1] == PENALTIES[int(np.argmax(right))]


def test_a_class_that_training_lacks_is_never_given():
    (x, y), (test, truth) = blobs(90, 0), blobs(30, 1)
    found = logistic_v1(x[y != 1], y[y != 1], test, truth, 3)
    assert (found.score[:, 1] == 0).all() and set(found.prediction) == {0, 2}
    np.testing.assert_allclose(found.score.sum(1), 1, atol=1e-6)


def test_one_class_without_the_held_out_tenth_is_refused():
    x = torch.randn(11, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(held_out(11).astype(np.int64))  # the other class is held out whole
    with pytest.raises(Refused, match="one class once a tenth is held out"):
        logistic_v1(x, labels, x, labels, 2)
