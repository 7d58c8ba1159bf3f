"""Views as data: what a method asks for, and where in each image its crops fall.

B batch, V views, H W height and width of the upright image, T tries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..errors import Refused
from .decode import GROWN, Interpolation
from .philox import uniform

BOX_TRIES = 10  # as torchvision's RandomResizedCrop
OVERLAP_TRIES = 20


@dataclass(frozen=True, kw_only=True)
class View:
    """One kind of view of an image; ``count`` of them are drawn independently.

    Args:
        size: height and width in pixels, or one number for both.
        scale: range of the crop's share of the image's area, in (0, 1].
        ratio: range of the crop's aspect (width / height) relative to the view's own, drawn on a log scale;
            for a square view this is torchvision's ratio.
        flip: probability of a horizontal flip.
        color: strengths of brightness, contrast, saturation (>= 0: factors in [max(0, 1 - s), 1 + s]) and hue
            (in [0, 0.5]: shift in [-s, s] of a turn).
        color_probability: probability that a sample's colours change at all.
        color_order: "fixed" (brightness, contrast, saturation, hue) or "random" for each sample.
        gray: probability of grayscale.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its deviation, in pixels of a 224 px view: a view of another height is blurred by
            height / 224 of it, because the same number of pixels would hardly touch a large view and wipe out
            a small one.
        solarize: probability that values of at least half the range are inverted.
        count: number of such views.
        resize: "crop" (random box), "centre" (largest centred box of the view's aspect) or "whole" image.
        interpolation: "bicubic" or "bilinear", of boxes that grow; those that shrink are filtered (``decode.resize``).
        normalise: whether the data's mean and deviation are applied; otherwise pixels stay in [0, 1].
        same_box_as: position, in the flat list of views, of an earlier view whose box and flip are taken
            over, so that the two show the same pixels.
        overlap: smallest share of the smaller box's area that the box must have in common with view 0's, in
            [0, 1].

    Raises Refused for a value out of its range.
    """

    size: tuple[int, int] | int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    color: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_probability: float = 0.8
    color_order: Literal["fixed", "random"] = "fixed"
    gray: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    count: int = 1
    resize: Literal["crop", "centre", "whole"] = "crop"
    interpolation: Interpolation = "bicubic"
    normalise: bool = True
    same_box_as: int | None = None
    overlap: float = 0.0

    def __post_init__(self) -> None:
        chances = ("flip", "color_probability", "gray", "blur", "solarize", "overlap")
        rules = [
            ("size", min(self.height, self.width) >= 1, "1 pixel or more"),
            ("scale", 0 < self.scale[0] <= self.scale[1] <= 1, "two rising numbers in (0, 1]"),
            ("ratio", 0 < self.ratio[0] <= self.ratio[1], "two rising numbers above 0"),
            ("color", min(self.color) >= 0 and self.color[3] <= 0.5, "four numbers from 0, the last to 0.5"),
            ("color_order", self.color_order in ("fixed", "random"), "'fixed' or 'random'"),
            ("blur_sigma", 0 < self.blur_sigma[0] <= self.blur_sigma[1], "two rising numbers above 0"),
            ("count", self.count >= 1, "1 or more"),
            ("resize", self.resize in ("crop", "centre", "whole"), "'crop', 'centre' or 'whole'"),
            ("interpolation", self.interpolation in GROWN, "'bicubic' or 'bilinear'"),
            *((name, 0 <= getattr(self, name) <= 1, "in [0, 1]") for name in chances),
        ]
        for name, holds, wanted in rules:
            if not holds:
                raise Refused(f"The view's {name} is {getattr(self, name)!r}; it must be {wanted}.")

    @property
    def height(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[1]

    def resized(self, height: int, width: int) -> "View":
        """Return this view at another size in pixels."""
        return replace(self, size=(height, width))

    def scaled(self, factor: float, multiple: int = 1) -> "View":
        """Return this view with both sides times ``factor``, to the nearest multiple (of a patch, say)."""
        sides = (max(1, round(side * factor / multiple)) * multiple for side in (self.height, self.width))
        return self.resized(*sides)


def expand(views: Sequence[View]) -> list[View]:
    """Return the flat list of views: each as often as its count, with a count of 1.

    Refused if a view takes its box from one that does not stand before it.
    """
    flat = [replace(view, count=1) for view in views for _ in range(view.count)]
    for position, view in enumerate(flat):
        if view.same_box_as is not None and not 0 <= view.same_box_as < position:
            raise Refused(
                f"View {position} takes its box from view {view.same_box_as}; it must be one of the "
                f"{position} views before it."
            )
    return flat


def draw_boxes(
    views: Sequence[View], sizes: np.ndarray, index: np.ndarray, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes (V, B, 4) int32 as top, left, height, width in pixels, and the flips (V, B) bool.

    ``sizes`` (B, 2) holds upright heights and widths, ``index`` (B,) the positions in the data set; V counts
    the flat list of views.  A sample's boxes depend on its own size and index alone.  Random boxes follow
    torchvision's RandomResizedCrop: 10 tries, then the largest centred box within the ratio.
    """
    flat = expand(views)
    index = np.asarray(index, dtype=np.int64)
    sizes = np.asarray(sizes, dtype=np.int64)
    boxes = np.empty((len(flat), len(index), 4), dtype=np.int32)
    flips = np.empty((len(flat), len(index)), dtype=bool)
    for number, view in enumerate(flat):
        if view.same_box_as is not None:
            boxes[number], flips[number] = boxes[view.same_box_as], flips[view.same_box_as]
            continue
        flips[number] = uniform(seed, "flip", epoch, index, 1, number)[:, 0] < view.flip
        if view.resize == "whole":
            boxes[number] = np.concatenate([np.zeros_like(sizes), sizes], 1)
        elif view.resize == "centre":
            boxes[number] = _centred(sizes, view.width / view.height, view.width / view.height)
        else:
            draws = uniform(seed, "box", epoch, index, 4 * BOX_TRIES, number)
            boxes[number] = _random_boxes(view, sizes, draws)
            apart = np.flatnonzero(_overlap(boxes[number], boxes[0]) < view.overlap)
            for again in range(1, OVERLAP_TRIES):
                if not len(apart):
                    break
                draws = uniform(seed, f"box, try {again}", epoch, index[apart], 4 * BOX_TRIES, number)
                boxes[number, apart] = _random_boxes(view, sizes[apart], draws)
                apart = apart[_overlap(boxes[number, apart], boxes[0, apart]) < view.overlap]
            boxes[number, apart] = boxes[0, apart]
    return boxes, flips


def fractions(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return boxes (V, B, 4) in pixels as top, left, bottom, right in fractions of their images, float32.

    ``sizes`` (B, 2) holds the upright heights and widths.
    """
    corners = np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)
    return (corners / np.tile(sizes, 2)).astype(np.float32)


def _random_boxes(view: View, sizes: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Boxes (B, 4) from uniform draws (B, 4 T): the first try that fits in its image, else a centred box."""
    area_draw, ratio_draw, top_draw, left_draw = np.moveaxis(
        draws.astype(np.float64).reshape(len(draws), BOX_TRIES, 4), -1, 0
    )  # each (B, T)
    image_height, image_width = sizes[:, :1], sizes[:, 1:]  # (B, 1)
    low, high = (limit * view.width / view.height for limit in view.ratio)
    area = (view.scale[0] + (view.scale[1] - view.scale[0]) * area_draw) * image_height * image_width
    ratio = np.exp(np.log(low) + (np.log(high) - np.log(low)) * ratio_draw)
    height, width = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (height >= 1) & (width >= 1) & (height <= image_height) & (width <= image_width)
    top = np.floor(top_draw * (image_height - height + 1))
    left = np.floor(left_draw * (image_width - width + 1))
    tries = np.stack([top, left, height, width], -1)  # (B, T, 4)
    first = tries[np.arange(len(draws)), fits.argmax(1)]
    return np.where(fits.any(1)[:, None], first, _centred(sizes, low, high)).astype(np.int32)


def _centred(sizes: np.ndarray, low: float, high: float) -> np.ndarray:
    """The largest centred boxes (B, 4) whose aspect lies in [low, high]."""
    height, width = sizes[:, 0], sizes[:, 1]
    box_height = np.where(width / height < low, np.rint(width / low), height)
    box_width = np.where(width / height > high, np.rint(height * high), width)
    box_height, box_width = (np.maximum(side, 1).astype(np.int32) for side in (box_height, box_width))
    return np.stack([(height - box_height) // 2, (width - box_width) // 2, box_height, box_width], -1)


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Shared area over the smaller box's area, (B,) in [0, 1]."""
    start = np.maximum(boxes[:, :2], others[:, :2])
    end = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    shared = np.maximum(end - start, 0).astype(np.int64).prod(1)
    smaller = np.minimum(boxes[:, 2:].astype(np.int64).prod(1), others[:, 2:].astype(np.int64).prod(1))
    return shared / smaller
