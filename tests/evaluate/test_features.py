"""Vectors come in the order of the images, normalised as said, and leave no trace in the encoder or generators."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from daybreak.data.images import open_images
from daybreak.evaluate.features import features, pixels


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(10):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((8, 8, 3), (25 * i, 10 * i, 5 * i), np.uint8))  # BGR
    return open_images(folder)


class Means(nn.Module):
    """An encoder that gives each channel's mean, and would change with any batch seen in training mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.frozen = nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.frozen.eval()

    def pooled(self, images):
        return self.frozen(self.norm(images)).mean((2, 3))


def test_order_and_normalisation(images):
    values = torch.arange(10)[:, None] * torch.tensor([5.0, 10.0, 25.0]) / 255
    found = features(Means(), images, size=(8, 8), batch_size=3)
    expected = (values - torch.tensor(images.mean)) / torch.tensor(images.std)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    other = features(Means(), images, size=(4, 4), mean=(0.0, 0.5, 0.0), std=(1.0, 2.0, 1.0))
    torch.testing.assert_close(other, (values - torch.tensor([0, 0.5, 0])) / torch.tensor([1, 2, 1.0]), atol=1e-4,
                               rtol=1e-4)


def test_mode_weights_and_generators_are_left_as_they_were(images):
    encoder, state = Means(), torch.get_rng_state()
    before = encoder.norm.running_mean.clone()
    assert features(encoder, images, size=(8, 8)).requires_grad is False
    assert encoder.training and encoder.norm.training and not encoder.frozen.training
    assert torch.equal(encoder.norm.running_mean, before) and torch.equal(torch.get_rng_state(), state)


def test_mode_is_restored_after_an_error(images):
    encoder = Means()
    encoder.pooled = lambda images: 1 / 0
    with pytest.raises(ZeroDivisionError):
        features(encoder, images, size=(8, 8))
    assert encoder.training


def test_narrow_precision_gives_float32_close_by(images):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def pooled(self, images):
            return self.layer(images.mean((2, 3)))

    encoder = Linear()
    narrow = features(encoder, images, size=(8, 8), precision="bf16-mixed")
    wide = features(encoder, images, size=(8, 8))
    assert narrow.dtype == torch.float32 and not torch.equal(narrow, wide)
    torch.testing.assert_close(narrow, wide, atol=0.05, rtol=0.05)


def test_pixels_are_in_the_unit_range(images):
    found = pixels(images, (4, 2))
    assert found.shape == (10, 3 * 4 * 2)
    torch.testing.assert_close(found[9].view(3, 8)[:, 0], torch.tensor([45, 90, 225]) / 255)
