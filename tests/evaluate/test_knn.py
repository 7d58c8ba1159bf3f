"""knn-v1 against a scalar loop, and the limits in which it must become something known."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from daybreak.evaluate import knn
from daybreak.evaluate.knn import knn_v1, nearest_others, neighbours_kept


@pytest.fixture
def task():
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 8, generator=random)
    labels, query_labels = torch.randint(4, (60,), generator=random), torch.randint(4, (40,), generator=random)
    bank = centres[labels] + 1.5 * torch.randn(60, 8, generator=random)
    queries = centres[query_labels] + 1.5 * torch.randn(40, 8, generator=random)
    return bank, labels, queries, query_labels, 4


def plain_vote(bank, labels, query, num_classes, k, temperature):
    cosines = []
    for vector, label in zip(bank.tolist(), labels.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(vector, query, strict=True))
        cosines.append((dot / math.sqrt(sum(a * a for a in vector) * sum(b * b for b in query)), label))
    votes = [0.0] * num_classes
    for cosine, label in sorted(cosines, reverse=True)[:k]:
        votes[label] += math.exp(cosine / temperature)
    return [vote / sum(votes) for vote in votes]


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (5, 0.5), (200, 0.07)])
def test_equals_a_scalar_loop(task, k, temperature):
    bank, labels, queries, _, num_classes = task
    found = knn_v1(*task, k=k, temperature=temperature)
    for row, query in zip(found.score, queries.tolist(), strict=True):
        np.testing.assert_allclose(row, plain_vote(bank, labels, query, num_classes, k, temperature), atol=1e-5)


def test_standardised_row_is_knn_of_standardised_vectors(task):
    bank, labels, queries, query_labels, num_classes = task
    bank, queries = bank * torch.arange(1, 9) + 3, queries * torch.arange(1, 9) + 3
    mean, std = bank.mean(0), bank.std(0, correction=0)
    by_hand = knn_v1((bank - mean) / std, labels, (queries - mean) / std, query_labels, num_classes)
    found = knn_v1(bank, labels, queries, query_labels, num_classes, standardise=True)
    np.testing.assert_allclose(found.score, by_hand.score, atol=1e-3)
    assert not np.allclose(found.score, knn_v1(bank, labels, queries, query_labels, num_classes).score, atol=0.1)


def test_hot_is_a_majority_vote_and_cold_the_nearest(task):
    bank, labels, queries, _, _ = task
    majority = KNeighborsClassifier(5, metric="cosine").fit(bank.numpy(), labels.numpy())
    np.testing.assert_allclose(knn_v1(*task, k=5, temperature=1e6).score, majority.predict_proba(queries.numpy()),
                               atol=1e-4)
    one = KNeighborsClassifier(1, metric="cosine").fit(bank.numpy(), labels.numpy()).predict(queries.numpy())
    np.testing.assert_array_equal(knn_v1(*task, k=5, temperature=1e-4).prediction, one)


def test_the_order_of_the_bank_changes_nothing(task):
    bank, labels, *rest = task
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(knn_v1(bank[order], labels[order], *rest).score, knn_v1(*task).score, atol=1e-6)


def test_metrics_equal_scikit_learn(task):
    found, truth = knn_v1(*task), task[3].numpy()
    assert found.metrics["accuracy"] == pytest.approx((found.prediction == truth).mean())
    assert found.metrics["balanced accuracy"] == pytest.approx(balanced_accuracy_score(truth, found.prediction))
    assert found.metrics["macro F1"] == pytest.approx(f1_score(truth, found.prediction, average="macro"))
    auc = roc_auc_score(truth, found.score, multi_class="ovr", average="macro")
    assert found.metrics["AUC"] == pytest.approx(auc, abs=1e-5)


def test_auc_of_two_classes_is_that_of_the_second_and_missing_for_one(task):
    bank, labels, queries, query_labels, _ = task
    two = knn_v1(bank, labels % 2, queries, query_labels % 2, 2)
    assert two.metrics["AUC"] == pytest.approx(roc_auc_score(query_labels % 2, two.score[:, 1]), abs=1e-6)
    assert "AUC" not in knn_v1(bank, labels, queries, torch.zeros_like(query_labels), 4).metrics


def test_nearest_others_are_those_of_scikit_learn_in_chunks_too(task, monkeypatch):
    bank = task[0]
    theirs = NearestNeighbors(n_neighbors=5, metric="cosine").fit(bank.numpy()).kneighbors(return_distance=False)  # less itself
    monkeypatch.setattr(knn, "CHUNK", 7)
    assert torch.equal(nearest_others(bank, 5), torch.from_numpy(theirs))
    assert nearest_others(bank[:4]).shape == (4, 3)


def test_neighbours_kept_by_hand():
    before, now = torch.tensor([[1, 2], [0, 2], [3, 0]]), torch.tensor([[2, 3], [2, 0], [1, 2]])
    assert neighbours_kept(before, now) == pytest.approx((1 / 2 + 1 + 0) / 3)
