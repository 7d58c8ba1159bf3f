"""One image to the bytes that a pack holds: its own, or encoded again.

H W height and width in pixels, C channels.
"""

import re
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import PIL
import pyarrow as pa

from ..errors import Refused, nearest
from .decode import Header, Unreadable, decode, probe, resize

ENCODINGS = ("auto", "jpeg", "raw", "lossless")
TINY = 64 * 64  # pixels: a JPEG's tables weigh 600 bytes and its loss is a texture here; raw pixels need no decoder
KEPT = frozenset({"jpeg", "png", "pnm", "ppm", "bmp", "gif", "webp", "tiff"})  # Pillow, hence `datasets`, opens these
JPEG_SIDE = 65_500  # pixels: libjpeg's JPEG_MAX_DIMENSION
SHARD = 4096  # images: what an interruption costs at most


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How images are packed."""

    short_side: int | None = 256  # pixels: images whose shorter side is larger are shrunk to it; None shrinks none
    encoding: Literal["auto", "jpeg", "raw", "lossless"] = "auto"
    quality: int = 90  # of JPEG, 1 to 100
    shard: int = SHARD  # images of the source in each

    def __post_init__(self):
        if self.short_side is not None and self.short_side < 1:
            raise Refused(f"--short-side {self.short_side}; expected pixels, 1 or more, or keep.")
        if self.encoding not in ENCODINGS:
            raise Refused(f"--encoding {self.encoding}; {nearest(self.encoding, list(ENCODINGS))}.")
        if not 1 <= self.quality <= 100:
            raise Refused(f"--quality {self.quality}; expected 1 to 100.")


def versions() -> dict[str, str]:
    """Return the versions of what decodes, encodes and writes: with others the bytes may differ."""
    built = cv2.getBuildInformation()
    found = {name: re.search(rf"^\s+{name}:\s+(.+)$", built, re.M) for name in ("JPEG", "PNG")}
    codecs = {name.lower(): match[1].strip() for name, match in found.items() if match}
    return {"opencv": cv2.__version__, "pillow": PIL.__version__, "pyarrow": pa.__version__} | codecs


def encode(data: np.ndarray, settings: PackSettings) -> np.ndarray:
    """Return an encoded image, (n,) uint8, in the form in which it is packed: often its own bytes.

    An image is shrunk if its shorter side is larger than ``short_side``.  One that is not keeps its bytes if its
    format is the encoding's (for "auto": JPEG, PNG and other files that Pillow opens, raw pixels if it is tiny;
    with ``short_side`` None, any).  What is encoded again is upright, has the channels it had, and 16 bits if it
    is grey and had them.  What JPEG or raw pixels can't hold becomes a PNG.

    Raises Unreadable for what ``decode`` can't read; an image that keeps its bytes is not decoded here.
    """
    header = probe(data)
    short = min(header.height, header.width)
    is_larger = settings.short_side is not None and short > settings.short_side
    side = settings.short_side if is_larger and settings.short_side else short
    height, width = ((x * side + short // 2) // short for x in (header.height, header.width))
    form = _form(header, height, width, settings.encoding)
    if settings.encoding == "auto":
        allowed = {"pnm"} if form == "pnm" and settings.short_side is not None else KEPT
        keeps = settings.short_side is None or header.format in allowed
    else:
        keeps = header.format == form
    if keeps and not is_larger:
        return data
    depth = 16 if header.channels == 1 and header.depth == 16 else 8
    image = decode(data, channels={1: 1, 3: 3}.get(header.channels, 4), depth=depth)
    return _encoded(resize(image, height, width) if is_larger else image, form, settings.quality)


def _form(header: Header, height: int, width: int, encoding: str) -> str:
    """ "jpeg", "png" or "pnm": what an image of this size becomes if it is encoded."""
    has_alpha, is_deep = header.channels in (2, 4), header.channels == 1 and header.depth == 16
    if encoding == "lossless" or has_alpha:
        return "png"
    if encoding == "raw" or (encoding == "auto" and height * width <= TINY):
        return "pnm"
    return "png" if is_deep or max(height, width) > JPEG_SIDE else "jpeg"


def _encoded(image: np.ndarray, form: str, quality: int) -> np.ndarray:
    """Pixels (H, W, C) as the bytes of a file; raw pixels are Netpbm's P5 and P6, 16 bits with the high byte first."""
    if form == "pnm":
        height, width, channels = image.shape
        wide = image.dtype == np.uint16
        start = b"P%d\n%d %d\n%d\n" % (5 if channels == 1 else 6, width, height, 65535 if wide else 255)
        return np.frombuffer(start + (image.astype(">u2") if wide else image).tobytes(), np.uint8)
    swap = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(image.shape[2])
    image = image if swap is None else cv2.cvtColor(image, swap)
    # A restart marker after every unit: 4 % more bytes, and the loader need not decode what a crop leaves out.
    jpeg = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, 1]
    how = jpeg if form == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 6]
    try:
        return cv2.imencode(".jpg" if form == "jpeg" else ".png", image, how)[1].ravel()
    except cv2.error as error:
        raise Unreadable(f"OpenCV can't encode it: {error.err}") from error
