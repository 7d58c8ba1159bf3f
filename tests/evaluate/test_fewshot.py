"""fewshot-v1: which images are drawn, what is fitted to them, and how the doubt is joined."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from daybreak.data.philox import permutation
from daybreak.evaluate.bootstrap import standard_error
from daybreak.evaluate.fewshot import DRAWS, centred, fewshot_v1, turn_in_class


def blobs(count: int, seed: int, num_classes: int = 3, noise: float = 1.5):
    centres = torch.randn(num_classes, 6, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % num_classes
    return centres[labels] + noise * torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), labels


def test_turns_by_hand():
    labels, order = np.array([0, 1, 0, 1, 0]), np.array([4, 3, 0, 1, 2])
    assert turn_in_class(labels, order).tolist() == [1, 1, 2, 0, 0]


def test_every_class_gives_as_many_and_smaller_draws_lie_in_larger_ones():
    labels = np.random.default_rng(0).integers(0, 4, 200)
    turn = turn_in_class(labels, permutation(0, 0, 200))
    for shots in (1, 4, 16):
        assert np.bincount(labels[turn < shots]).tolist() == [shots] * 4


def test_vectors_by_hand():
    found = centred(torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]]))
    torch.testing.assert_close(found, torch.tensor([[-0.5**0.5, 0, 0.5**0.5], [0, 0, 0]], dtype=torch.float64))


def test_equals_a_loop_of_scikit_learn():
    (x, y), (test, truth) = blobs(90, 0), blobs(60, 1)
    groups = [str(i // 4) for i in range(60)]
    numbers, notes = fewshot_v1(x, y, test, truth, 3, seed=5, query_groups=groups)
    found = {number.metric: number for number in numbers}
    right = []
    for draw in range(DRAWS):
        taken: dict[int, list[int]] = {0: [], 1: [], 2: []}
        for i in permutation(5, draw, 90).tolist():
            if len(taken[int(y[i])]) < 4:
                taken[int(y[i])].append(i)
        rows = sorted(i for part in taken.values() for i in part)
        a, b = (t.double() - t.double().mean(1, keepdim=True) for t in (x[rows], test))
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        model = LogisticRegression(C=4000, fit_intercept=False, max_iter=300, tol=1e-5).fit(a.numpy(), y[rows])
        right.append(model.predict(b.numpy()) == truth.numpy())
    accuracies = np.mean(right, 1)
    assert len(set(accuracies)) > 1
    assert found["accuracy (4 a class)"].value == pytest.approx(accuracies.mean())
    assert found["deviation over draws (4 a class)"].value == pytest.approx(accuracies.std(ddof=1))
    doubt = standard_error(np.mean(right, 0), groups, seed=5)
    assert found["accuracy (4 a class)"].error == pytest.approx((doubt**2 + accuracies.var(ddof=1) / 5) ** 0.5)
    assert not notes and len(found) == 2 * 7
    # 1 % of 30 a class is less than one image, so it is one.
    assert found["accuracy (1% of the labels)"].value == found["accuracy (1 a class)"].value


def test_more_labels_are_better_and_the_seed_draws():
    train, test = blobs(300, 0), blobs(300, 1)
    one, other = ({n.metric: n.value for n in fewshot_v1(*train, *test, 3, seed=seed)[0]} for seed in (0, 1))
    assert one["accuracy (16 a class)"] > one["accuracy (1 a class)"] + 0.05
    assert one != other and one == {n.metric: n.value for n in fewshot_v1(*train, *test, 3, seed=0)[0]}


def test_too_few_images_of_a_class_are_said():
    x, y = blobs(90, 0)
    kept = torch.cat([torch.nonzero(y != 1)[:, 0], torch.nonzero(y == 1)[:3, 0]])
    numbers, notes = fewshot_v1(x[kept], y[kept], *blobs(30, 1), 3, classes=("cat", "dog", "yak"))
    assert notes == [f"{k} a class is left out: 'dog' has 3 training images." for k in (4, 8, 16)]
    assert {n.metric for n in numbers if n.metric.startswith("accuracy")} == {
        f"accuracy ({what})" for what in ("1 a class", "2 a class", "1% of the labels", "10% of the labels")}
