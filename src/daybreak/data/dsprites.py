"""dSprites, drawn here: one white sprite on black, 64 x 64, of every combination of five factors; ``dsprites:N`` for DATA.

Matthey, Higgins, Hassabis, Lerchner, "dSprites: Disentanglement testing Sprites dataset", 2017. The order of the 737,280
images and the factors are those of the published file. The pixels are not: outlines are drawn by formulae of our own, and
the angles leave out 2 pi, which shows what 0 shows. The square repeats each quarter of a turn and the ellipse each half, so
of those images nobody can tell the whole angle. N images.
"""

import re
from itertools import product
from pathlib import Path

import numpy as np

from ..errors import Refused
from .philox import permutation
from .sources import Labels, Source

PREFIX = "dsprites:"
SIDE = 64  # pixels of an image
FACTORS = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}  # values of each; the last changes fastest
SHAPES = ("square", "ellipse", "heart")
COUNT = 737_280
CELL = 32  # pixels of the square that holds a sprite; its corner is at (x, y), its middle 16 pixels on
RADIUS = 14  # pixels from the middle to the farthest point of the largest sprite
SUBSAMPLES = 4  # along each side of a pixel; half of the 16 inside make it white
HEADER = np.frombuffer(b"P5\n64 64\n255\n", np.uint8)


def is_dsprites(path: str | Path) -> bool:
    """Whether this is no file but a set to be drawn."""
    return str(path).startswith(PREFIX)


def open_dsprites(name: str) -> Source:
    """Open ``dsprites:all``, or ``dsprites:N`` or ``dsprites:N:SEED``: N images of all, without repetition.

    Each factor is a label column; "shape" is in use unless another is chosen. Images are drawn when they are read.

    Raises Refused for another name.
    """
    match = re.fullmatch(r"dsprites:(?:(all)|(\d+)(?::(\d+))?)", name)
    count = COUNT if match is None or match[1] else int(match[2])
    if match is None or not 1 <= count <= COUNT:
        raise Refused(f"{name}: no such set; expected dsprites:all, dsprites:N or dsprites:N:SEED, N from 1 to {COUNT:,}.")
    chosen = np.sort(permutation(int(match[3] or 0), 0, COUNT)[:count])
    values = factors(chosen)
    sprites = draw_sprites()
    sprite, x, y = chosen // 1024, values["x"], values["y"]

    def read(i: int) -> np.ndarray:
        data = np.zeros(len(HEADER) + SIDE * SIDE, np.uint8)
        data[: len(HEADER)] = HEADER
        image = data[len(HEADER) :].reshape(SIDE, SIDE)
        image[y[i] : y[i] + CELL, x[i] : x[i] + CELL] = sprites[sprite[i]]
        return data

    labels = {factor: Labels("class", values[factor], names) for factor, names in value_names().items()}
    return Source(Path(name), "generated", [f"{i:06d}" for i in chosen.tolist()], read, labels, "shape")


def factors(index: np.ndarray) -> dict[str, np.ndarray]:
    """Return the value of each factor, (N,) int64 from 0, of the images of these numbers (N,) in the published order."""
    return dict(zip(FACTORS, np.unravel_index(index, tuple(FACTORS.values())), strict=True))


def value_names() -> dict[str, tuple[str, ...]]:
    """Return names of the values of each factor: shapes, sizes relative to the largest, degrees, pixels."""
    numbers = {"scale": 0.5 + 0.1 * np.arange(6), "orientation": 9 * np.arange(40), "x": np.arange(32), "y": np.arange(32)}
    return {"shape": SHAPES} | {factor: tuple(f"{value:g}" for value in values) for factor, values in numbers.items()}


def draw_sprites() -> np.ndarray:
    """Return the 720 sprites of shape, scale and orientation, (720, 32, 32) uint8 of 0 and 255, orientation fastest."""
    steps = (np.arange(CELL * SUBSAMPLES) + 0.5) / SUBSAMPLES - CELL / 2
    down, right = np.meshgrid(steps, steps, indexing="ij")  # pixels from the middle
    found = np.empty((len(SHAPES) * 6 * 40, CELL, CELL), np.uint8)
    for i, (shape, scale, orientation) in enumerate(product(range(3), range(6), range(40))):
        radius, angle = RADIUS * (0.5 + 0.1 * scale), 2 * np.pi * orientation / 40
        across = (np.cos(angle) * right + np.sin(angle) * down) / radius
        up = (np.sin(angle) * right - np.cos(angle) * down) / radius
        cells = inside(SHAPES[shape], across, up).reshape(CELL, SUBSAMPLES, CELL, SUBSAMPLES)
        found[i] = 255 * (cells.sum((1, 3)) * 2 >= SUBSAMPLES**2)
    return found


def inside(shape: str, across: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Whether points lie in an upright shape of radius 1, the distance of its farthest point from the middle."""
    if shape == "square":  # upon a corner
        return np.abs(across) + np.abs(up) <= 1
    if shape == "ellipse":
        return across**2 + (1.5 * up) ** 2 <= 1
    # (16 sin^3 t, 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t) / 17: above each point across lie t and pi - t, the upper and lower edge
    t = np.arcsin(np.cbrt(np.minimum(17 / 16 * np.abs(across), 1)))
    upper, lower = (13 * np.cos(s) - 5 * np.cos(2 * s) - 2 * np.cos(3 * s) - np.cos(4 * s) for s in (t, np.pi - t))
    return (np.abs(across) <= 16 / 17) & (17 * up <= upper) & (17 * up >= lower)
