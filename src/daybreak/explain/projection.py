"""A map of the features in two dimensions: images that the backbone takes to be alike lie together.

N images, n of them on the map, D width, G cells a side.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from .thumbnails import Thumbnail, class_names, thumbnails

if TYPE_CHECKING:
    from ..data.images import Images

COMPONENTS = 50
PERPLEXITY = 30.0


@dataclass
class Projection:
    """Points of a map and what they stand for."""

    points: np.ndarray  # (n, 2) in [0, 1], x to the right, y up
    how: str  # the sentence that says what was done
    keys: list[str]
    labels: list[str | None]  # names of classes
    pictures: list[tuple[int, Thumbnail]] = field(default_factory=list)  # for some points: position in keys


def project(features: Tensor, images: "Images", *, limit: int = 1500, cells: int = 16, side: int = 28,
            pictures: bool = True, seed: int = 0) -> Projection:
    """Map vectors (N, D) of ``images`` by PCA and then t-SNE (van der Maaten and Hinton 2008).

    Vectors are first divided by their length, as kNN does. Distances between far groups mean nothing.

    Args:
        limit: images on the map; of more, evenly spaced ones are taken.
        cells: the picture of the most central point of each cell of a cells x cells grid is kept.
        side: longest side of these pictures in pixels.
        seed: of t-SNE.
    """
    count = min(limit, len(features))
    index = (np.arange(count) * (len(features) / max(count, 1))).astype(np.int64)
    points, how = lay_out(normalize(features[index].float(), dim=1).double().numpy(), seed)
    if count < len(features):
        how += f" {count:,} of {len(features):,} images, evenly spaced."
    mapped = images.subset(index)
    shown = central(points, cells) if pictures else []
    return Projection(points, how, mapped.keys, class_names(mapped),
                      list(zip(shown, thumbnails(mapped, shown, side), strict=True)))


def lay_out(vectors: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Points (n, 2) in [0, 1] of vectors (n, D), and the sentence that says how."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    centred = vectors - vectors.mean(0)
    if len(vectors) < 3 or np.abs(centred).max() < 1e-6:
        return np.full((len(vectors), 2), 0.5), "All vectors are the same, or there are fewer than three."
    components = min(COMPONENTS, *vectors.shape)
    reduced = PCA(components, svd_solver="full", random_state=seed).fit_transform(centred)
    if len(vectors) < 10 or components < 2:
        points, how = np.pad(reduced, ((0, 0), (0, 1)))[:, :2], "PCA of the vectors."
    else:
        perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
        with threadpool_limits(1):  # its steps are so short that threads mostly wait for each other
            points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
        how = f"t-SNE (perplexity {perplexity:.0f}, seed {seed}) of {components} principal components."
    low, high = points.min(0), points.max(0)
    return (points - low) / np.maximum(high - low, 1e-12), how


def central(points: np.ndarray, cells: int) -> list[int]:
    """The point nearest to the middle of each cell of the grid that holds any."""
    cell = np.minimum((points * cells).astype(int), cells - 1)  # (n, 2)
    distance = np.abs(points * cells - cell - 0.5).sum(1)
    order = np.lexsort((distance, cell[:, 1], cell[:, 0]))
    _, first = np.unique(cell[order], axis=0, return_index=True)
    return [int(i) for i in order[first]]
