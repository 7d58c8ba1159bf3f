"""A box cut out of an encoded JPEG decodes to the pixels of the whole, bit for bit; what can't be cut comes back as it is."""

import cv2
import numpy as np
import pytest
from PIL import Image
from test_decode import encode, picture

from daybreak.data.decode import decode
from daybreak.data.encode import PackSettings
from daybreak.data.images import open_images
from daybreak.data.jpeg import cut
from daybreak.data.loader import Loader, place
from daybreak.data.pack import write_pack
from daybreak.data.sources import open_source
from daybreak.data.views import View

SAMPLINGS = {
    "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "422": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Strong edges everywhere, so that a pixel that is off shows."""
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)
    return cv2.GaussianBlur(image, (3, 3), 0).reshape(height, width, channels)


def with_restarts(image: np.ndarray, interval: int = 1, **options: int) -> np.ndarray:
    how = {cv2.IMWRITE_JPEG_RST_INTERVAL: interval, cv2.IMWRITE_JPEG_QUALITY: 90} | {
        int(key): value for key, value in options.items()
    }
    return cv2.imencode(".jpg", image, [x for pair in how.items() for x in pair])[1].ravel()


@pytest.mark.parametrize("sampling", [*SAMPLINGS, "grey"])
@pytest.mark.parametrize("height, width", [(97, 150), (64, 64), (33, 260), (240, 17)])
def test_a_box_has_the_pixels_of_the_whole(sampling, height, width):
    channels = 1 if sampling == "grey" else 3
    how = {} if channels == 1 else {str(int(cv2.IMWRITE_JPEG_SAMPLING_FACTOR)): SAMPLINGS[sampling]}
    data = with_restarts(noise(height, width, channels), **how)
    whole, draw, cuts = decode(data, channels=channels), np.random.default_rng(0), 0
    for _ in range(60):
        tall, wide = draw.integers(1, height + 1), draw.integers(1, width + 1)
        top, left = draw.integers(0, height - tall + 1), draw.integers(0, width - wide + 1)
        small, down, right, is_whole = cut(data, int(top), int(left), int(tall), int(wide))
        assert is_whole == (small is data)
        image = decode(small, channels=channels)
        got = image[top - down :, left - right :][:tall, :wide]
        assert np.array_equal(got, whole[top : top + tall, left : left + wide])
        assert is_whole == (image.size == whole.size)
        cuts += not is_whole
    assert cuts > 20


def test_what_can_not_be_cut_comes_back_as_it_is():
    image, exif = picture(96, 96), Image.Exif()
    exif[0x0112] = 6
    whole = with_restarts(image)
    kinds = {
        "no markers": encode(image, "JPEG"),
        "every fourth": with_restarts(image, 4),
        "png": encode(image, "PNG"),
        "progressive": encode(image, "JPEG", progressive=True, restart_marker_blocks=1),
        "turned": encode(image, "JPEG", exif=exif, restart_marker_blocks=1),
        "truncated": whole[:-300],
        "empty": whole[:0],
        "a marker lost": np.delete(whole, np.flatnonzero((whole[:-1] == 0xFF) & (whole[1:] == 0xD3))[0] + np.arange(2)),
    }
    for kind, data in kinds.items():
        same, *rest = cut(data, 10, 10, 20, 20)
        assert same is data and rest == [0, 0, True], kind
    assert not cut(whole, 70, 70, 20, 20)[3] and cut(whole, 80, 70, 20, 20)[3]  # a box that goes beyond the image


def test_the_loader_makes_the_same_views_of_a_pack_as_whole_images_give(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(12):
        cv2.imwrite(str(tmp_path / "in" / f"{i}.png"), noise(120 + 7 * i, 150 - 3 * i))
    write_pack(open_source(tmp_path / "in"), tmp_path / "out", PackSettings(short_side=96, encoding="jpeg"))
    images = open_images(tmp_path / "out")
    views = [View(size=40, scale=(0.1, 0.4)), View(size=24, scale=(0.05, 0.2), count=2)]
    loader = Loader(images, views, 6, seed=0, threads=2)
    for _ in range(4):
        batch = next(loader)
        corners = (batch.boxes * batch.sizes.repeat(1, 2)).round().int().tolist()  # (V, B, 4)
        for row, i in enumerate(batch.index.tolist()):
            image = images.decode(i)
            for view, made in enumerate(batch.images):
                top, left, bottom, right = corners[view][row]
                wanted = np.empty(made.shape[1:], np.uint8)
                place(image[top:bottom, left:right], wanted, flip=bool(batch.flips[view, row]))
                assert np.array_equal(made[row].numpy(), wanted)
    loader.close()
