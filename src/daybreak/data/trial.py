"""What images would cost the loader in a pack: a few of them are packed in memory and loaded on one thread."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..errors import Failed
from .decode import Unreadable, probe
from .encode import PackSettings, encode
from .images import Images
from .loader import Loader
from .sources import Source
from .views import View

ROOM = 8 / 7  # a pack's short side beside the largest view's: 256 to 224, the field's custom
MULTIPLE = 32  # pixels
ENCODINGS: tuple[Literal["auto", "raw"], ...] = ("auto", "raw")  # what is tried, the one that takes less space first
MOST, FEWEST = 32, 4  # images in a trial
LOADS = 2  # batches before what is measured, which touch the memory for the first time, and of what is measured


@dataclass(frozen=True)
class Packing:
    """What one kind of pack would leave of an image's cost, as shares of what it costs now."""

    short_side: int  # pixels
    encoding: str  # "auto" or "raw"
    processor: float  # time of a processor
    size: float  # bytes


def short_side(views: Sequence[View]) -> int:
    """Return the short side in pixels, a multiple of 32, at which images serve all of the views."""
    largest = max(max(view.height, view.width) for view in views)
    return -(-round(largest * ROOM) // MULTIPLE) * MULTIPLE


def try_packings(images: Images, views: Sequence[View], seconds: float, one: float) -> list[Packing]:
    """Measure packs that suit the views, beside the images as they are, in about ``seconds``.

    ``one`` is the time in seconds that a thread needs for an image; it decides how many are tried (4 to 32).
    The trial counts time of a processor, so that other threads at work hardly change its shares.
    """
    count = int(seconds / ((2 * LOADS + 2) * max(one, 1e-6)))
    chosen = np.linspace(0, len(images) - 1, min(max(FEWEST, min(count, MOST)), len(images))).astype(int)
    few, side, found = images.subset(np.unique(chosen)), short_side(views), []
    with contextlib.suppress(Unreadable, Failed):  # images that went bad since the survey are the loader's to tell of
        now = cost(few, views)
        sizes = [sum(few.read(i).nbytes for i in range(len(few)))]
        for encoding in ENCODINGS:
            packed, size = pack(few, PackSettings(short_side=side, encoding=encoding))
            if size not in sizes:  # else the bytes are those there were
                found.append(Packing(side, encoding, cost(packed, views) / now, size / sizes[0]))
            sizes.append(size)
    return found


def cost(images: Images, views: Sequence[View]) -> float:
    """Return the seconds of a processor that an image takes."""
    loader = Loader(images, views, len(images), seed=0, threads=1, ahead=1, labels=False)
    with contextlib.closing(loader):
        for _ in range(LOADS):
            next(loader)
        before = loader.times
        for _ in range(LOADS):
            next(loader)
        times = loader.times.minus(before)
        return times.processor / times.images


def pack(images: Images, settings: PackSettings) -> tuple[Images, int]:
    """Return images as a pack would hold them, in memory, and their bytes in sum.

    Raises Unreadable for an image that can't be decoded.
    """
    data = [encode(images.read(i), settings) for i in range(len(images))]
    headers = [probe(item) for item in data]
    survey = replace(images.survey, sizes=np.array([(header.height, header.width) for header in headers], np.int32))
    source = Source(images.source.path, "trial", images.keys, data.__getitem__)
    return Images(source, survey, np.arange(len(data)), images.background), sum(item.nbytes for item in data)
