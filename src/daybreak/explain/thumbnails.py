"""Small pictures of images, for reports.

h w height and width, c channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from ..data.images import Images


@dataclass
class Thumbnail:
    """An image as a report shows it."""

    key: str
    label: str | None  # name of its class; None if it has none or it is unknown
    image: np.ndarray  # (h, w, c) uint8


def thumbnails(images: "Images", index: Sequence[int] | np.ndarray, side: int) -> list[Thumbnail]:
    """The pictures of the images at ``index``, the longer side at most ``side`` pixels."""
    chosen = images.subset(np.asarray(index, dtype=np.int64))
    names = class_names(chosen)
    return [Thumbnail(key, names[i], shrink(chosen.decode(i), side)) for i, key in enumerate(chosen.keys)]


def class_names(images: "Images") -> list[str | None]:
    """Name of each image's class; None without classes, or where it is unknown."""
    labels = images.labels
    if labels is None or labels.kind != "class":
        return [None] * len(images)
    return [str(labels.classes[value]) if value >= 0 else None for value in labels.values.tolist()]


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """An (h, w, c) image of 8 or 16 bits as uint8 of at most ``side`` pixels; smaller ones keep their size.

    16-bit images are stretched to their own range, since most use a small part of it.
    """
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = np.rint((image - low) / max(high - low, 1) * 255).astype(np.uint8)
    factor = side / max(image.shape[:2])
    if factor >= 1:
        return image
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)


def png(image: np.ndarray) -> bytes:
    """PNG file of an (h, w, c) uint8 image with 1, 3 (RGB) or 4 (RGBA) channels."""
    turned = {1: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[image.shape[2]]
    return cv2.imencode(".png", image if turned is None else cv2.cvtColor(image, turned))[1].tobytes()
