"""Hydra's loss against a loop written from the card and a case worked out by hand; its gate; the partners of images."""

import math

import pytest
import torch
from conftest import noise_batch, step_for, tiny_method

from daybreak.errors import Refused
from daybreak.methods.hydra import Gate, pair_contrast


def unit(v):
    norm = math.sqrt(sum(x * x for x in v))
    return [x / norm for x in v]


def logit(g, a, b, tau, gate_first):
    if gate_first:
        a, b = ([x * y for x, y in zip(g, v, strict=True)] for v in (a, b))
        return sum(x * y for x, y in zip(unit(a), unit(b), strict=True)) / tau
    return sum(w * w * x * y for w, x, y in zip(g, unit(a), unit(b), strict=True)) / tau


def loop_loss(z, gates, labels, other, tau, gate_first):
    """Sum over the positives of log(exp(l_ij) + sum of exp(l_ik) over negatives k) - l_ij, over their number."""
    total, count = 0.0, 0
    for i in range(len(z)):
        negatives = [j for j in range(len(z)) if j != i and labels[j] not in (labels[i], other[i], -1)]
        against = sum(math.exp(logit(gates[i], z[i], z[j], tau, gate_first)) for j in negatives)
        for j in range(len(z)):
            if j != i and labels[i] >= 0 and labels[j] == other[i] >= 0:
                score = logit(gates[i], z[i], z[j], tau, gate_first)
                total += math.log(math.exp(score) + against) - score
                count += 1
    return total / max(count, 1)


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("unknown", [False, True])
def test_loss_equals_the_loop(gate_first, unknown):
    z, gates = torch.randn(9, 5), torch.rand(9, 5)
    labels, other = torch.tensor([0, 1, 2, 0, 1, 2, 3, 3, 0]), torch.tensor([0, 2, 1, 1, 3, 2, 0, 3, 2])
    if unknown:
        labels[[1, 6]], other[[0, 1]] = -1, -1
    found = pair_contrast(z, gates, labels, other, 0.1, gate_first)
    expected = loop_loss(z.tolist(), gates.tolist(), labels.tolist(), other.tolist(), 0.1, gate_first)
    assert expected > 0 and float(found) == pytest.approx(expected, rel=1e-4)


def test_four_images_of_two_classes_by_hand():
    """Class 0 points along x, class 1 along y; each is paired with its own class, tau 1, all dimensions open. An anchor has
    one positive at cosine 1 and two negatives at cosine 0: ln(e + 2) - 1. With gates of 1/2 the cosine counts a quarter."""
    z, labels = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3]]), torch.tensor([0, 0, 1, 1])
    found = pair_contrast(z, torch.ones(4, 2), labels, labels, 1.0, False)
    assert float(found) == pytest.approx(math.log(math.e + 2) - 1, rel=1e-6)
    found = pair_contrast(z, torch.full((4, 2), 0.5), labels, labels, 1.0, False)
    assert float(found) == pytest.approx(math.log(math.exp(0.25) + 2) - 0.25, rel=1e-6)
    found = pair_contrast(z, torch.full((4, 2), 0.5), labels, labels, 1.0, True)  # normalised after the gate: as if all were open
    assert float(found) == pytest.approx(math.log(math.e + 2) - 1, rel=1e-6)
    crossed = pair_contrast(z, torch.ones(4, 2), labels, 1 - labels, 1.0, False)  # two classes, and the pair takes both
    assert float(crossed) == tiny_method("hydra").degenerate()["0: the batch holds no class beside the pair's"]


def test_without_negatives_or_positives_the_gradient_is_zero_and_finite():
    z = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1])
    for other in (1 - labels, torch.full((4,), 7)):
        (gradient,) = torch.autograd.grad(pair_contrast(z, torch.ones(4, 3), labels, other, 0.1, False), z)
        assert torch.equal(gradient, torch.zeros(4, 3))


