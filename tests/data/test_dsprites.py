"""dSprites drawn here: the published order and sizes of the factors, and sprites checked by a loop over polygons."""

import math

import numpy as np
import pytest

from daybreak.data.decode import decode
from daybreak.data.dsprites import COUNT, FACTORS, SHAPES, draw_sprites, factors, open_dsprites
from daybreak.data.images import open_images
from daybreak.data.sources import open_source
from daybreak.errors import Refused


@pytest.fixture(scope="module")
def whole():
    return open_dsprites("dsprites:all")


def image(source, i):
    return decode(source.read(i), channels=1, depth=8, background=0)[:, :, 0]


def number(*values):
    """The published index: mixed radix of the sizes 3, 6, 40, 32, 32, y fastest."""
    found = 0
    for value, size in zip(values, (3, 6, 40, 32, 32), strict=True):
        found = found * size + value
    return found


def test_factors_have_the_published_sizes_and_order(whole):
    assert list(FACTORS.items()) == [("shape", 3), ("scale", 6), ("orientation", 40), ("x", 32), ("y", 32)]
    assert len(whole) == COUNT == 3 * 6 * 40 * 32 * 32 and whole.label == "shape"
    assert {name: len(held.classes) for name, held in whole.labels.items()} == FACTORS
    for values in ((0, 0, 0, 0, 1), (0, 0, 0, 1, 0), (1, 2, 3, 4, 5), (2, 5, 39, 31, 31)):
        i = number(*values)
        assert tuple(int(held.values[i]) for held in whole.labels.values()) == values and whole.keys[i] == f"{i:06d}"
        assert tuple(int(v[0]) for v in factors(np.array([i])).values()) == values
    assert whole.labels["shape"].classes == SHAPES and whole.labels["scale"].classes == ("0.5", "0.6", "0.7", "0.8", "0.9", "1")


def crossing(points, x, y):
    """Whether a point lies in a polygon: an odd number of edges to its right."""
    odd = False
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
            odd = not odd
    return odd


def outline(shape, r, angle):
    """Points of the outline around (0, 0) in pixels, x to the right and y down."""
    if shape == 0:
        upright = [(r * math.cos(k * math.pi / 2), r * math.sin(k * math.pi / 2)) for k in range(4)]
    else:
        turn = [2 * math.pi * (k + 0.5) / 400 for k in range(400)]
        if shape == 1:
            upright = [(r * math.cos(t), 2 * r / 3 * math.sin(t)) for t in turn]
        else:
            upright = [(16 * math.sin(t) ** 3 * r / 17,
                        -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) * r / 17) for t in turn]
    c, s = math.cos(angle), math.sin(angle)
    return [(c * x - s * y, s * x + c * y) for x, y in upright]


@pytest.mark.parametrize("values", [(0, 5, 3, 10, 20), (1, 3, 7, 0, 31), (2, 0, 26, 31, 0)])
def test_pixels_are_those_of_a_polygon_of_which_half_is_covered(values, whole):
    shape, scale, orientation, x, y = values
    points = outline(shape, 14 * (0.5 + 0.1 * scale), 2 * math.pi * orientation / 40)
    expected = np.zeros((64, 64), np.uint8)
    for row in range(64):
        for column in range(64):
            if abs(row + 0.5 - 16 - y) > 16 or abs(column + 0.5 - 16 - x) > 16:
                continue
            covered = sum(crossing(points, column + (i + 0.5) / 4 - 16 - x, row + (j + 0.5) / 4 - 16 - y)
                          for i in range(4) for j in range(4))
            expected[row, column] = 255 * (covered >= 8)
    assert (image(whole, number(*values)) != expected).sum() <= 2  # where a chord of the polygon leaves a sub-sample out


def test_images_are_binary_and_the_largest_sprite_stays_inside(whole):
    sprites = draw_sprites()
    assert sprites.shape == (720, 32, 32) and set(np.unique(sprites)) == {0, 255}
    assert not sprites[:, [0, -1]].any() and not sprites[:, :, [0, -1]].any()  # a black frame: no shift cuts anything
    areas = (sprites > 0).sum((1, 2)).reshape(3, 6, 40)
    assert (np.diff(areas.mean(2), axis=1) > 0).all()  # larger with each scale
    ideal = (0.5 + 0.1 * np.arange(6)) ** 2 * 14**2 * np.array([[2.0], [math.pi * 2 / 3], [180 * math.pi / 289]])
    np.testing.assert_allclose(areas.mean(2), ideal, rtol=0.05)
    for corner in ((0, 0), (0, 31), (31, 0), (31, 31)):
        for shape in range(3):
            shown = image(whole, number(shape, 5, 0, *corner))
            assert (shown > 0).sum() == areas[shape, 5, 0]
    right, down = (image(whole, number(2, 5, 3, *at)) for at in ((11, 10), (10, 11)))
    here = image(whole, number(2, 5, 3, 10, 10))
    assert (np.roll(here, 1, 1) == right).all() and (np.roll(here, 1, 0) == down).all()


def test_a_sample_is_of_the_same_images_and_is_labelled(whole):
    some = open_source("dsprites:500:3", label="x")
    assert len(set(some.keys)) == 500 and some.label == "x" and some.keys == open_source("dsprites:500:3").keys
    assert some.keys != open_source("dsprites:500:4").keys
    for i in (0, 250, 499):
        assert (some.read(i) == whole.read(int(some.keys[i]))).all()
        assert all(held.values[i] == whole.labels[name].values[int(some.keys[i])] for name, held in some.labels.items())
    found = open_images("dsprites:60", threads=1)
    assert found.channels == 1 and found.labels.classes == SHAPES and (found.sizes == 64).all()


@pytest.mark.parametrize("name", ["dsprites:", "dsprites:0", "dsprites:737281", "dsprites:ten", "dsprites:10:x"])
def test_other_names_are_refused(name):
    with pytest.raises(Refused, match="dsprites:all, dsprites:N or dsprites:N:SEED"):
        open_source(name)
    with pytest.raises(Refused, match="leave --group out"):
        open_source("dsprites:9", group="patient")
