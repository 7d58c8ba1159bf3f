"""Shares of patches, enlarged maps and cosines against loops; baselines and refusals of the protocols of patches."""

import numpy as np
import pytest
import torch

from daybreak.evaluate.patches import coverage, enlarge, mean_of_known, patch_cosines, ratio


@pytest.mark.parametrize(("size", "grid"), [((12, 8), (3, 4)), ((7, 10), (2, 3)), ((3, 2), (6, 4)), ((5, 5), (5, 5))])
def test_coverage_equals_a_loop_over_fine_points(size, grid):
    """Every patch is cut into 420 x 420 points, which fall into pixels evenly for all these sizes."""
    region = np.random.default_rng(0).random(size) < 0.5
    fine = 420
    found = coverage(region[None], grid)[0]
    for r in range(grid[0]):
        for c in range(grid[1]):
            y = ((r + (np.arange(fine) + 0.5) / fine) * size[0] / grid[0]).astype(int)
            x = ((c + (np.arange(fine) + 0.5) / fine) * size[1] / grid[1]).astype(int)
            assert found[r, c] == pytest.approx(region[np.ix_(y, x)].mean(), abs=1e-9)


def test_shares_of_all_classes_sum_to_one():
    classes = np.random.default_rng(1).integers(0, 3, (13, 9))
    assert np.allclose(coverage(classes == np.arange(3)[:, None, None], (4, 5)).sum(0), 1)


def test_enlarged_maps_are_bilinear_between_the_centres_of_patches():
    """Pixel y of a side of 6 stands at (y + 0.5) / 3 - 0.5 of 2 patches, cut at their centres."""
    found = enlarge(torch.tensor([[[0.0, 1.0], [2.0, 3.0]]], dtype=torch.float64), (6, 6))[0]
    at = [min(max((y + 0.5) / 3 - 0.5, 0), 1) for y in range(6)]
    for y in range(6):
        for x in range(6):
            assert found[y, x] == pytest.approx(2 * at[y] + at[x])


def test_cosines_less_the_mean_by_a_loop():
    features = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)) + 4
    rows = features.flatten(1).T.double()
    rows = rows - rows.mean(0)
    expected = torch.tensor([[float(a @ b / a.norm() / b.norm()) for b in rows] for a in rows], dtype=torch.float64)
    torch.testing.assert_close(patch_cosines(features, less_mean=True), expected)
    assert patch_cosines(features).min() > 0.5  # the large common part
    assert (patch_cosines(torch.full((3, 2, 2), 0.3), less_mean=True) == 0).all()


def test_a_share_of_nothing_is_unknown():
    found = ratio(np.array([1.0, 0.0, 0.0]), np.array([4.0, 2.0, 0.0]))
    assert found[:2].tolist() == [0.25, 0.0] and np.isnan(found[2]) and mean_of_known(found) == 0.125
    assert np.isnan(mean_of_known(np.array([np.nan])))
