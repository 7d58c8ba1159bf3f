"""Bytes to pixels: what a header says, whether the file is whole, and one decode for training and evaluation.

OpenCV reads JPEG and plain PNG and BMP, raw PGM and PPM are read in place, and Pillow reads everything else.

H W height and width of the upright image, C channels.
"""

import io
import re
import struct
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import Image

MAX_PIXELS = 200_000_000  # a small file may claim a size that fills the memory
ORIENTATION = 0x0112  # the tag of Exif 2.3
Interpolation = Literal["bicubic", "bilinear"]
GROWN: dict[Interpolation, int] = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}
SLIGHT = 1.25  # a shrink so small that no filter is missed
FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # they hold the size: ITU T.81, B.1.1.3
PNM = re.compile(rb"P([56])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")
RGB = cv2.IMREAD_COLOR_RGB
REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}


class Unreadable(Exception):
    """These bytes give no whole image; the message is the reason, without the file's name."""


@dataclass(slots=True)
class Header:
    """What the first bytes of an image say, with height and width in pixels after the Exif rotation."""

    format: str  # "jpeg", "png", "bmp", "pnm" or Pillow's name
    height: int
    width: int
    channels: int  # as stored: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha
    depth: int  # 8 or 16 bits a channel
    orientation: int  # Exif's number, 1 to 8
    complete: bool  # the end of the file is there; for formats read by Pillow only decoding tells
    reader: str  # "opencv", "raw" or "pillow"


def probe(data: np.ndarray) -> Header:
    """Read the header of an encoded image, ``data`` (n,) uint8.

    Raises Unreadable if it is no image or claims more than 200 megapixels.
    """
    if not len(data):
        raise Unreadable("the file is empty")
    if data.dtype != np.uint8 or data.ndim != 1:
        raise ValueError(f"data is {data.dtype} of shape {data.shape}; it must be uint8 of one dimension")
    start = data[:8].tobytes()
    try:
        if start[:3] == b"\xff\xd8\xff":
            header = _probe_jpeg(data)
        elif start == b"\x89PNG\r\n\x1a\n":
            header = _probe_png(data)
        elif start[:2] in (b"P5", b"P6"):
            header = _probe_pnm(data)
        elif start[:2] == b"BM":
            header = _probe_bmp(data)
        else:
            header = _probe_pillow(data)
    except (struct.error, IndexError) as error:
        raise Unreadable("the file ends within its header") from error
    if header.height * header.width > MAX_PIXELS:
        raise Unreadable(f"it claims {header.width} x {header.height} pixels, more than 200 megapixels")
    if not header.height or not header.width:
        raise Unreadable(f"it claims {header.width} x {header.height} pixels")
    if header.orientation >= 5:
        header.height, header.width = header.width, header.height
    return header


def decode(
    data: np.ndarray, *, channels: int, depth: int = 8, background: int = 255, reduce: int = 1
) -> np.ndarray:
    """Decode ``data`` (n,) uint8 into upright pixels (H, W, C), uint8 or (depth 16) uint16.

    Args:
        channels: 1 grey, 3 RGB (for both, alpha is composited on the background), 4 RGBA as stored.
        depth: 8, or 16 for grey images; images of the other depth are scaled to this one's full range.
        background: grey level under transparent pixels, 0 to 255.
        reduce: 1, 2, 4 or 8: a JPEG may be decoded at that fraction of its size, rounded up, which is quicker
            because the high frequencies are never computed; other formats come at full size.

    The array may be read-only and may share memory with ``data``.  Raises Unreadable for what is no image,
    truncated, above 200 megapixels, or without alpha where 4 channels are wanted.
    """
    if channels not in (1, 3, 4) or depth not in (8, 16) or (depth == 16 and channels != 1):
        raise ValueError(f"{channels} channels of {depth} bits; expected 1, 3 or 4 of 8, or 1 of 16")
    header = probe(data)
    if not header.complete:
        raise Unreadable("the file is truncated: its end is missing")
    if channels == 4 or header.reader == "pillow":
        image, orientation = _decode_pillow(data, channels, background)
    elif header.reader == "raw":
        image, orientation = _decode_pnm(data), 1
    else:
        image, orientation = _decode_opencv(data, header, channels, reduce), header.orientation
    if image.dtype == np.uint16 and depth == 8:
        image = cv2.convertScaleAbs(image, alpha=1 / 257)
    elif image.dtype == np.uint8 and depth == 16:
        image = image.astype(np.uint16) * 257
    stored = 1 if image.ndim == 2 else image.shape[2]
    if channels == 1 and stored == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    elif channels == 3 and stored == 1:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if orientation != 1:
        image = _upright(image, orientation)
    return image if image.ndim == 3 else image[:, :, None]


