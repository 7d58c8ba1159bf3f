"""Vectors come in the order of the images, normalised as said, and leave no trace in the encoder or generators."""

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from daybreak.data.images import open_images
from daybreak.evaluate.features import features, fingerprint, kept_features, pixels, read_vectors


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


def test_kept_vectors_are_read_again_until_weights_transform_or_order_change(images, tmp_path):
    known = dict(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    encoder = Means()
    first, said = kept_features(tmp_path / "f", encoder, images, **known)
    assert "10 vectors kept" in said and torch.equal(first, features(encoder, images, **known))
    encoder.pooled = lambda images: 1 / 0  # nothing is computed again
    again, said = kept_features(tmp_path / "f", encoder, images, **known)
    assert torch.equal(again, first) and "computed before" in said
    del encoder.pooled
    turned, said = kept_features(tmp_path / "f", encoder, images.subset(np.arange(10)[::-1]), **known)
    assert torch.equal(turned, first.flip(0)) and "kept" in said
    assert "kept" in kept_features(tmp_path / "f", encoder, images, **(known | {"std": (2, 2, 2)}))[1]
    encoder.norm.weight.data.fill_(2)
    moved, said = kept_features(tmp_path / "f", encoder, images, **known)
    assert "kept" in said and not torch.equal(moved, first)
    assert len(list((tmp_path / "f").iterdir())) == 4


def test_a_damaged_file_of_vectors_is_replaced_and_a_folder_that_can_not_be_is_said(images, tmp_path):
    known = dict(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    first, _ = kept_features(tmp_path / "f", Means(), images, **known)
    (path,) = (tmp_path / "f").iterdir()
    whole = path.read_bytes()
    for cut in (0, 40, len(whole) - 20):
        path.write_bytes(whole[:cut])
        again, said = kept_features(tmp_path / "f", Means(), images, **known)
        assert torch.equal(again, first) and "vectors kept" in said and path.read_bytes() == whole
    (tmp_path / "g").write_text("a file where the folder should be")
    found, said = kept_features(tmp_path / "g", Means(), images, **known)
    assert torch.equal(found, first) and "could not be kept" in said


def test_kept_vectors_are_an_arrow_file_that_a_changed_tensor_leaves_alone(images, tmp_path):
    known = dict(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    kept_features(tmp_path, Means(), images, **known)
    (path,) = tmp_path.iterdir()
    table = pa.ipc.open_file(str(path)).read_all()
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 3)
    assert table.schema.metadata[b"data"].decode() == images.fingerprint and b"8 x 8 pixels" in table.schema.metadata[b"transform"]
    vectors, before = read_vectors(path), path.read_bytes()
    assert vectors.tolist() == table["vector"].to_pylist()
    vectors.zero_()
    assert path.read_bytes() == before and read_vectors(path).any()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, (other := pa.table({"label": [1.0]})).schema) as writer:
        writer.write_table(other)
    with pytest.raises(pa.ArrowInvalid, match="expected 'vector' alone"):
        read_vectors(path)


def test_the_fingerprint_is_that_of_the_weights():
    encoder = Means()
    assert fingerprint(encoder) == fingerprint(Means()) and len(fingerprint(encoder)) == 16
    encoder.norm.bias.data[1] += 1e-6
    assert fingerprint(encoder) != fingerprint(Means())
