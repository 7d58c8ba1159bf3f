"""Eigen-CAM: where the strongest direction of a map of features is, without a class or a gradient.

B images, D width, N positions, h w rows and columns.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Cam(NamedTuple):
    """A map before any rectifier or scaling, and how much of the features it speaks for."""

    map: Tensor  # (B, h, w) float64
    share: Tensor  # (B,) in [0, 1], of the squared length of all features


def eigen_cam(features: Tensor, *, centred: bool = False) -> Cam:
    """Projection of each position's features on their first right singular vector: M v_1, M = U S V^T (N, D).

    Muhammad and Yeasin 2020 (arXiv 2008.00299). The sign of v_1 is arbitrary: here the larger end of the
    projection is positive. Each image stands by itself.

    Args:
        features: (B, D, h, w), of a ViT or a CNN.
        centred: subtract the mean over positions first, which makes it the first principal component, as some
            implementations do; the maps differ. The features of a ViT share most of their length, so that the
            map that is not centred tells how much of this common part each patch has.
    """
    table = features.flatten(2).transpose(1, 2).double()  # (B, N, D)
    if centred:
        table = table - table.mean(1, keepdim=True)
    _, strength, directions = torch.linalg.svd(table, full_matrices=False)
    projection = (table @ directions[:, 0, :, None])[:, :, 0]  # (B, N)
    low, high = projection.aminmax(dim=1, keepdim=True)
    projection = torch.where(low.abs() > high.abs(), -projection, projection)
    energy = strength.square()  # (B, min(N, D))
    return Cam(projection.unflatten(1, features.shape[-2:]), energy[:, 0] / energy.sum(1).clamp(min=1e-300))
