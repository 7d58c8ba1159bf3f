"""What single patches are like: their principal components as colours, and cosines as levels.

n images, D width, N patches, h w rows and columns of patches.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

OUTER = 0.01  # share of the patches, at either end, whose colour is cut


class Colours(NamedTuple):
    """Patches as colours: alike within an image and between images where the features are alike."""

    images: np.ndarray  # (n, h, w, 3) uint8
    share: float  # of the variance over all patches that the three components hold, in [0, 1]


def pca_colours(features: Tensor) -> Colours:
    """Red, green and blue from the first three principal components of all patches of all images together.

    Each component runs from its 1st percentile (0) to its 99th (255) over the set. The sign of a component is
    arbitrary: here the largest of its D loadings is positive.

    Args:
        features: (n, D, h, w), with D of 3 or more.
    """
    table = features.movedim(1, -1).double()  # (n, h, w, D)
    points = table.flatten(0, 2) - table.flatten(0, 2).mean(0)
    variance, axes = torch.linalg.eigh(points.T @ points)  # ascending
    axes = axes[:, -3:].flip(1)  # (D, 3), the strongest first
    axes = axes * axes.gather(0, axes.abs().argmax(0)[None]).sign()
    values = (points @ axes).cpu().numpy()
    low, high = np.quantile(values, (OUTER, 1 - OUTER), axis=0)
    scaled = ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    images = np.rint(255 * scaled).astype(np.uint8).reshape(*table.shape[:3], 3)
    variance = variance.clamp(min=0)
    return Colours(images, float(variance[-3:].sum() / variance.sum().clamp(min=1e-300)))


def levels(cosines: Tensor) -> np.ndarray:
    """Cosines in [-1, 1] as uint8 levels of 2 / 255 each, so that none is off by more than 1 / 255."""
    return ((cosines + 1) * 127.5).round().byte().cpu().numpy()
