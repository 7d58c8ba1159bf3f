"""AUC, average precision and FPR95 against scikit-learn, a loop over pairs, and values by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from daybreak.evaluate.metrics import Ranking


@pytest.fixture
def scored():
    random = np.random.default_rng(0)
    truth = random.random(200) < 0.3
    return np.round(random.normal(truth, 1), 1), truth  # rounded, so that many are tied


def test_auc_and_average_precision_equal_scikit_learn(scored):
    score, truth = scored
    ranking = Ranking(score, truth)
    assert len(np.unique(score)) < 80
    assert ranking.auc() == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    assert ranking.average_precision() == pytest.approx(average_precision_score(truth, score), abs=1e-12)


def test_auc_is_the_share_of_pairs_in_order(scored):
    score, truth = scored[0][:40], scored[1][:40]
    pairs = [(a > b) + (a == b) / 2 for a in score[truth] for b in score[~truth]]
    assert Ranking(score, truth).auc() == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_a_weight_is_a_number_of_copies(scored):
    score, truth = scored
    copies = np.random.default_rng(1).integers(0, 4, len(score))
    repeated = Ranking(np.repeat(score, copies), np.repeat(truth, copies))
    weighted = Ranking(score, truth)
    for name in ("auc", "average_precision", "false_positives"):
        assert getattr(weighted, name)(copies.astype(float)) == pytest.approx(getattr(repeated, name)(), abs=1e-12), name


def test_false_positives_by_hand():
    positive = np.arange(1, 21)  # 19 of 20 reach 2
    ranking = Ranking(np.concatenate([positive, [0, 1.5, 2, 7]]), np.arange(24) < 20)
    assert ranking.false_positives() == 0.5
    assert ranking.false_positives(recall=1.0) == 0.75
    assert ranking.false_positives(recall=0.5) == 0  # ten of twenty reach 11


def test_nothing_is_measured_of_one_side_only():
    assert all(np.isnan(getattr(Ranking(np.arange(3), np.ones(3)), name)())
               for name in ("auc", "average_precision", "false_positives"))
    assert np.isnan(Ranking(np.arange(3), np.array([1, 0, 0])).auc(np.array([0, 1, 1.0])))
