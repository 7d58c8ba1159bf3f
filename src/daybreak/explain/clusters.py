"""What the prototypes of a method stand for: those that most images go to, each with the images that are nearest to it.

n images, K prototypes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .thumbnails import Thumbnail, thumbnails

if TYPE_CHECKING:
    from ..data.images import Images


@dataclass
class Cluster:
    """A prototype and its images, the nearest first."""

    prototype: int  # its number, from 0
    size: int  # images that go to it
    of: int  # images that were asked
    found: list[Thumbnail]


def clusters(scores: Tensor, images: "Images", *, count: int = 8, k: int = 6, side: int = 64) -> list[Cluster]:
    """The ``count`` prototypes that most images go to, each with the ``k`` images of the highest score among those.

    Args:
        scores: (n, K) of ``images``; an image goes to the prototype of its highest score.
        side: longest side of a thumbnail in pixels.
    """
    own = scores.argmax(1)  # (n,)
    sizes = own.bincount(minlength=scores.shape[1])
    found = []
    for prototype in sizes.argsort(descending=True, stable=True)[:count].tolist():
        members = torch.nonzero(own == prototype)[:, 0]
        if len(members):
            near = members[scores[members, prototype].argsort(descending=True, stable=True)[:k]]
            found.append(Cluster(prototype, len(members), len(own), thumbnails(images, near.tolist(), side)))
    return found
