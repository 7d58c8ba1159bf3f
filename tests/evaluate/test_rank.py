"""The measures of collapse where their values are known."""

import numpy as np
import pytest
import torch

from daybreak.evaluate import rank
from daybreak.evaluate.rank import alignment, alpha_req, lidar, rank_v1, rankme, spectrum, spread, uniformity


def test_orthonormal_columns_have_full_rank_and_one_direction_has_rank_one():
    columns = torch.linalg.qr(torch.randn(40, 12, generator=torch.Generator().manual_seed(0)))[0]
    assert rankme(columns) == pytest.approx(12, abs=1e-3)
    assert rankme(columns.T) == pytest.approx(12, abs=1e-3)
    assert rankme(torch.ones(40, 12)) == pytest.approx(1, abs=1e-2)
    assert rankme(torch.zeros(40, 12)) == 1.0


def test_rankme_is_the_entropy_of_singular_values_not_of_their_squares():
    table = torch.randn(100, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) + 1.0
    share = np.linalg.svd(table.double().numpy(), compute_uv=False)
    share = share / share.sum() + 1e-7
    assert rankme(table) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    squared = share**2 / (share**2).sum()
    assert rankme(table) > np.exp(-(squared * np.log(squared)).sum()) + 0.1


def test_spread_is_one_for_even_directions_and_nothing_for_one():
    even = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    assert spread(even) == pytest.approx(1, abs=0.02)
    assert spread(even * torch.rand(4000, 1)) == pytest.approx(spread(even), rel=1e-5)  # lengths don't count
    assert spread(torch.ones(50, 32) * torch.arange(1, 51)[:, None]) == pytest.approx(0, abs=1e-6)


def with_spectrum(values: torch.Tensor, count: int = 400) -> torch.Tensor:
    """Centred features whose covariance has these eigenvalues."""
    random = torch.randn(count, len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    columns = torch.linalg.qr(random - random.mean(0))[0]  # of the columns' span, so still centred
    return columns * (values * (count - 1)).sqrt()


def test_alpha_is_the_exponent_of_the_spectrum():
    i = torch.arange(1, 121, dtype=torch.float64)
    for alpha in (0.5, 1.0, 2.0):
        features = with_spectrum(i**-alpha)
        torch.testing.assert_close(spectrum(features), i**-alpha, atol=1e-9, rtol=1e-6)
        assert alpha_req(features + 5) == pytest.approx(alpha, abs=1e-6)  # the mean is taken out


def test_alpha_weighs_the_ranks_by_their_inverse():
    values = torch.arange(1, 61, dtype=torch.float64) ** -1.0 * (1 + 0.3 * torch.cos(torch.arange(60)))
    i, y = np.arange(11, 61), np.sort(values.numpy())[::-1][10:]
    x, y, w = np.log(i), np.log(y), 1 / i
    mean_x, mean_y = np.average(x, weights=w), np.average(y, weights=w)
    slope = np.sum(w * (x - mean_x) * (y - mean_y)) / np.sum(w * (x - mean_x) ** 2)
    assert alpha_req(with_spectrum(values)) == pytest.approx(-slope, abs=1e-6)
    assert alpha_req(torch.randn(400, 15)) is None  # five eigenvalues beyond the tenth are no slope


def test_uniformity_by_a_loop_over_pairs(monkeypatch):
    table = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    unit = (table / table.norm(dim=1, keepdim=True)).double().numpy()
    pairs = [np.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(30) for j in range(i)]
    assert uniformity(table) == pytest.approx(np.log(np.mean(pairs)), abs=1e-5)
    assert uniformity(torch.ones(20, 3)) == pytest.approx(0, abs=1e-5)
    assert uniformity(torch.randn(2000, 256, generator=torch.Generator().manual_seed(0))) == pytest.approx(-4, abs=0.05)
    monkeypatch.setattr(rank, "MOST", 10)
    assert uniformity(table) == pytest.approx(uniformity(table[[0, 3, 6, 9, 12, 16, 19, 22, 25, 29]]), abs=1e-6)


def test_effective_dimension_counts_the_directions_in_use():
    flat = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        4, 20, generator=torch.Generator().manual_seed(1))
    assert rank_v1(flat)["effective dimension"] == 4
    same = rank_v1(torch.ones(10, 3))
    assert same == pytest.approx({"rankme": 1, "spread": 0, "uniformity": 0, "effective dimension": 0}, abs=1e-4)
    assert rank_v1(torch.randn(100, 30)).keys() == {"rankme", "spread", "uniformity", "effective dimension", "alpha-ReQ"}


def lidar_loop(views: torch.Tensor) -> float:
    x = views.double().numpy()
    n, q, width = x.shape
    mean, centre = x.mean(1), x.mean((0, 1))
    between, within = np.zeros((width, width)), 1e-4 * np.eye(width)
    for i in range(n):
        between += np.outer(mean[i] - centre, mean[i] - centre) / (n - 1)
        for j in range(q):
            within += np.outer(x[i, j] - mean[i], x[i, j] - mean[i]) / (n * (q - 1))
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    found = np.linalg.eigvalsh(root @ between @ root).clip(0)
    share = found / found.sum() + 1e-8
    return float(np.exp(-(share * np.log(share)).sum()))


def test_lidar_by_a_loop_over_views():
    random = torch.Generator().manual_seed(0)
    means = torch.randn(30, 1, 6, generator=random) * torch.tensor([5.0, 3, 1, 1, 0.1, 0.1])
    views = means + torch.randn(30, 4, 6, generator=random)
    assert lidar(views) == pytest.approx(lidar_loop(views), rel=1e-6)
    assert lidar(views[:4]) == pytest.approx(lidar_loop(views[:4]), rel=1e-5) and lidar(views[:4]) < 3.001  # n - 1


def test_lidar_where_views_are_alike_and_where_images_are():
    columns = torch.linalg.qr(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + 0.0)[0]
    columns = torch.cat([columns, -columns])  # of mean 0, so all directions tell the images apart alike
    assert lidar(columns[:, None].expand(-1, 3, -1)) == pytest.approx(6, abs=1e-3)
    assert lidar(torch.ones(5, 2, 4)) == 1.0


def test_alignment_by_a_loop_and_by_hand():
    first, second = torch.randn(2, 20, 5, generator=torch.Generator().manual_seed(0))
    pairs = [sum((a / np.linalg.norm(u) - b / np.linalg.norm(v)) ** 2 for a, b in zip(u, v, strict=True))
             for u, v in zip(first.double().numpy(), second.double().numpy(), strict=True)]
    assert alignment(first, second) == pytest.approx(np.mean(pairs), rel=1e-9)
    assert alignment(first, 3 * first) == pytest.approx(0, abs=1e-12) and alignment(first, -first) == pytest.approx(4)
    assert alignment(torch.tensor([[2.0, 0]]), torch.tensor([[0, 5.0]])) == pytest.approx(2)