def resize(
    image: np.ndarray, height: int, width: int, out: np.ndarray | None = None, *, grown: Interpolation = "bicubic"
) -> np.ndarray:
    """Resize pixels (H, W, C) to (height, width, C): ``grown`` when an axis grows, area averages when both shrink.

    Where both shrink by no more than 1.25, linear interpolation stands in for area averages: on photographs it is
    as near to a filtered cubic (42 dB at 1.1 and at 1.25, where area averages have 41.5 and 42.6) at a fifth of the time.
    The one function for training, evaluation and any decoder, so that none of them sees other pixels unless a view says so.
    ``out`` (height, width, C) of the same dtype is filled and returned, if given.
    """
    if out is None:
        out = np.empty((height, width, image.shape[2]), image.dtype)
    if image.shape[:2] == (height, width):
        out[:] = image
        return out
    down, across = image.shape[0] / height, image.shape[1] / width
    shrunk = cv2.INTER_LINEAR if max(down, across) <= SLIGHT else cv2.INTER_AREA
    how = GROWN[grown] if min(down, across) < 1 else shrunk
    # OpenCV drops an axis of one channel, and would then not write into a buffer that has it.
    cv2.resize(image, (width, height), dst=out[:, :, 0] if out.shape[2] == 1 else out, interpolation=how)
    return out


def _probe_jpeg(data: np.ndarray) -> Header:
    """Walk the segments up to the first scan: a thumbnail is a whole JPEG, whose end is not the file's."""
    view, at, orientation, size = data.data, 2, 1, None
    while True:
        if view[at] != 0xFF:
            raise Unreadable("a JPEG whose segments are broken")
        marker = view[at + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            at += 1
            continue
        length = view[at + 2] << 8 | view[at + 3]
        if marker in FRAMES:
            precision, height, width, components = struct.unpack_from(">BHHB", view, at + 4)
            size = height, width, components, precision
        elif marker == 0xE1 and bytes(view[at + 4 : at + 10]) == b"Exif\0\0":
            orientation = _orientation(bytes(view[at + 10 : at + 2 + length]))
        elif marker == 0xDA:
            break
        at += 2 + length
    if size is None:
        raise Unreadable("a JPEG without a size")
    height, width, components, precision = size
    # Inside a scan 0xFF is followed by 0 or a restart marker, so these two bytes can only be the end.
    whole = data[-2:].tobytes() == b"\xff\xd9" or data[at:].tobytes().find(b"\xff\xd9") >= 0
    plain = precision == 8 and components in (1, 3)
    return Header(
        "jpeg",
        height,
        width,
        1 if components == 1 else 3,
        8,
        orientation,
        whole,
        "opencv" if plain else "pillow",
    )


def _probe_png(data: np.ndarray) -> Header:
    """Walk all chunks: IEND tells that the file is whole, tRNS that grey or colour has alpha."""
    view, at, orientation, whole, special = data.data, 8, 1, False, False
    width, height, depth, kind = struct.unpack_from(">IIBB", view, 16)
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(kind)
    if channels is None:
        raise Unreadable(f"a PNG of unknown colour type {kind}")
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", view, at)
        if name == b"IEND":
            whole = True
            break
        if name == b"tRNS":
            special, channels = True, channels if kind in (4, 6) else channels + 1
        elif name == b"acTL":
            special = True
        elif name == b"eXIf":
            orientation = _orientation(bytes(view[at + 8 : at + 8 + length]))
        at += 12 + length
    plain = kind in (0, 2) and depth >= 8 and not special
    return Header(
        "png", height, width, channels, max(depth, 8), orientation, whole, "opencv" if plain else "pillow"
    )


def _probe_bmp(data: np.ndarray) -> Header:
    view = data.data
    offset, _, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", view, 10)
    if bits != 24 or compression:  # palettes, masks and run lengths
        return _probe_pillow(data)
    whole = len(data) >= offset + (width * 3 + 3) // 4 * 4 * abs(height)
    return Header("bmp", abs(height), width, 3, 8, 1, whole, "opencv")


def _probe_pnm(data: np.ndarray) -> Header:
    found = PNM.match(data[:1024].tobytes())
    if not found or int(found[4]) not in (255, 65535):
        return _probe_pillow(data)
    channels, width, height = 1 if found[1] == b"5" else 3, int(found[2]), int(found[3])
    depth = 8 if found[4] == b"255" else 16
    whole = len(data) >= found.end() + height * width * channels * depth // 8
    return Header("pnm", height, width, channels, depth, 1, whole, "raw")


def _probe_pillow(data: np.ndarray) -> Header:
    with _opened(data) as image:
        grey = image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")
        bands = (1 if grey else 3) + _has_alpha(image)
        depth = 16 if image.mode == "I" or image.mode.startswith("I;16") else 8
        # Pillow turns a TIFF's size at once or at the decode, by version: ask the file's own tags.
        tags = getattr(image, "tag_v2", {256: image.width, 257: image.height})
        name = (image.format or "unknown").lower()
        return Header(name, tags[257], tags[256], bands, depth, _turned(image), True, "pillow")


def _has_alpha(image: Image.Image) -> bool:
    by_key = "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    return by_key or image.mode in ("RGBA", "RGBa", "LA", "La", "PA")


def _turned(image: Image.Image) -> int:
    number = image.getexif().get(ORIENTATION, 1)
    return number if number in range(1, 9) else 1


def _orientation(tiff: bytes) -> int:
    """The orientation in Exif data, which has the form of a TIFF file; 1 where there is none."""
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, at)
            if tag == ORIENTATION:
                return value if value in range(1, 9) else 1
    except (KeyError, struct.error):  # broken Exif data do not make an image unreadable
        pass
    return 1