def test_the_gate_is_symmetric_in_its_classes_and_lies_between_0_and_1():
    gate, one, two = Gate(6, 8, embedding=16, hidden=32), torch.tensor([0, 1, 2, 5]), torch.tensor([3, 1, 4, 0])
    for mode in (True, False):
        gate.train(mode)
        assert torch.equal(gate(one, two), gate(two, one))
    assert gate(one, two).shape == (4, 8) and gate(one, two).min() > 0 and gate(one, two).max() < 1
    assert not torch.allclose(gate(one, two)[0], gate(one, two)[2])


def test_both_views_of_an_image_have_one_pair_and_all_images_count_as_keys():
    method = tiny_method("hydra")
    batch = noise_batch(method, 12)
    step = step_for(batch)
    with torch.no_grad():
        z = method.head(method.encoder.pooled(torch.cat(batch.images))).tolist()
        other = method.partner_classes(batch.labels, step)
        gates = method.gate(batch.labels, other).tolist() * 2
        expected = loop_loss(z, gates, batch.labels.tolist() * 2, other.tolist() * 2, 0.1, False)
        assert float(method(batch, step).value) == pytest.approx(expected, rel=1e-4)


def test_without_gates_and_with_identical_pairs_it_is_supervised_contrast():
    method = tiny_method("hydra", gated=False, pairs="identical")
    batch = noise_batch(method, 12)
    with torch.no_grad():
        z = method.head(method.encoder.pooled(torch.cat(batch.images))).tolist()
        found = float(method(batch, step_for(batch)).value)
    labels = batch.labels.tolist() * 2
    scores = [[sum(x * y for x, y in zip(unit(a), unit(b), strict=True)) / 0.1 for b in z] for a in z]
    against = [sum(math.exp(scores[i][k]) for k in range(24) if labels[k] != labels[i]) for i in range(24)]
    terms = [math.log(math.exp(scores[i][j]) + against[i]) - scores[i][j]
             for i in range(24) for j in range(24) if i != j and labels[i] == labels[j]]
    assert found == pytest.approx(sum(terms) / len(terms), rel=1e-4) and not hasattr(method.gate, "mlp")


def test_the_picture_shows_the_pairs_of_classes():
    """A pair is as open as its gate says, at its place, and from both sides; without a gate there is nothing to show."""
    method = tiny_method("hydra").eval()
    batch = noise_batch(method, 12)
    with torch.no_grad():
        opened, alike = method.picture(batch, step_for(batch)).rows[0]
        gates = [[float(method.gate(torch.tensor([a]), torch.tensor([b])).mean()) for b in range(4)] for a in range(4)]
    shown = [[float(opened[0, 32 * a + 16, 32 * b + 16]) for b in range(4)] for a in range(4)]
    low, high = min(map(min, gates)), max(map(max, gates))
    assert shown == [[pytest.approx((x - low) / (high - low), abs=1e-4) for x in row] for row in gates]
    assert torch.allclose(alike[0], alike[0].T) and float(alike[0].diagonal().min()) == pytest.approx(1, abs=1e-5)
    without = tiny_method("hydra", gated=False)
    assert without.picture(batch, step_for(batch)) is None


@pytest.mark.parametrize("pairs", ["arbitrary", "identical", "distinct"])
def test_partners_are_of_the_kind_that_is_asked_for(pairs):
    method = tiny_method("hydra", pairs=pairs)
    batch = noise_batch(method, 64)
    batch.labels = torch.arange(64) // 16  # one class a cell of 16
    other = method.partner_classes(batch.labels, step_for(batch))
    if pairs == "distinct":
        assert (other != batch.labels).all() and set(other.tolist()) == {0, 1, 2, 3}
    else:  # an arbitrary partner comes from the cell, which here holds one class
        assert torch.equal(other, batch.labels)
    if pairs == "arbitrary":
        batch.labels = torch.arange(64) % 4
        other = method.partner_classes(batch.labels, step_for(batch))
        assert set(zip(batch.labels.tolist(), other.tolist(), strict=True)) >= {(a, b) for a in (0, 1) for b in (0, 1, 2, 3)}


def test_settings_that_can_not_be_are_refused():
    with pytest.raises(Refused, match="how many classes there are"):
        tiny_method("hydra", classes=None)
    with pytest.raises(Refused, match="no class to push away"):
        tiny_method("hydra", pairs="distinct", classes=2)
