"""nearest-mean-v1 against scikit-learn and by hand; the order of the classes changes nothing in the end."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from daybreak.data.philox import permutation
from daybreak.evaluate.nearest_mean import distances, incremental, nearest_mean_v1


def blobs(count: int, seed: int, num_classes: int = 4, noise: float = 1.2):
    centres = torch.randn(num_classes, 8, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % num_classes
    return centres[labels] + noise * torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), labels


def test_equals_scikit_learn_on_unit_vectors():
    (x, y), (test, truth) = blobs(80, 0), blobs(60, 1)
    a, b = ((t / t.norm(dim=1, keepdim=True)).double().numpy() for t in (x, test))
    found = nearest_mean_v1(x * 3, y, test * torch.arange(1, 61)[:, None], truth, 4)  # lengths don't count
    plain = NearestCentroid().fit(a, y)
    np.testing.assert_array_equal(found.prediction, plain.predict(b))
    assert 0.4 < found.metrics["accuracy"] < 1
    by_hand = ((b[:, None] - plain.centroids_) ** 2).sum(2)
    np.testing.assert_allclose(distances(x, y, test, 4).numpy(), by_hand, atol=1e-6)


def test_means_are_not_normalised_again():
    """The means are (0.5, 0.5) and (0.3, 0.9); made as long as 1, they would be 0.02 and 0.36 away."""
    train, labels = torch.tensor([[1.0, 0], [0, 1], [0.0, 1], [0.6, 0.8]]), torch.tensor([0, 0, 1, 1])
    query = torch.tensor([[0.8, 0.6]])
    first, second = distances(train, labels, query, 2)[0].tolist()
    assert first == pytest.approx(0.3**2 + 0.1**2) and second == pytest.approx(0.5**2 + 0.3**2)


def test_a_class_without_vectors_is_never_given():
    x, y = blobs(40, 0)
    found = nearest_mean_v1(x[y != 2], y[y != 2], *blobs(40, 1), 4)
    assert 2 not in found.prediction and np.isfinite(found.score).all() and (found.score[:, 2] == 0).all()


def test_incremental_by_a_plain_loop():
    (x, y), (test, truth) = blobs(120, 0, 6), blobs(90, 1, 6)
    found = {number.metric: number for number in incremental(x, y, test, truth, 6, seed=3)}
    order = permutation(3, 0, 6).tolist()
    tasks = [order[0:2], order[2:4], order[4:6]]
    table = distances(x, y, test, 6).tolist()
    seen: list[int] = []
    averages, by_task = [], []
    for task in tasks:
        seen += task
        rows = [(min(seen, key=lambda c: row[c]) == t, t) for row, t in zip(table, truth.tolist(), strict=True) if t in seen]
        averages.append(sum(right for right, _ in rows) / len(rows))
        by_task.append([np.mean([right for right, t in rows if t in other]) for other in tasks if set(other) <= set(seen)])
    assert found["average incremental accuracy (3 tasks)"].value == pytest.approx(np.mean(averages))
    lost = [max(by_task[0][0], by_task[1][0]) - by_task[2][0], by_task[1][1] - by_task[2][1]]
    assert found["forgetting (3 tasks)"].value == pytest.approx(np.mean(lost)) and np.mean(lost) > 0
    assert averages[-1] == pytest.approx(nearest_mean_v1(x, y, test, truth, 6).metrics["accuracy"])
    assert all(0 < number.error < 0.1 for number in found.values())


def test_the_seed_orders_the_classes_and_ten_tasks_are_the_most():
    train, test = blobs(400, 0, 40), blobs(400, 1, 40)
    one, other = (incremental(*train, *test, 40, seed=seed) for seed in (0, 1))
    assert one[0].metric == "average incremental accuracy (10 tasks)" and one != other
    assert incremental(*blobs(30, 0, 3), *blobs(30, 1, 3), 3) == []
