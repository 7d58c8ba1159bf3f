"""linear-v1 against gradient descent written out, its split, and what it reaches beside scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from daybreak.evaluate import linear
from daybreak.evaluate.linear import RATES, held_out, linear_v1, standardise_by, train_heads


def blobs(count: int, seed: int, num_classes: int = 3, width: int = 6, noise: float = 1.5):
    centres = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(9))
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (count,), generator=random)
    return centres[labels] + noise * torch.randn(count, width, generator=random), labels


def test_thirteen_heads_equal_one_head_at_a_time_by_autograd(monkeypatch):
    """With a batch of all the vectors the order does not matter, so each head is plain gradient descent."""
    monkeypatch.setattr(linear, "STEPS", 30)
    x, labels = blobs(40, 0)
    weight, bias = train_heads(x, labels, 3, seed=0)
    for i in (0, 6, 12):
        w = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
        b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([w, b], lr=1.0, momentum=0.9)
        for step in range(30):
            optimizer.param_groups[0]["lr"] = RATES[i] * 0.5 * (1 + math.cos(math.pi * step / 30))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(x.double() @ w + b, labels).backward()
            optimizer.step()
        torch.testing.assert_close(weight[:, 3 * i : 3 * i + 3].double(), w.detach(), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(bias[3 * i : 3 * i + 3].double(), b.detach(), atol=1e-4, rtol=1e-3)


def test_reaches_what_logistic_regression_reaches():
    (x, y), (test, truth) = blobs(600, 0, noise=2.0), blobs(600, 1, noise=2.0)
    reference = LogisticRegression(max_iter=1000).fit(x.numpy(), y.numpy()).score(test.numpy(), truth.numpy())
    found = linear_v1(x * 100 + 7, y, test * 100 + 7, truth, 3)  # scale and shift are taken out
    assert 0.5 < reference < 0.95
    assert found.metrics["accuracy"] == pytest.approx(reference, abs=0.02)


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(linear, "STEPS", 100)


def test_the_rate_is_chosen_without_the_queries(few_steps):
    (x, y), (test, truth) = blobs(300, 0), blobs(50, 1)
    one, other = linear_v1(x, y, test, truth, 3), linear_v1(x, y, test, (truth + 1) % 3, 3)
    assert one.settings == other.settings and one.settings["learning_rate"] in RATES
    np.testing.assert_array_equal(one.score, other.score)


def test_the_chosen_head_is_the_best_on_the_held_out_tenth(few_steps):
    (x, y), (test, truth) = blobs(400, 0, noise=2.0), blobs(50, 1)
    (scaled,), held = standardise_by(x, x), torch.from_numpy(held_out(400))
    weight, bias = train_heads(scaled[~held], y[~held], 3, seed=0)
    right = [float(((scaled[held] @ weight + bias)[:, 3 * i : 3 * i + 3].argmax(1) == y[held]).float().mean())
             for i in range(len(RATES))]
    assert len(set(right)) > 1
    assert linear_v1(x, y, test, truth, 3).settings["learning_rate"] == RATES[right.index(max(right))]


def test_same_seed_same_bits_and_another_seed_another_order(monkeypatch):
    monkeypatch.setattr(linear, "BATCH", 32)
    monkeypatch.setattr(linear, "STEPS", 50)
    (x, y), (test, truth) = blobs(300, 0), blobs(50, 1)
    first, again, other = (linear_v1(x, y, test, truth, 3, seed=seed).score for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_tenth_is_held_out_always_the_same():
    held = held_out(200)
    assert held.sum() == 20 and (held == held_out(200)).all()
    assert held_out(2).sum() == 1


def test_groups_are_held_out_whole():
    groups = [f"patient {i // 7}" for i in range(210)]
    held = held_out(210, groups)
    assert {g for g, h in zip(groups, held, strict=True) if h}.isdisjoint(
        g for g, h in zip(groups, held, strict=True) if not h)
    assert held.sum() == 21
    assert 0 < held_out(50, ["one"] * 50).sum() < 50
    assert 0 < held_out(50, ["one"] * 45 + ["two"] * 5).sum() < 50


def test_constant_and_huge_dimensions_do_no_harm(few_steps):
    (x, y), (test, truth) = blobs(300, 0), blobs(100, 1)
    extra = torch.tensor([5.0, 1e8])
    x, test = torch.cat([x, extra.expand(300, 2)], 1), torch.cat([test, extra.expand(100, 2)], 1)
    found = linear_v1(x, y, test, truth, 3)
    assert np.isfinite(found.score).all()
    assert found.metrics["accuracy"] == linear_v1(x[:, :6], y, test[:, :6], truth, 3).metrics["accuracy"]


def test_rounding_is_no_signal():
    rounded = 1e6 + torch.arange(300)[:, None] % 2 * 0.0625  # neighbours in float32
    assert standardise_by(rounded, rounded)[0].abs().max() < 0.1


def test_threads_are_left_as_they_were(few_steps):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    linear_v1(*blobs(30, 0), *blobs(10, 1), 3)
    found = torch.get_num_threads()
    torch.set_num_threads(before)
    assert found == 2


def test_standardise_by_the_reference_only():
    reference, other = torch.randn(50, 3) * 4 + 2, torch.randn(10, 3)
    a, b = standardise_by(reference, reference, other)
    torch.testing.assert_close(a.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(a.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(b * reference.std(0, correction=0) + reference.mean(0), other, atol=1e-4, rtol=0)