def _decode_opencv(data: np.ndarray, header: Header, channels: int, reduce: int) -> np.ndarray:
    colours = RGB if header.channels > 1 else cv2.IMREAD_GRAYSCALE
    if header.depth == 16:  # at the stored depth, because OpenCV's own reduction to 8 bits does not round
        how = cv2.IMREAD_ANYDEPTH | colours
    else:
        how = cv2.IMREAD_GRAYSCALE if channels == 1 else colours
        if header.format == "jpeg" and reduce > 1:
            how |= REDUCED[reduce]
    try:
        image = cv2.imdecode(data, how | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise Unreadable(f"OpenCV can't decode it: {error.err}") from error
    if image is None:
        raise Unreadable(f"damaged {header.format.upper()} data")
    return image


def _decode_pnm(data: np.ndarray) -> np.ndarray:
    found = PNM.match(data[:1024].tobytes())
    assert found, "probe() matched it"
    shape = (int(found[3]), int(found[2]), 1 if found[1] == b"5" else 3)
    kind = np.dtype(np.uint8 if found[4] == b"255" else ">u2")
    size = shape[0] * shape[1] * shape[2] * kind.itemsize
    pixels = data[found.end() : found.end() + size].view(kind).reshape(shape)
    pixels = pixels if kind.itemsize == 1 else pixels.astype(np.uint16)
    return pixels[:, :, 0] if shape[2] == 1 else pixels


def _decode_pillow(data: np.ndarray, channels: int, background: int) -> tuple[np.ndarray, int]:
    """Pixels (H, W) or (H, W, C) of the first frame, not yet turned, and the orientation."""
    with _opened(data) as image:
        try:
            image.load()
            turned = _turned(image)
            if _has_alpha(image):
                pixels = np.asarray(image.convert("RGBA"))
                return (pixels if channels == 4 else _composite(pixels, background)), turned
            if channels == 4:
                raise Unreadable("the image has no alpha channel, and 4 channels are wanted")
            if image.mode == "F":
                raise Unreadable("the pixels are floating-point numbers; expected 8 or 16 bits")
            if image.mode == "I" or image.mode.startswith("I;16"):
                values = np.asarray(image)
                if values.min() < 0 or values.max() > 65535:
                    raise Unreadable("the pixels are 32-bit numbers, some not in 0 to 65535")
                return values.astype(np.uint16), turned
            return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")), turned
        except Unreadable:
            raise
        except Exception as error:  # Pillow's readers of damaged files raise nearly anything
            raise Unreadable(f"Pillow can't decode it: {_said(error)}") from error


def _opened(data: np.ndarray) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))  # type: ignore[arg-type]
    except Image.DecompressionBombError as error:
        raise Unreadable("the header claims more pixels than Pillow allows") from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable(f"not an image: it begins with {data[:8].tobytes()!r}") from error
    except Exception as error:
        raise Unreadable(f"Pillow can't open it: {_said(error)}") from error


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _composite(pixels: np.ndarray, background: int) -> np.ndarray:
    """RGBA (H, W, 4) over a grey level, as RGB (H, W, 3) uint8, rounded."""
    alpha = pixels[:, :, 3:].astype(np.uint32)
    return ((pixels[:, :, :3] * alpha + background * (255 - alpha) + 127) // 255).astype(np.uint8)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the camera's orientation, Exif 2.3 section 4.6.4: 5 to 8 are mirrored along the diagonal."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
