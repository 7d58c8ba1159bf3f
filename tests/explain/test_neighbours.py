"""Neighbours and their thumbnails on images made here."""

import cv2
import numpy as np
import pytest
import torch

from daybreak.data.images import open_images
from daybreak.explain.neighbours import nearest, neighbours, spaced
from daybreak.explain.thumbnails import png, shrink


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Images of one colour each, so that an image and its vector can be matched; 3 classes of 4."""
    folder = tmp_path_factory.mktemp("colours")
    for i in range(12):
        (folder / f"class{i % 3}").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"class{i % 3}" / f"{i:02d}.png"), np.full((10, 20, 3), (0, i, 20 * i), np.uint8))
    return open_images(folder)


def vectors(images):
    """A direction for each image, turning with its red value."""
    angle = torch.tensor([images.decode(i)[0, 0, 0] / 220 for i in range(len(images))]) * 1.5
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_nearest_equals_a_loop():
    random = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(5, 4, generator=random), torch.randn(9, 4, generator=random)
    similarity, position = nearest(queries, bank, 3)
    for i in range(5):
        cosines = torch.cosine_similarity(queries[i : i + 1], bank)
        assert position[i].tolist() == cosines.argsort(descending=True)[:3].tolist()
        torch.testing.assert_close(similarity[i], cosines.sort(descending=True)[0][:3])
    assert nearest(queries, bank, 50)[1].shape == (5, 9)


def test_pictures_belong_to_the_vectors(colours):
    bank, queries = colours.subset(np.arange(0, 12, 2)), colours.subset(np.arange(1, 12, 2))
    rows = neighbours(vectors(queries), vectors(bank), queries, bank, count=3, k=2, side=8)
    assert len(rows) == 3
    for row in rows:
        assert row.query.image.shape == (4, 8, 3) and row.query.label == row.query.key.split("/")[0]
        apart = [abs(int(row.query.image[0, 0, 0]) - int(found.image[0, 0, 0])) for found in row.found]
        assert apart == sorted(apart) and apart[0] <= 60
        assert row.similarity == sorted(row.similarity, reverse=True)


def test_queries_are_spaced_over_classes(colours):
    mixed = colours.subset(np.array([4, 5, 0, 6, 7, 8, 1, 9, 10, 11, 2, 3]))  # every fourth is of one class
    assert sorted(mixed.labels.values[spaced(mixed, 3)].tolist()) == [0, 1, 2]
    assert len(spaced(colours, 100)) == 12


def test_shrink_keeps_the_aspect_and_shows_16_bits():
    assert shrink(np.zeros((100, 50, 3), np.uint8), 20).shape == (20, 10, 3)
    assert shrink(np.zeros((10, 5, 1), np.uint8), 20).shape == (10, 5, 1)
    deep = shrink(np.linspace(1000, 1400, 64).astype(np.uint16).reshape(8, 8, 1), 8)
    assert deep.dtype == np.uint8 and deep.min() == 0 and deep.max() == 255


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_holds_the_same_pixels(channels):
    image = np.random.default_rng(0).integers(0, 256, (6, 5, channels), dtype=np.uint8)
    read = cv2.imdecode(np.frombuffer(png(image), np.uint8), cv2.IMREAD_UNCHANGED).reshape(6, 5, channels)
    turned = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    np.testing.assert_array_equal(read[..., turned], image)
