"""DICOM files as plain pictures: a frame becomes PGM or PPM bytes, and nothing else of the file goes on.

So the pixels travel as any others do, and what a file says of a person stays in the file.  Needs pydicom, which
is imported when the first such file is met.

H W height and width, F frames.
"""

import importlib.util
from typing import Any

import numpy as np

from .decode import MAX_PIXELS, Unreadable, _said

START = 132  # bytes up to the end of the mark that says what a file is
INSTALL = 'DICOM files are read by pydicom: pip install "daybreak[dicom]"'
TAGS = (  # all that is read of a header: none of them says whose image it is
    "Rows", "Columns", "NumberOfFrames", "PhotometricInterpretation", "BitsStored", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    *(f"{c}PaletteColorLookupTable{part}" for c in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")),
)


def is_dicom(data: np.ndarray) -> bool:
    """Whether bytes (n,) uint8 are a DICOM file, by the mark behind its preamble (PS3.10, 7.1)."""
    return data[128:START].tobytes() == b"DICM"


def is_installed() -> bool:
    """Whether pydicom is here."""
    return importlib.util.find_spec("pydicom") is not None


def count_frames(data: np.ndarray) -> int:
    """Return how many images a file (n,) uint8 holds; 1 if it does not say so credibly: ``picture`` then says why."""
    try:
        frames = int(_header(data).get("NumberOfFrames") or 1)
    except (Unreadable, ValueError, TypeError):
        return 1
    return frames if 0 < frames <= len(data) else 1


def picture(data: np.ndarray, frame: int | None = None) -> np.ndarray:
    """Return a frame of a DICOM file, ``data`` (n,) uint8, as PGM (grey) or PPM (colour) bytes, (m,) uint8.

    Grey is rescaled (slope and intercept, or the modality's table), then seen through the first window (VOI LUT
    function LINEAR, LINEAR_EXACT or SIGMOID; PS3.3, C.11.2.1.2 and C.11.2.1.3); without a window through all
    values that the stored bits can hold, so that images of one device stay comparable.  Tables in place of a
    window (VOI LUT sequences) are not applied.  MONOCHROME1 is inverted.  It has 16 bits, or 8 where no more
    are stored.  Colour (RGB, YBR, palette) comes as RGB of the stored depth.

    Args:
        frame: from 0; None: there must be only one.

    Raises Unreadable if pydicom is missing or can't decode it, or it claims more than 200 megapixels.
    """
    header = _header(data)
    try:
        height, width, frames = int(header.Rows), int(header.Columns), int(header.get("NumberOfFrames") or 1)
    except (AttributeError, TypeError, ValueError) as error:
        raise Unreadable("a DICOM file that holds no image") from error
    if frame is None and frames > 1:
        raise Unreadable(f"it claims {frames:,} frames in {len(data):,} bytes; expected one image")
    if height * width > MAX_PIXELS:
        raise Unreadable(f"it claims {width} x {height} pixels, more than 200 megapixels")
    try:
        from pydicom.pixels import apply_color_lut, pixel_array

        file: Any = _Memory(data)
        stored = pixel_array(file, index=frame or 0)  # (H, W) or (H, W, 3), as RGB
        kind = header.PhotometricInterpretation
        if kind in ("MONOCHROME1", "MONOCHROME2"):
            pixels = _shown(stored, header, frame or 0)
        else:
            pixels = apply_color_lut(stored, header)[..., :3] if kind == "PALETTE COLOR" else _full(stored, header.BitsStored)
    except Unreadable:
        raise
    except Exception as error:  # pydicom and the decoders behind it raise nearly anything
        raise Unreadable(f"pydicom can't decode it: {_said(error)}") from error
    if pixels.shape not in ((height, width), (height, width, 3)):
        raise Unreadable(f"its pixels are of shape {pixels.shape}; expected one channel or three")
    form = b"P5" if pixels.ndim == 2 else b"P6"
    start = b"%s %d %d %d\n" % (form, width, height, np.iinfo(pixels.dtype).max)
    return np.frombuffer(start + pixels.astype(pixels.dtype.newbyteorder(">")).tobytes(), np.uint8)


class _Memory:
    """Bytes in memory as pydicom reads a file, without the copy that BytesIO makes: of many frames one is wanted."""

    def __init__(self, data: np.ndarray):
        self.data, self.at = data, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, len(self.data))[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        part = self.data[self.at : None if size < 0 else self.at + size].tobytes()
        self.at += len(part)
        return part


def _header(data: np.ndarray) -> Any:
    try:
        import pydicom

        return pydicom.dcmread(_Memory(data), stop_before_pixels=True, specific_tags=list(TAGS))
    except ImportError as error:
        raise Unreadable(INSTALL) from error
    except Exception as error:
        raise Unreadable(f"pydicom can't read its header: {_said(error)}") from error


def _settings(header: Any, frame: int, name: str) -> Any:
    """Where a frame's settings stand: in its own functional group, in that of all frames, or in the header."""
    for groups, at in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        if (found := header.get(groups)) and at < len(found) and (item := found[at].get(name)):
            return item[0]
    return header


def _first(value: Any) -> float | None:
    """The first of one or several numbers; None where there is none."""
    numbers = np.ravel([] if value is None or value == "" else np.asarray(value, np.float64))
    return float(numbers[0]) if len(numbers) else None


def _shown(stored: np.ndarray, header: Any, frame: int) -> np.ndarray:
    """Grey values as one sees them, (H, W) uint8 or uint16, looked up in a table of all that can be stored."""
    from pydicom.pixels import apply_modality_lut

    bits = header.BitsStored
    full = _full_value(bits)
    low = -(1 << bits - 1) if header.PixelRepresentation else 0
    can_be = np.arange(low, low + (1 << bits))
    values = apply_modality_lut(can_be, _settings(header, frame, "PixelValueTransformationSequence")).astype(np.float64)
    window = _settings(header, frame, "FrameVOILUTSequence")
    center, width = _first(window.get("WindowCenter")), _first(window.get("WindowWidth"))
    if center is None or width is None:
        span = values.max() - values.min()
        share = (values - values.min()) / (span if span > 0 else 1.0)
    else:
        share = see(values, center, width, str(window.get("VOILUTFunction") or "LINEAR").upper())
    if header.PhotometricInterpretation == "MONOCHROME1":
        share = 1 - share
    table = np.rint(share * full).astype(np.uint8 if full == 255 else np.uint16)
    return table[stored.clip(low, low + (1 << bits) - 1).astype(np.int32) - low]


def see(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Return how bright ``values`` are through a window, in [0, 1] (PS3.3, C.11.2.1.2.1, C.11.2.1.3.1 and .2).

    LINEAR, with c and w for center and width: 0 up to c - 0.5 - (w - 1) / 2, 1 beyond c - 0.5 + (w - 1) / 2, and
    (x - (c - 0.5)) / (w - 1) + 0.5 between.
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise Unreadable(f"its VOI LUT function is {function}; expected LINEAR, LINEAR_EXACT or SIGMOID")
    if width < 1 and (function == "LINEAR" or width <= 0):
        raise Unreadable(f"its window is {width:g} wide; expected 1 or more")
    if function == "SIGMOID":
        return 1 / (1 + np.exp((4 * (center - values) / width).clip(max=700)))  # e^710 is no float
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if not width:  # a threshold
        return (values > center).astype(np.float64)
    return ((values - center) / width + 0.5).clip(0, 1)


def _full(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Colour over the whole range of its type."""
    full = _full_value(bits)
    return np.rint(pixels * (full / ((1 << bits) - 1))).astype(np.uint8 if full == 255 else np.uint16)


def _full_value(bits: int) -> int:
    """The largest value of the picture that a file of so many bits becomes."""
    if bits > 16:
        raise Unreadable(f"its pixels have {bits} bits; expected at most 16")
    return 255 if bits <= 8 else 65535
