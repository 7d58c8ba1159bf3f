"""Drawings of a few images at each evaluation: what is kept of them, and what of a long run is shown."""

import cv2
import numpy as np
import pytest
import torch

from daybreak.data.images import open_images
from daybreak.explain import strips

SIDE = strips.SIDE


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), np.full((8, 4), 60 * i + 20, np.uint8))
    return open_images(tmp_path / "images")


def patches():
    return torch.rand(3, 5, 2, 2, generator=torch.Generator().manual_seed(0))


def test_what_is_drawn_is_read_again_image_by_image(images, tmp_path):
    made = [[np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 90 + i, np.uint8)] for i in range(3)]
    strips.keep(tmp_path / "strips", 128, images, patches(), ["image", "filled"], made)
    found = strips.read(tmp_path / "strips")
    assert found.images_seen == [128] and list(found.kinds) == ["made", "patches"]
    for i, image in enumerate(found.images):  # a tall image stands in the middle
        assert image[5, SIDE // 2].tolist() == [60 * i + 20] * 3 and image[5, 3].tolist() == [0] * 3
        assert (found.kinds["made"][i][0] == 90 + i).all()
    colours = found.kinds["patches"]
    assert (colours[0][0][: SIDE // 2, : SIDE // 2] == colours[0][0][0, 0]).all()  # a patch is a square of one colour
    assert (colours[0][0] != colours[1][0]).any()
    strips.keep(tmp_path / "strips", 128, images, 2 * patches(), ["image", "filled"], made)
    assert strips.read(tmp_path / "strips").images_seen == [128]  # a run that goes on draws in the same place


def test_what_is_painted_goes_before_the_last_column(images, tmp_path):
    made = [[np.full((4, 4, 1), 10 * j, np.uint8) for j in range(3)]] * 3
    strips.keep(tmp_path / "strips", 0, images, patches(), ["image", "painted", "+2"], made)
    assert (strips.read(tmp_path / "strips").kinds["made"][0][0] == 10).all()


def test_a_picture_that_is_of_other_things_is_left_out(images, tmp_path):
    strips.keep(tmp_path / "strips", 0, images, patches(), ["gates"], [[np.zeros((4, 4, 1), np.uint8)]])
    assert list(strips.read(tmp_path / "strips").kinds) == ["patches"]


def test_of_many_drawings_the_first_and_last_and_some_between_are_shown(images, tmp_path):
    for seen in range(0, 2001, 100):
        strips.keep(tmp_path / "strips", seen, images, patches(), [], [])
    found = strips.read(tmp_path / "strips").images_seen
    strips.keep(tmp_path / "strips", 1450, images, patches(), [], [])  # resumed from a checkpoint at 1,400
    assert sorted(int(path.stem) for path in (tmp_path / "strips").iterdir()) == [*range(0, 1401, 100), 1450]
    assert len(found) == strips.MOST and found[0] == 0 and found[-1] == 2000 and found == sorted(set(found))
    assert strips.read(tmp_path / "nothing") is None
