"""Views: the fields and their ranges, and the boxes against a plain loop and torchvision's own."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from daybreak.data.philox import uniform
from daybreak.data.views import View, draw_boxes, expand, fractions
from daybreak.errors import Refused


def make_sizes(count, low=20, high=500):
    return (low + uniform(9, "sizes", 0, np.arange(count), 2) * (high - low)).astype(np.int64)


def plain_box(draws, height, width, scale, ratio):
    """torchvision's RandomResizedCrop, written as a loop over the draws of one sample (tries, 4)."""
    for area_draw, ratio_draw, top_draw, left_draw in draws.astype(float):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * ratio_draw)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1)), h, w]
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.9, 1.0), (0.001, 0.01)])
def test_boxes_equal_a_plain_loop(scale):
    sizes, index = make_sizes(200), np.arange(100, 300)
    boxes, _ = draw_boxes([View(size=32, scale=scale)], sizes, index, 5, 2)
    draws = uniform(5, "box", 2, index, 40, view=0).reshape(200, 10, 4)
    plain = [
        plain_box(d, *size.tolist(), scale, (3 / 4, 4 / 3)) for d, size in zip(draws, sizes, strict=True)
    ]
    assert boxes.dtype == np.int32 and boxes[0].tolist() == plain


def test_boxes_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    crop = RandomResizedCrop(32, scale=(0.2, 1.0))
    image = torch.zeros(3, 90, 160)
    theirs = np.array([crop.get_params(image, crop.scale, crop.ratio) for _ in range(3000)])
    ours = draw_boxes([View(size=32)], np.tile([90, 160], (3000, 1)), np.arange(3000), 0, 0)[0][0]
    for column in range(4):
        points = np.unique(theirs[:, column])
        shares = [np.searchsorted(np.sort(x[:, column]), points, "right") / 3000 for x in (theirs, ours)]
        assert np.abs(shares[0] - shares[1]).max() < 0.05  # Kolmogorov and Smirnov: p = 0.001 at 0.0503


def test_boxes_lie_in_their_images():
    views = [
        View(size=(32, 64), scale=(0.05, 1.0), count=3),
        View(size=16, resize="centre"),
        View(size=16, resize="whole"),
    ]
    sizes = np.concatenate([make_sizes(300), [[1, 1], [1, 700], [700, 1], [2, 3]]])
    boxes, flips = draw_boxes(views, sizes, np.arange(len(sizes)), 0, 0)
    assert boxes.shape == (5, 304, 4) and flips.shape == (5, 304) and flips.dtype == bool
    assert (boxes[..., :2] >= 0).all() and (boxes[..., 2:] >= 1).all()
    assert (boxes[..., :2] + boxes[..., 2:] <= sizes).all()


def test_long_images_fall_back_to_a_centred_box():
    boxes, _ = draw_boxes(
        [View(size=32, scale=(0.9, 1.0))], np.array([[30, 3000], [3000, 30]]), np.arange(2), 0, 0
    )
    assert boxes[0].tolist() == [[0, 1480, 30, 40], [1480, 0, 40, 30]]


def test_ratio_is_relative_to_the_view():
    sizes = np.tile([1000, 1000], (500, 1))
    boxes, _ = draw_boxes([View(size=(32, 96), scale=(0.1, 0.1))], sizes, np.arange(500), 0, 0)
    aspect = boxes[0, :, 3] / boxes[0, :, 2]
    assert 2.2 < aspect.min() < 2.3 and 3.9 < aspect.max() < 4.05


def test_centre_and_whole():
    sizes = np.array([[100, 200], [200, 100], [51, 50]])
    views = [
        View(size=(10, 20), resize="centre"),
        View(size=10, resize="centre"),
        View(size=10, resize="whole"),
    ]
    boxes, _ = draw_boxes(views, sizes, np.arange(3), 0, 0)
    assert boxes[0].tolist() == [[0, 0, 100, 200], [75, 0, 50, 100], [13, 0, 25, 50]]
    assert boxes[1].tolist() == [[0, 50, 100, 100], [50, 0, 100, 100], [0, 0, 50, 50]]
    assert boxes[2].tolist() == [[0, 0, *size] for size in sizes.tolist()]


