"""Colours of patches by hand and against scikit-learn; cosines of patches by loops."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from daybreak.evaluate.patches import patch_cosines
from daybreak.explain.tokens import levels, pca_colours


def noise(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_colours_are_the_principal_components_of_the_whole_set():
    features = noise(4, 6, 3, 5) * torch.tensor([1.0, 5.0, 2.0, 8.0, 0.5, 3.0])[:, None, None] + 7
    found = pca_colours(features)
    assert found.images.shape == (4, 3, 5, 3) and found.images.dtype == np.uint8
    points = features.permute(0, 2, 3, 1).reshape(-1, 6).double().numpy()
    theirs = PCA(3, svd_solver="full").fit(points)
    assert found.share == pytest.approx(theirs.explained_variance_ratio_.sum())
    values, ours = theirs.transform(points), found.images.reshape(-1, 3)
    for axis in range(3):
        loadings = theirs.components_[axis]
        column = values[:, axis] * np.sign(loadings[np.abs(loadings).argmax()])
        low, high = np.percentile(column, [1, 99])
        expected = np.clip((column - low) / (high - low), 0, 1) * 255
        assert np.abs(ours[:, axis] - expected).max() <= 0.5 + 1e-6


def test_the_same_patch_has_the_same_colour_in_every_picture():
    features = noise(3, 6, 2, 2)
    features[2, :, 1, 1] = features[0, :, 0, 1]
    found = pca_colours(features).images
    assert (found[2, 1, 1] == found[0, 0, 1]).all() and len(np.unique(found.reshape(-1, 3), axis=0)) == 11


def test_patches_that_are_all_the_same_have_a_colour():
    found = pca_colours(torch.ones(2, 6, 2, 2))
    assert len(np.unique(found.images.reshape(-1, 3), axis=0)) == 1 and 0 <= found.share <= 1


def test_cosines_equal_loops_in_row_major_order():
    features = noise(5, 2, 3)  # (D, h, w)
    found = patch_cosines(features)
    assert found.shape == (6, 6)
    for i in range(6):
        for j in range(6):
            a, b = features[:, i // 3, i % 3].tolist(), features[:, j // 3, j % 3].tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            expected = dot / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
            assert float(found[i, j]) == pytest.approx(expected, abs=1e-6)


def test_levels_are_off_by_half_a_level_at_most():
    cosines = torch.linspace(-1, 1, 10_001, dtype=torch.float64)
    found = levels(cosines)
    assert found[0] == 0 and found[-1] == 255
    assert np.abs(found / 127.5 - 1 - cosines.numpy()).max() <= 1 / 255 + 1e-12
