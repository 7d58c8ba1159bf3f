"""Packs in memory hold what a pack would hold, and cost what they look like."""

import cv2
import numpy as np
import pytest
from PIL import Image

from daybreak.data.encode import PackSettings
from daybreak.data.images import Images, open_images
from daybreak.data.trial import cost, pack, short_side, try_packings
from daybreak.data.views import View


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """6 JPEGs of 1200 x 900 pixels, and 2 of 90 x 60."""
    root, random = tmp_path_factory.mktemp("trial"), np.random.default_rng(0)
    for i in range(8):
        small = Image.fromarray(random.integers(0, 256, (30, 40, 3)).astype(np.uint8))
        size = (90, 60) if i in (2, 5) else (1200, 900)
        small.resize(size, Image.Resampling.BICUBIC).save(root / f"{i}.jpg", quality=92)
    return open_images(root)


@pytest.mark.parametrize("sizes, side", [([224], 256), ([96, 224], 256), ([96], 128), ([32], 64), ([(28, 56)], 64)])
def test_the_short_side_leaves_room_for_crops(sizes, side):
    assert short_side([View(size=size) for size in sizes]) == side


def test_a_pack_shrinks_what_is_larger_and_keeps_the_bytes_of_the_rest(images):
    packed, size = pack(images, PackSettings(short_side=128))
    assert packed.sizes.tolist() == [[60, 90] if i in (2, 5) else [128, 171] for i in range(8)]
    assert np.array_equal(packed.read(2), images.read(2)) and size == sum(packed.read(i).nbytes for i in range(8))
    for i in range(8):
        assert packed.read(i)[:3].tobytes() == b"\xff\xd8\xff" and packed.decode(i).shape == (*packed.sizes[i], 3)
    shrunk = cv2.resize(images.decode(0), (171, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(packed.decode(0).astype(int) - shrunk).mean() < 10  # colours at half the size


def test_raw_pixels_are_those_of_the_decoded_image(images):
    packed, size = pack(images, PackSettings(short_side=128, encoding="raw"))
    assert np.array_equal(packed.decode(2), images.decode(2)) and packed.decode(0).shape == (128, 171, 3)
    assert 8 * 3 * 60 * 90 < size == sum(packed.read(i).nbytes for i in range(8))


def test_cost_is_that_of_one_image(images, monkeypatch):
    """By a clock that an image takes 3 seconds of."""
    now, pixels = [0.0], Images.pixels

    def slow(self, data, reduce=1):
        now[0] += 3.0
        return pixels(self, data, reduce)

    monkeypatch.setattr(Images, "pixels", slow)
    monkeypatch.setattr("daybreak.data.loader.time.thread_time", lambda: now[0])
    assert cost(images, [View(size=32)]) == 3.0


def test_smaller_images_cost_less_and_raw_ones_least(images):
    small, raw = try_packings(images, [View(size=224, scale=(0.3, 0.5))], 0.1, 0.02)
    assert (small.short_side, small.encoding, raw.encoding) == (256, "auto", "raw")
    assert raw.processor < small.processor < 0.5 and small.size < 0.5 and small.size < raw.size


def test_what_a_pack_would_leave_as_it_is_is_not_tried(images, tmp_path):
    small = images.subset([2, 5])
    assert [p.encoding for p in try_packings(small, [View(size=64)], 0.1, 0.001)] == ["raw"]
    for i in range(2):
        (tmp_path / f"{i}.ppm").write_bytes(pack(small, PackSettings(encoding="raw"))[0].read(i).tobytes())
    assert try_packings(open_images(tmp_path), [View(size=96)], 0.1, 0.001) == []


def test_images_that_went_bad_give_no_trial(tmp_path):
    for name in "ab":
        Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(tmp_path / f"{name}.jpg")
    images = open_images(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.jpg").unlink()
    assert try_packings(images, [View(size=32)], 0.1, 0.001) == []
