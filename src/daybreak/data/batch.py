"""What the loader yields and a method reads.

B samples, V views (flat), C channels, h w pixels of a view.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass  # not frozen: Fabric, which moves what a module is called with, can't rebuild frozen ones
class Batch:
    """Views of B images with where they came from."""

    images: list[Tensor]  # one entry a view, (B, C, h, w): uint8 or uint16, float on the device
    boxes: Tensor  # (V, B, 4) float32: top, left, bottom, right in fractions of the upright image
    flips: Tensor  # (V, B) bool
    index: Tensor  # (B,) int64, positions in the data set
    sizes: Tensor  # (B, 2) height and width of the upright images in pixels
    labels: Tensor | None
    epoch: int
