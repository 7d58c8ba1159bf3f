"""The same few images at each evaluation of a run, so that one sees when something was learned.

A drawing is a PNG file, named by the images seen: a row for each of n images, and in it the image, what the method
makes of it (of its picture the column "painted" or else the last; nothing of a method without), and its patches as
colours. h w height and width, c channels.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from torch import Tensor

from .thumbnails import png, shrink
from .tokens import pca_colours

if TYPE_CHECKING:
    from ..data.images import Images

COUNT = 5  # images
MOST = 8  # drawings that a report shows
SIDE = 64  # pixels of each picture in a drawing


@dataclass(frozen=True)
class Strips:
    """A few images and what each evaluation drew of them; pictures are (SIDE, SIDE, 3) uint8."""

    images_seen: list[int]  # of each evaluation
    images: list[np.ndarray]
    kinds: dict[str, list[list[np.ndarray]]]  # name of what is drawn: for each image, a picture for each evaluation


def keep(folder: Path, images_seen: int, images: "Images", patches: Tensor, columns: Sequence[str],
         made: Sequence[Sequence[np.ndarray]]) -> Path:
    """Write the drawing of one evaluation, in the place of those at as many ``images_seen`` or more, to which a run went back.

    Args:
        patches: the vectors of the patches of ``images``, (n, D, h, w), with D of 3 or more.
        columns: the titles of the method's picture of them.
        made: its rows, of (h, w, c) uint8; other than n rows are of something else, left out.
    """
    column = columns.index("painted") if "painted" in columns else -1
    own = [[row[column]] for row in made] if len(made) == len(images) else [[]] * len(images)
    rows = [np.concatenate([square(picture) for picture in (images.decode(i), *own[i], colours)], 1)
            for i, colours in enumerate(pca_colours(patches).images)]
    folder.mkdir(exist_ok=True)
    for later in folder.glob("*.png"):
        if int(later.stem) > images_seen:
            later.unlink()
    path = folder / f"{images_seen:012d}.png"
    beside = path.with_suffix(".part")
    beside.write_bytes(png(np.concatenate(rows, 0)))
    os.replace(beside, path)
    return path


def square(picture: np.ndarray) -> np.ndarray:
    """An (h, w, c) image of 8 or 16 bits in the middle of a black (SIDE, SIDE, 3) one of 8; small ones are made larger."""
    picture = shrink(picture, SIDE)
    picture = picture[:, :, :3] if picture.shape[2] >= 3 else picture[:, :, :1].repeat(3, 2)
    factor = SIDE / max(picture.shape[:2])
    height, width = (max(1, round(length * factor)) for length in picture.shape[:2])
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    out = np.zeros((SIDE, SIDE, 3), np.uint8)
    out[top: top + height, left: left + width] = picture
    return out


def read(folder: Path) -> Strips | None:
    """What at most ``MOST`` evaluations drew: the first, the last, and others evenly spaced between. None where none did."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        return None
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(MOST, len(paths))).round().astype(int)]
    drawn = np.stack([np.asarray(cv2.imread(str(path)))[:, :, ::-1] for path in chosen])  # (e, n SIDE, k SIDE, 3)
    cells = drawn.reshape(len(chosen), drawn.shape[1] // SIDE, SIDE, drawn.shape[2] // SIDE, SIDE, 3).transpose(3, 1, 0, 2, 4, 5)
    names = ["made", "patches"] if len(cells) == 3 else ["patches"]
    return Strips([int(path.stem) for path in chosen], list(cells[0, :, 0]),
                  {name: [list(row) for row in rows] for name, rows in zip(names, cells[1:], strict=True)})
