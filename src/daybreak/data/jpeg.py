"""A box out of a JPEG that is still encoded, so that what lies outside is never decoded.

A minimum coded unit (MCU: 16 x 16 pixels for colour at half resolution, 8 x 8 for grey) depends on the one before it by
its mean alone, and a restart marker ends even that (ITU T.81, E.1.4).  Where a marker follows every unit, as in this
project's packs (4 % more bytes, no more time), any rectangle of units is the scan of a smaller JPEG.

H W height and width of the image, h w of the box, in pixels.
"""

import struct

import numpy as np

MARGIN = 2  # pixels: libjpeg smooths colours of half resolution with the next one, beyond the box
WORTH = 0.85  # above this share of the units, decoding all is as quick as cutting
END = b"\xff\xd9"


def cut(data: np.ndarray, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, int, int, bool]:
    """Return a JPEG that holds this box of the JPEG ``data`` (n,) uint8, the row and column it begins at, and False.

    Inside the box its pixels are those of the whole, bit for bit.  It begins at or before the box and ends at or
    behind it.  What has no restart marker after every unit, is progressive, turned by Exif, damaged, no JPEG, smaller
    than the box says, or nearly all inside it comes back as it is, with 0, 0 and True: it is the whole.
    """
    found = _scan(data)
    if found is None:
        return data, 0, 0, True
    frame, scan, full_height, full_width, tall, wide = found
    if top + height > full_height or left + width > full_width:
        return data, 0, 0, True
    first, begin = max(top - MARGIN, 0) // tall, max(left - MARGIN, 0) // wide  # in units, as are the next
    last = -(-min(top + height + MARGIN, full_height) // tall)
    end = -(-min(left + width + MARGIN, full_width) // wide)
    rows, columns = -(-full_height // tall), -(-full_width // wide)
    if (last - first) * (end - begin) > WORTH * rows * columns:
        return data, 0, 0, True
    coded = data[scan:]
    at = np.flatnonzero(coded[:-1] == 0xFF)
    at = at[coded[at + 1] & 0xF8 == 0xD0]
    if len(at) != rows * columns - 1:
        return data, 0, 0, True
    edges = np.empty(rows * columns + 1, np.int64)  # of units, each with the marker behind it
    edges[0], edges[1:-1], edges[-1] = 0, at + 2, len(coded)
    small = bytearray(data[:scan])
    size = min(last * tall, full_height) - first * tall, min(end * wide, full_width) - begin * wide
    struct.pack_into(">HH", small, frame, *size)
    starts, stops = (x.reshape(rows, columns)[first:last, begin:end] for x in (edges[:-1], edges[1:]))
    runs = zip(starts[:, 0].tolist(), stops[:, -1].tolist(), strict=True)
    small += b"".join([coded.data[start:stop] for start, stop in runs])
    made = np.frombuffer(small, np.uint8)
    lengths = (stops - starts).ravel()
    made[scan - 1 + lengths.cumsum()] = 0xD0 | np.arange(lengths.size) & 7  # markers count in turn
    made[-2:] = tuple(END)
    return made, first * tall, begin * wide, False


def _scan(data: np.ndarray) -> tuple[int, int, int, int, int, int] | None:
    """Where H stands in the header, where the scan begins, H, W, and a unit's height and width; None if it can't be cut."""
    view, at, frame, restarts = data.data, 2, None, 0
    if data[:2].tobytes() != b"\xff\xd8" or data[-2:].tobytes() != END:
        return None
    try:
        while view[at] == 0xFF:
            marker, length = view[at + 1], view[at + 2] << 8 | view[at + 3]
            if marker == 0xC0:  # baseline
                frame = at + 5
            elif marker == 0xDD:
                restarts = view[at + 4] << 8 | view[at + 5]
            elif marker == 0xE1:  # Exif may turn it
                return None
            elif marker == 0xDA:
                if frame is None or restarts != 1:
                    return None
                height, width, components = struct.unpack_from(">HHB", view, frame)
                if view[at + 4] != components:
                    return None
                sampling = [view[frame + 6 + 3 * i] for i in range(components)]
                across = 1 if components == 1 else max(byte >> 4 for byte in sampling)
                down = 1 if components == 1 else max(byte & 15 for byte in sampling)
                return frame, at + 2 + length, height, width, 8 * down, 8 * across
            at += 2 + length
    except (IndexError, struct.error):
        pass
    return None