def test_boxes_do_not_depend_on_the_rest_of_the_batch():
    views = [
        View(size=32),
        View(size=16, scale=(0.05, 0.2), overlap=0.7, count=2),
        View(size=8, same_box_as=1),
    ]
    sizes, index = make_sizes(64), np.arange(64)
    boxes, flips = draw_boxes(views, sizes, index, 1, 4)
    rows = np.array([60, 2, 33])
    some_boxes, some_flips = draw_boxes(views, sizes[rows], index[rows], 1, 4)
    assert np.array_equal(some_boxes, boxes[:, rows]) and np.array_equal(some_flips, flips[:, rows])
    assert (draw_boxes(views, sizes, index, 1, 5)[0] != boxes).any(2).mean() > 0.9
    assert (boxes[1] != boxes[2]).any(1).mean() > 0.9


def test_flips_come_at_their_rate():
    views = [View(size=8, flip=0.0), View(size=8, flip=1.0), View(size=8, flip=0.25)]
    flips = draw_boxes(views, np.tile([10, 10], (4000, 1)), np.arange(4000), 0, 0)[1].mean(1)
    assert flips[0] == 0 and flips[1] == 1 and abs(flips[2] - 0.25) < 0.03


def test_same_box_shares_box_and_flip():
    views = [View(size=32, count=2), View(size=16, same_box_as=1, flip=0.0)]
    boxes, flips = draw_boxes(views, make_sizes(50), np.arange(50), 0, 0)
    assert np.array_equal(boxes[2], boxes[1]) and np.array_equal(flips[2], flips[1])
    assert not np.array_equal(boxes[2], boxes[0])


@pytest.mark.parametrize("overlap", [0.3, 0.8, 1.0])
def test_overlap_is_kept(overlap):
    sizes = make_sizes(400, 200, 500)
    views = [View(size=32, scale=(0.1, 0.4)), View(size=32, scale=(0.1, 0.4), overlap=overlap)]
    boxes, _ = draw_boxes(views, sizes, np.arange(400), 0, 0)
    for one, other in boxes.transpose(1, 0, 2).tolist():
        height = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
        width = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
        shared = max(height, 0) * max(width, 0)
        assert shared >= overlap * min(one[2] * one[3], other[2] * other[3])
    free, _ = draw_boxes([views[0], View(size=32, scale=(0.1, 0.4))], sizes, np.arange(400), 0, 0)
    kept = (boxes[1] == free[1]).all(1).mean()
    assert 0.01 < kept < 0.9  # some boxes were good at once, others were drawn again
    if overlap < 0.5:
        assert (boxes[1] == boxes[0]).all(1).mean() < 0.05  # and the last resort is rare


def test_fractions():
    boxes = np.array([[[10, 20, 30, 40], [0, 0, 8, 16]]], dtype=np.int32)
    found = fractions(boxes, np.array([[100, 200], [8, 16]]))
    assert found.dtype == np.float32 and found.shape == (1, 2, 4)
    assert np.allclose(found[0], [[0.1, 0.1, 0.4, 0.3], [0, 0, 1, 1]])


def test_expand_applies_counts():
    flat = expand([View(size=224, count=2), View(size=96, count=3)])
    assert [view.height for view in flat] == [224, 224, 96, 96, 96]
    assert all(view.count == 1 for view in flat) and expand(flat) == flat


@pytest.mark.parametrize("target", [1, 2, -1])
def test_a_box_can_only_be_taken_from_an_earlier_view(target):
    with pytest.raises(Refused, match=f"view {target}"):
        expand([View(size=8), View(size=8, same_box_as=target)])


def test_sizes():
    view = View(size=(32, 48))
    assert (view.height, view.width) == (32, 48) and (View(size=7).height, View(size=7).width) == (7, 7)
    assert view.resized(16, 24).size == (16, 24)
    assert view.scaled(0.5).size == (16, 24) and view.scaled(0.7, multiple=8).size == (24, 32)
    assert view.scaled(0.01, multiple=8).size == (8, 8)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": (8, 0)},
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 0.2)},
        {"scale": (0.5, 1.2)},
        {"ratio": (0.0, 1.0)},
        {"flip": 1.5},
        {"color": (0.1, 0.1, -0.1, 0.0)},
        {"color": (0.1, 0.1, 0.1, 0.6)},
        {"color_order": "any"},
        {"blur_sigma": (0.0, 1.0)},
        {"gray": -0.1},
        {"count": 0},
        {"resize": "stretch"},
        {"interpolation": "nearest"},
        {"overlap": 2.0},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(Refused, match=next(iter(wrong))):
        View(**{"size": 8, **wrong})
