"""Heads against torch's own layers and hand-computed values."""

import pytest
import torch

from daybreak.nn.heads import BatchNorm, Reconstruction
from daybreak.nn.momentum import Teacher, cosine


def test_batch_norm_equals_torch_in_training_and_evaluation():
    ours, theirs = BatchNorm(5), torch.nn.BatchNorm1d(5)
    for _ in range(3):
        x = torch.randn(16, 5) * 3 + 1
        one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
        a, b = ours(one), theirs(two)
        assert torch.allclose(a, b, atol=1e-5)
        (a**3).sum().backward()
        (b**3).sum().backward()
        assert torch.allclose(one.grad, two.grad, atol=1e-3)
    ours.eval(), theirs.eval()
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_reconstruction_paints_each_token_in_its_own_patch():
    head, tokens = Reconstruction(8, 3, 4), torch.randn(1, 6, 8)
    moved = tokens.clone()
    moved[0, 4] += 1
    changed = (head(moved, (2, 3)) - head(tokens, (2, 3))).abs().sum(1)[0] > 0
    assert head(tokens, (2, 3)).shape == (1, 3, 8, 12)
    assert changed[4:8, 4:8].all() and changed.sum() == 16


def test_teacher_has_no_drop_path_and_no_gradient():
    from conftest import tiny_method

    from daybreak.nn.encoder import Encoder

    encoder = Encoder("vit_micro", image_size=(16, 16), patch_size=4, drop_path=0.5)
    teacher = Teacher({"encoder": encoder}, start=0.9)
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(teacher["encoder"].pooled(x), teacher["encoder"].pooled(x))
    assert not torch.equal(encoder.pooled(x), encoder.pooled(x))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert tiny_method("sit").teacher.training


@pytest.mark.parametrize(("progress", "expected"), [(0, 0.996), (0.5, 0.998), (1, 1.0), (2, 1.0)])
def test_cosine_by_hand(progress, expected):
    assert cosine(0.996, 1.0, progress) == pytest.approx(expected)
