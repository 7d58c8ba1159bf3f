"""DINO's loss, centring and schedules against loops and hand-computed values."""

import math

import pytest
import torch
from conftest import noise_batch, step_for, tiny_method

from daybreak.nn.losses import cross_views
from daybreak.nn.presets import local_size
from daybreak.nn.prototypes import Centre, Prototypes


def softmax(v):
    top = max(v)
    e = [math.exp(x - top) for x in v]
    return [x / sum(e) for x in e]


def loop_loss(student, teacher, centre, tau_s, tau_t):
    """Student V lists of (B, K), teacher 2 lists of (B, K): the mean over pairs v != i of the mean over the batch."""
    terms = []
    for i, t_view in enumerate(teacher):
        for v, s_view in enumerate(student):
            if v == i:
                continue
            for t, s in zip(t_view, s_view, strict=True):
                p = softmax([(x - c) / tau_t for x, c in zip(t, centre, strict=True)])
                q = softmax([x / tau_s for x in s])
                terms.append(-sum(a * math.log(b) for a, b in zip(p, q, strict=True)))
    return sum(terms) / len(terms)


def test_loss_with_centring_equals_the_loop():
    student, teacher = torch.randn(5, 3, 6), torch.randn(2, 3, 6)
    centre = Centre(6)
    centre.value.copy_(torch.randn(6))
    targets = centre.assign(teacher, 0.04)
    found = cross_views(tuple(student / 0.1), tuple(targets))
    expected = loop_loss(student.tolist(), teacher.tolist(), centre.value.tolist(), 0.1, 0.04)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_uniform_output_gives_ln_k():
    uniform = torch.full((4, 8), 1 / 8)
    assert float(cross_views((torch.zeros(4, 8),) * 3, (uniform, uniform))) == pytest.approx(math.log(8), rel=1e-6)
    method = tiny_method("dino")
    assert method.degenerate()["ln 32: the output is uniform"] == pytest.approx(math.log(32))


def test_the_centre_moves_by_a_tenth_and_after_the_loss():
    centre = Centre(2, momentum=0.9)
    logits = torch.tensor([[1.0, 3.0], [3.0, 5.0]])
    centre.follow(logits)
    assert torch.allclose(centre.value, torch.tensor([0.2, 0.4]))
    method = tiny_method("dino")
    batch = noise_batch(method)
    first = method(batch, step_for(batch)).value
    assert method.centre.value.abs().sum() > 0
    method.centre.value.zero_()
    assert torch.equal(first, method(batch, step_for(batch)).value)  # the loss had used the old centre, zero


def test_prototypes_are_cosines():
    layer, x = Prototypes(4, 3), torch.randn(5, 4)
    expected = [[sum(a * b for a, b in zip(u, w, strict=True)) / (math.dist(u, [0] * 4) * math.dist(w, [0] * 4))
                 for w in layer.weight.tolist()] for u in x.tolist()]
    assert torch.allclose(layer(x), torch.tensor(expected), atol=1e-5)


def test_the_last_layer_is_frozen_at_the_start_only():
    method = tiny_method("dino", freeze_prototypes=0.1)
    batch = noise_batch(method)
    for progress, frozen in ((0.05, True), (0.5, False)):
        method.zero_grad(set_to_none=True)
        step = step_for(batch, progress)
        method(batch, step).value.backward()
        method.before_update(step)
        assert (method.head.prototypes.weight.grad is None) == frozen


def test_teacher_momentum_goes_from_start_to_one():
    method = tiny_method("dino")
    before = method.teacher["head"].prototypes.weight.clone()
    with torch.no_grad():
        method.head.prototypes.weight.add_(1.0)
    method.teacher.follow(method.taught(), 1.0)
    assert torch.equal(before, method.teacher["head"].prototypes.weight)
    method.teacher.follow(method.taught(), 0.0)
    moved = method.teacher["head"].prototypes.weight - before
    assert torch.allclose(moved, torch.full_like(moved, 1 - 0.996), atol=1e-6)


def test_local_views_are_three_sevenths_in_whole_patches():
    assert local_size((224, 224), 16) == (96, 96)
    assert local_size((32, 64), 4) == (16, 28)
    method = tiny_method("dino", size=(28, 28))
    assert method.views[2].height == 12
