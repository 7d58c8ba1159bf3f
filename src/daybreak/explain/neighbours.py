"""Which images the backbone takes to be alike: queries with their nearest images in the bank.

N bank, n queries, D width, k neighbours.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .thumbnails import Thumbnail, thumbnails

if TYPE_CHECKING:
    from ..data.images import Images


@dataclass
class Neighbours:
    """A query and its nearest images, the nearest first."""

    query: Thumbnail
    found: list[Thumbnail]
    similarity: list[float]  # cosines, in [-1, 1]


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and positions in the bank (N, D) of the k nearest vectors of each query (n, D); both (n, k)."""
    cosine = normalize(queries, dim=1) @ normalize(bank, dim=1).T  # (n, N)
    similarity, position = cosine.topk(min(k, len(bank)), dim=1)
    return similarity, position


def neighbours(queries: Tensor, bank: Tensor, query_images: "Images", bank_images: "Images", *,
               count: int = 8, k: int = 6, side: int = 64) -> list[Neighbours]:
    """``count`` queries with their ``k`` nearest images in the bank, by the cosine of their vectors.

    The queries are not picked by how well they look: ordered by class, then by position, evenly spaced ones
    are taken.

    Args:
        queries, bank: vectors (n, D) and (N, D) of ``query_images`` and ``bank_images``, none in both.
        side: longest side of a thumbnail in pixels.
    """
    chosen = spaced(query_images, count)
    similarity, position = nearest(queries[torch.from_numpy(chosen)], bank, k)
    rows = zip(thumbnails(query_images, chosen, side), position.tolist(), similarity.tolist(), strict=True)
    return [Neighbours(query, thumbnails(bank_images, near, side), cosines) for query, near, cosines in rows]


def spaced(images: "Images", count: int) -> np.ndarray:
    """Positions of ``count`` images, evenly spaced over classes (where there are any) and positions."""
    labels = images.labels
    order = np.arange(len(images))
    if labels is not None and labels.kind == "class":
        order = np.argsort(np.asarray(labels.values), kind="stable")
    count = min(count, len(order))
    return order[((np.arange(count) + 0.5) * len(order) / max(count, 1)).astype(int)]
