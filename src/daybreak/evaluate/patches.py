"""Patches and masks: which share of each patch is of what, maps of patches enlarged to pixels, cosines of patches.

K regions or maps, h w rows and columns of patches, N = h w, H W height and width of the image in pixels, D width.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate, normalize

if TYPE_CHECKING:
    from ..data.masks import Masks


class PatchTask(NamedTuple):
    """Vectors of the patches of training and test images, with the images' masks."""

    train: Tensor  # (n, D, h, w), of whole images
    train_masks: "Masks"
    test: Tensor
    test_masks: "Masks"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.train.shape[2], self.train.shape[3]


def coverage(regions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Share of each patch that each region covers, (K, h, w) float64 in [0, 1], of regions (K, H, W) bool or numbers.

    Pixels on the edge of a patch count by the part that lies in it.
    """
    rows, columns = (cells(count, side) for count, side in zip(grid, regions.shape[1:], strict=True))
    return rows @ regions.astype(np.float64) @ columns.T


def cells(num_cells: int, num_pixels: int) -> np.ndarray:
    """What part of each of ``num_cells`` equal cells each of ``num_pixels`` pixels makes up, (cells, pixels); rows sum to 1."""
    edges = np.linspace(0, num_pixels, num_cells + 1)
    pixel = np.arange(num_pixels)
    shared = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return shared.clip(min=0) * num_cells / num_pixels


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (K, h, w) at the size of the image, (K, H, W), bilinear between the centres of patches."""
    return interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def patch_cosines(features: Tensor, *, less_mean: bool = False) -> Tensor:
    """Cosine of every patch with every other, (N, N) in [-1, 1], in row-major order, of one map (D, h, w).

    With ``less_mean`` the mean over the patches is first subtracted from each. A vector of zeros has cosine 0 with all.
    """
    vectors = features.flatten(1).T.double()
    unit = normalize(vectors - vectors.mean(0) if less_mean else vectors, dim=1)
    return (unit @ unit.T).clamp(-1, 1)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole > 0)


def mean_of_known(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
