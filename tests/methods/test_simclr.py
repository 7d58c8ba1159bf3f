"""NT-Xent against a scalar loop and values worked out by hand."""

import math

import pytest
import torch

from daybreak.nn.losses import info_nce, nt_xent


def unit(v):
    norm = math.sqrt(sum(x * x for x in v))
    return [x / norm for x in v]


def loop_nt_xent(one, two, tau):
    z = [unit(v) for v in one] + [unit(v) for v in two]
    n, total = len(one), 0.0
    for i in range(2 * n):
        scores = {j: sum(a * b for a, b in zip(z[i], z[j], strict=True)) / tau for j in range(2 * n) if j != i}
        total += math.log(sum(math.exp(s) for s in scores.values())) - scores[(i + n) % (2 * n)]
    return total / (2 * n)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_equals_the_loop(tau):
    one, two = torch.randn(5, 7), torch.randn(5, 7)
    assert float(nt_xent(one, two, tau)) == pytest.approx(loop_nt_xent(one.tolist(), two.tolist(), tau), rel=1e-5)


def test_uniform_logits_give_ln_of_all_others():
    same = torch.ones(6, 4)
    assert float(nt_xent(same, same, 0.2)) == pytest.approx(math.log(2 * 6 - 1), rel=1e-6)


def test_two_images_by_hand():
    """z1 = z1' = (1, 0), z2 = z2' = (0, 1), tau 1: each anchor sees cosines 1, 0, 0, so ln(e + 2) - 1."""
    z = torch.eye(2)
    assert float(nt_xent(z, z, 1.0)) == pytest.approx(math.log(math.e + 2) - 1, rel=1e-6)


def test_length_does_not_matter_and_order_of_the_views_neither():
    one, two = torch.randn(4, 8), torch.randn(4, 8)
    assert torch.allclose(nt_xent(one, two, 0.3), nt_xent(two * 5, one * 0.1, 0.3))


def test_info_nce_equals_the_loop():
    q, k = torch.randn(4, 6), torch.randn(4, 6)
    total = 0.0
    for i in range(4):
        scores = [sum(a * b for a, b in zip(unit(q[i].tolist()), unit(k[j].tolist()), strict=True)) / 0.2 for j in range(4)]
        total += math.log(sum(math.exp(s) for s in scores)) - scores[i]
    assert float(info_nce(q, k, 0.2)) == pytest.approx(total / 4, rel=1e-5)
