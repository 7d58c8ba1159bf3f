"""Every kind of image decodes to the pixels it holds, upright, or says why not."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from daybreak.data.decode import Unreadable, decode, probe, resize


def picture(height: int = 60, width: int = 96) -> np.ndarray:
    """(height, width, 3) uint8, smooth, no two corners alike."""
    y, x = np.mgrid[:height, :width].astype(float)
    waves = [128 + 120 * np.sin(x / 17 + y / 23), 128 + 100 * np.cos(x / 11), 255 * y / height]
    return np.stack(waves, -1).astype(np.uint8)


def encode(image: np.ndarray | Image.Image, kind: str, **options) -> np.ndarray:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def by_pillow(data: np.ndarray, mode: str) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data.tobytes()))).convert(mode))


def farthest(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    wanted, header = by_pillow(data, "RGB"), probe(data)
    assert (header.height, header.width) == wanted.shape[:2]
    assert farthest(decode(data, channels=3), wanted) <= 1
    assert farthest(decode(data, channels=1)[:, :, 0], by_pillow(data, "L")) <= 2
    if kind == "JPEG":
        assert decode(data, channels=3, reduce=2).shape[:2] == (-(-header.height // 2), -(-header.width // 2))


@pytest.mark.parametrize("kind, tolerance", [("JPEG", 1), ("PNG", 0), ("BMP", 0), ("PPM", 0)])
@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("L", 1)])
def test_opencv_and_pillow_give_the_same_pixels(kind, tolerance, mode, channels):
    data = encode(Image.fromarray(picture()).convert(mode), kind)
    wanted = by_pillow(data, mode).reshape(60, 96, channels)
    assert farthest(decode(data, channels=channels), wanted) <= tolerance
    assert probe(data).channels == channels or kind == "BMP"


def test_a_colour_image_is_asked_for_in_grey_and_a_grey_one_in_colour():
    colour, grey = encode(picture(), "PNG"), encode(Image.fromarray(picture()).convert("L"), "PNG")
    assert farthest(decode(colour, channels=1)[:, :, 0], by_pillow(colour, "L")) <= 1
    assert farthest(decode(grey, channels=3), by_pillow(grey, "RGB")) == 0


@pytest.mark.parametrize(
    "data, wanted",
    [
        (encode(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), "JPEG"), (254, 0, 0)),
        (encode(Image.new("RGB", (8, 6), (10, 200, 30)).quantize(4), "PNG"), (10, 200, 30)),
        (encode(Image.new("RGB", (8, 6), (10, 200, 30)), "GIF"), (10, 200, 30)),
        (encode(Image.new("RGB", (8, 6), (10, 200, 30)), "WEBP", lossless=True), (10, 200, 30)),
        (encode(Image.new("RGB", (8, 6), (10, 200, 30)), "TIFF", compression="tiff_lzw"), (10, 200, 30)),
        (encode(Image.new("1", (8, 6), 1), "PNG"), (255, 255, 255)),
        (encode(Image.new("1", (8, 6), 1), "TIFF"), (255, 255, 255)),
        (encode(Image.new("1", (8, 6), 1), "PPM"), (255, 255, 255)),
        (encode(Image.new("L", (8, 6), 77), "BMP"), (77, 77, 77)),
        (encode(Image.new("RGBA", (8, 6), (10, 200, 30, 0)), "PNG"), (100, 100, 100)),
        (encode(Image.new("RGBA", (8, 6), (10, 200, 30, 51)), "PNG"), (82, 120, 86)),
        (encode(Image.new("RGBA", (8, 6), (10, 200, 30, 255)), "WEBP", lossless=True), (10, 200, 30)),
        (encode(Image.new("LA", (8, 6), (200, 51)), "PNG"), (120, 120, 120)),
        (encode(Image.new("RGB", (8, 6), (10, 200, 30)), "PNG", transparency=(10, 200, 30)), (100, 100, 100)),
        (encode(Image.new("P", (8, 6), 0), "GIF", transparency=0), (100, 100, 100)),
    ],
    ids=["cmyk", "palette", "gif", "webp", "tiff", "bit-png", "bit-tiff", "bit-pbm", "grey-bmp", "clear", "fifth",
         "opaque", "grey-alpha", "key", "gif-clear"],
)  # alpha 51 is a fifth of the colour over a background of 100
def test_odd_kinds_give_their_colour(data, wanted):
    image = decode(data, channels=3, background=100)
    assert image.shape == (6, 8, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - wanted).max() <= 1
    grey = 0.299 * wanted[0] + 0.587 * wanted[1] + 0.114 * wanted[2]
    assert np.abs(decode(data, channels=1, background=100) - grey).max() <= 2


def test_four_channels_are_as_stored_or_refused():
    data = encode(Image.new("RGBA", (8, 6), (10, 200, 30, 51)), "PNG")
    assert (decode(data, channels=4) == (10, 200, 30, 51)).all()
    with pytest.raises(Unreadable, match="no alpha"):
        decode(encode(picture(), "JPEG"), channels=4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_kept_or_scaled(kind):
    values = (np.arange(48, dtype=np.uint16).reshape(6, 8) * 1394)  # up to 65518
    data = encode(values, kind)
    assert probe(data).depth == 16
    assert (decode(data, channels=1, depth=16)[:, :, 0] == values).all()
    assert (decode(data, channels=1)[:, :, 0] == np.rint(values / 257)).all()
    assert (decode(data, channels=3) == np.rint(values / 257)[..., None]).all()
    eight = encode(np.full((6, 8), 77, np.uint8), "PNG")
    assert (decode(eight, channels=1, depth=16) == 77 * 257).all()


def test_sixteen_bit_colour_is_scaled():
    values = (np.arange(144, dtype=np.uint16).reshape(6, 8, 3) * 450)
    for suffix in (".png", ".ppm"):
        data = cv2.imencode(suffix, values[:, :, ::-1])[1].reshape(-1)
        assert (decode(data, channels=3) == np.rint(values / 257)).all()


def test_floating_point_pixels_are_refused():
    with pytest.raises(Unreadable, match="floating"):
        decode(encode(Image.new("F", (8, 6), 0.5), "TIFF"), channels=1)


ANY = {
    "jpeg": encode(picture(), "JPEG"),
    "progressive": encode(picture(), "JPEG", progressive=True),
    "png": encode(picture(), "PNG"),
    "grey png": encode(Image.fromarray(picture()).convert("L"), "PNG"),
    "palette": encode(Image.fromarray(picture()).quantize(32), "PNG"),
    "bmp": encode(picture(), "BMP"),
    "ppm": encode(picture(), "PPM"),
    "webp": encode(picture(), "WEBP"),
    "tiff": encode(picture(), "TIFF"),
    "gif": encode(picture(), "GIF"),
}


@pytest.mark.parametrize("kind", ANY)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_refused(kind, share):
    data = ANY[kind]
    assert decode(data, channels=3).shape == (60, 96, 3)
    with pytest.raises(Unreadable):
        decode(data[: int(len(data) * share)], channels=3)


def test_a_thumbnail_does_not_hide_that_a_jpeg_is_truncated():
    thumbnail = ANY["jpeg"].tobytes()
    segment = b"Exif\0\0" + thumbnail
    whole = ANY["jpeg"].tobytes()
    data = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + whole[2:]
    assert decode(np.frombuffer(data, np.uint8), channels=3).shape == (60, 96, 3)
    with pytest.raises(Unreadable, match="truncated"):
        decode(np.frombuffer(data[:-200], np.uint8), channels=3)


def test_bytes_after_the_end_do_no_harm():
    data = np.concatenate([ANY["jpeg"], np.zeros(500, np.uint8)])
    assert probe(data).complete and decode(data, channels=3).shape == (60, 96, 3)


def test_a_header_that_claims_too_much_is_refused_before_decoding():
    size = struct.pack(">II", 20_000, 20_000)
    content = b"IHDR" + size + b"\x08\0\0\0\0"
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    with pytest.raises(Unreadable, match="megapixels"):
        probe(np.frombuffer(png, np.uint8))


@pytest.mark.parametrize("data, reason", [(b"", "empty"), (b"<html>no</html>", "not an image"), (b"\xff\xd8\xff", "header")])
def test_what_is_no_image_is_refused(data, reason):
    with pytest.raises(Unreadable, match=reason):
        probe(np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("kind", ANY)
def test_damaged_bytes_give_pixels_or_a_reason_and_nothing_else(kind):
    random, data = np.random.default_rng(0), ANY[kind]
    for _ in range(60):
        damaged = data.copy()
        damaged[random.integers(0, len(data) if random.random() < 0.5 else 60, 3)] = random.integers(0, 256, 3)
        try:
            image = decode(damaged, channels=3)
        except Unreadable as reason:
            assert str(reason)
        else:
            assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resize_fills_the_slot_it_is_given(channels, dtype):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels)).astype(dtype)
    slots = np.zeros((2, 5, 10, channels), dtype)
    assert resize(image[:, 5:], 5, 10, out=slots[1]) is not None
    assert (slots[1] == resize(np.ascontiguousarray(image[:, 5:]), 5, 10)).all() and not slots[0].any()


def test_resize_averages_areas_when_shrinking_and_is_linear_when_hardly_and_cubic_when_growing():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    means = image.reshape(5, 4, 10, 3, 3).mean((1, 3))
    assert np.abs(resize(image, 5, 10) - means).max() <= 0.51
    assert (resize(image, 40, 25) == cv2.resize(image, (25, 40), interpolation=cv2.INTER_CUBIC)).all()
    assert (resize(image, 16, 25) == cv2.resize(image, (25, 16), interpolation=cv2.INTER_LINEAR)).all()
    assert (resize(image, 15, 25) == cv2.resize(image, (25, 15), interpolation=cv2.INTER_AREA)).all()
    assert (resize(image, 20, 30) == image).all()
