"""multilabel-v1: each label is scikit-learn's regression over the images that know it; unknown labels change nothing."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from daybreak.data.sources import Labels
from daybreak.evaluate.linear import held_out
from daybreak.evaluate.logistic import PENALTIES
from daybreak.evaluate.multilabel import fit, fit_chosen, loss_and_slope, multilabel_v1
from daybreak.evaluate.protocols import evaluate_scores

NAMES = ("edema", "nodule", "mass")


def some(count: int, seed: int, unknown: float = 0.2):
    """Vectors with three noisy linear labels, a fifth of them unknown."""
    direction = torch.randn(6, 3, generator=torch.Generator().manual_seed(9))
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=random)
    labels = (x @ direction + 2 * torch.randn(count, 3, generator=random) > 0.8).float()
    return x, labels.masked_fill(torch.rand(count, 3, generator=random) < unknown, torch.nan)


def test_every_label_is_its_own_logistic_regression():
    x, y = (t.double().numpy() for t in some(200, 0))
    found = fit(x, y, 0.01, np.zeros((7, 3)))
    for c in range(3):
        known = ~np.isnan(y[:, c])
        plain = LogisticRegression(C=1 / (0.01 * known.sum()), tol=1e-10, max_iter=5000).fit(x[known], y[known, c])
        np.testing.assert_allclose(found[:-1, c], plain.coef_[0], atol=2e-3)
        np.testing.assert_allclose(found[-1, c], plain.intercept_[0], atol=2e-3)


def test_loss_and_slope_by_hand():
    z, y = np.array([[0.0, 2.0], [1.0, -1.0]]), np.array([[1.0, np.nan], [0.0, 1.0]])
    loss, slope = loss_and_slope(z, y)
    assert loss == pytest.approx((np.log(2) + np.log(1 + np.e)) / 2 + np.log(1 + np.e))
    sigmoid = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(slope, [[-0.25, 0], [sigmoid / 2, -sigmoid]])


def test_the_penalty_has_the_lowest_loss_on_the_held_out_tenth():
    x, y = (t.double().numpy() for t in some(120, 0))
    held = held_out(120)
    losses = []
    for penalty in PENALTIES:
        w = fit(x[~held], y[~held], penalty, np.zeros((7, 3)))
        losses.append(loss_and_slope(x[held] @ w[:-1] + w[-1], y[held])[0])
    best = PENALTIES[int(np.argmin(losses))]
    assert PENALTIES[0] > best > PENALTIES[-1]
    np.testing.assert_allclose(fit_chosen(x, y, None)[0], fit(x, y, best, np.zeros((7, 3)))[:-1], atol=1e-6)


def test_numbers_are_those_of_scikit_learn_over_known_labels():
    (x, y), (test, truth) = some(300, 0), some(150, 1)
    numbers = {n.metric: n for n in multilabel_v1(x, y, test, truth, NAMES)}
    mean, std = x.mean(0), x.std(0, correction=0)
    weight, bias = fit_chosen(((x - mean) / std).double().numpy(), y.double().numpy(), None)
    scores = ((test - mean) / std).double().numpy() @ weight + bias
    aucs = []
    for c, name in enumerate(NAMES):
        known = ~truth[:, c].isnan().numpy()
        auc = roc_auc_score(truth[known, c], scores[known, c])
        aucs.append(auc)
        assert numbers[f"AUC ({name})"].value == pytest.approx(auc, abs=2e-3)
        assert numbers[f"average precision ({name})"].value == pytest.approx(
            average_precision_score(truth[known, c], scores[known, c]), abs=5e-3)
        assert 0.01 < numbers[f"AUC ({name})"].error < 0.08
    assert numbers["mean AUC"].value == pytest.approx(np.mean(aucs), abs=2e-3) and min(aucs) > 0.6
    assert numbers["mean AUC"].error < numbers["AUC (edema)"].error + numbers["AUC (mass)"].error


def test_unknown_labels_take_no_part():
    """What stands in vectors of which a label is unknown does not move that label's weights."""
    x, y = (t.double().numpy() for t in some(100, 0))
    spoiled = x.copy()
    spoiled[np.isnan(y[:, 0])] *= -5
    ours, theirs = (fit(table, y, 0.1, np.zeros((7, 3))) for table in (x, spoiled))
    np.testing.assert_allclose(ours[:, 0], theirs[:, 0], atol=1e-3)
    assert not np.allclose(ours[:, 1], theirs[:, 1], atol=1e-2)


def test_scores_of_label_tokens_are_matched_by_name_and_measured_alike():
    """The queries name the labels in another order, lack one and have one more; what can't be measured is said."""
    scores, truth = some(150, 1)
    scores = scores[:, :4]
    held = np.concatenate([truth.numpy()[:, [2, 0]], np.zeros((150, 1), np.float32)], 1)
    labels = Labels("multi", held, ("mass", "edema", "cyst"))
    results, skipped = evaluate_scores(scores, ("edema", "nodule", "mass", "cyst"), labels, data="d", test_data="t")
    found = {r.metric: r.value for r in results}
    aucs = []
    for column, values in ((0, truth[:, 0]), (2, truth[:, 2])):
        known = ~values.isnan()
        aucs.append(roc_auc_score(values[known], scores[known, column]))
    assert (found["AUC (edema)"], found["AUC (mass)"]) == pytest.approx(aucs) and found["mean AUC"] == pytest.approx(np.mean(aucs))
    assert aucs[0] != pytest.approx(aucs[1], abs=0.01) and len(results) == 6
    assert {(r.protocol, r.backbone, r.num_classes, r.num_test) for r in results} == {("label-tokens", "trained", 2, 150)}
    assert [str(s) for s in skipped] == ["label-tokens-v1: 2 labels have no token, or not both values in the queries; left out: "
                                         "nodule, cyst."]
    results, skipped = evaluate_scores(scores, ("a", "b", "c", "d"), labels)
    assert not results and len(skipped) == 1
    results, skipped = evaluate_scores(scores, ("edema",), Labels("class", np.zeros(150, np.int64), ("edema",)))
    assert not results and "needs several labels an image" in str(skipped[0])
