"""The map of features: groups stay together, and odd inputs give a map or a sentence."""

import cv2
import numpy as np
import pytest
import torch

from daybreak.data.images import open_images
from daybreak.explain.projection import central, project


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(60):
        (folder / f"class{i // 20}").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"class{i // 20}" / f"{i:02d}.png"), np.full((6, 6), 4 * i, np.uint8))
    return open_images(folder)


def groups(count=60):
    centres = 4 * torch.eye(8)[:3]
    return centres[torch.arange(count) // 20] + 0.3 * torch.randn(count, 8, generator=torch.Generator().manual_seed(0))


def test_groups_stay_together_and_names_belong_to_points(images):
    found = project(groups(), images)
    assert found.points.shape == (60, 2) and found.points.min() == 0 and found.points.max() == 1
    assert found.labels == [key.split("/")[0] for key in found.keys]
    centres = np.stack([found.points[20 * i : 20 * i + 20].mean(0) for i in range(3)])
    nearest = np.linalg.norm(found.points[:, None] - centres, axis=2).argmin(1)
    assert (nearest == np.arange(60) // 20).all()
    assert "t-SNE" in found.how


def test_the_same_seed_gives_the_same_map(images):
    np.testing.assert_array_equal(project(groups(), images).points, project(groups(), images).points)


def test_of_many_images_some_are_taken_and_that_is_said(images):
    found = project(groups(), images, limit=20, side=4)
    assert len(found.points) == 20 and found.keys == images.keys[::3]
    assert "20 of 60 images" in found.how
    for i, picture in found.pictures:
        assert picture.key == found.keys[i] and picture.image.shape == (4, 4, 1)
    assert project(groups(), images, limit=20, pictures=False).pictures == []


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_images_and_equal_vectors_give_a_map(images, count):
    few = images.subset(np.arange(count))
    assert np.isfinite(project(groups()[:count], few).points).all()
    assert "the same" in project(torch.ones(60, 8), images).how


def test_central_takes_one_point_a_cell_the_nearest_to_its_middle():
    points = np.array([[0.25, 0.25], [0.1, 0.1], [0.9, 0.9], [0.74, 0.76], [1.0, 0.0]])
    assert sorted(central(points, 2)) == [0, 3, 4]
