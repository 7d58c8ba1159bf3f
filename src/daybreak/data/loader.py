"""Batches of crops, ahead of time: every pixel is a function of the seed, the epoch and the image's position.

B samples a rank, V views (flat), N images, C channels, h w pixels of a view.
"""

import operator
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ..errors import Failed, Refused
from .batch import Batch
from .decode import Interpolation, Unreadable, resize
from .images import Images
from .jpeg import cut
from .philox import permutation
from .threads import default_threads, quiet_opencv
from .views import View, draw_boxes, expand, fractions

SPARE = 2  # how many times its view's size a crop must have after a reduced decode
REPLACEMENTS = 100  # images tried in place of one that fails


class Times(NamedTuple):
    """What ``images`` images have cost the loader's threads: seconds in sum, one image after the other."""

    images: int = 0
    read: float = 0.0  # by the clock, as are the next two: bytes
    decode: float = 0.0  # pixels
    place: float = 0.0  # crop, resize, flip
    processor: float = 0.0  # time of a processor in all three; the rest was waiting, for a disk or a processor

    def plus(self, other: "Times") -> "Times":
        return Times(*map(operator.add, self, other))

    def minus(self, other: "Times") -> "Times":
        return Times(*map(operator.sub, self, other))


class Slot:
    """Memory of one batch, used again and again."""

    def __init__(self, views: list[View], size: int, channels: int, dtype: torch.dtype, pin: bool):
        self.tensors = [
            torch.empty(size, channels, view.height, view.width, dtype=dtype, pin_memory=pin)
            for view in views
        ]
        self.buffers = [tensor.numpy() for tensor in self.tensors]  # V times (B, C, h, w), the same memory
        self.copied: torch.cuda.Event | None = None  # when the device has read what was last in here


class Job:
    """One batch on its way."""

    def __init__(self, epoch: int, position: int, index: np.ndarray, slot: Slot):
        self.epoch, self.position, self.index, self.slot = epoch, position, index, slot
        self.sizes = np.empty((0, 2), np.int32)  # (B, 2)
        self.boxes = np.empty((0, 0, 4), np.int32)  # (V, B, 4) in pixels
        self.flips = np.empty((0, 0), bool)  # (V, B)
        self.plan: Future[list[Future[None]]] | None = None

    def wait(self) -> None:
        assert self.plan is not None
        for piece in self.plan.result():
            piece.result()

    def give_up(self) -> None:
        """Take back what no thread has begun and wait for the rest, however it ends."""
        assert self.plan is not None
        if not self.plan.cancel() and self.plan.exception() is None:
            pieces = self.plan.result()
            for piece in pieces:
                piece.cancel()
            wait(pieces)


class Loader:
    """Endless batches of views, decoded, cropped, resized and flipped in threads.

    Args:
        images: what to load.
        views: as a method declares them; ``count`` is applied here.
        batch_size: samples for this rank; all ranks together take ``batch_size * world`` rows of the epoch's
            order, and the last incomplete batch of an epoch is dropped.
        seed: of order, boxes and flips.
        threads: None takes one for each processor.
        ahead: batches made before they are asked for.
        labels: whether a batch carries them.
        pin: page-locked memory, for copies to a GPU that run beside its work.
        clock: seconds, for ``waited`` and ``times``.

    A batch's images lie in memory that is used again: they stay as they are until ``ahead`` further batches
    were taken; with ``pin``, copies to the device asked for before the next batch are finished first.  All
    else in a batch is its own.  An image that fails to decode is replaced by the next one that does, and
    noted in ``bad`` (position: reason).  ``waited`` counts the seconds spent waiting for batches, ``times`` what
    the images have cost so far.

    After a KeyboardInterrupt or a failure in ``next`` the loader stands where it stood before.

    Raises Refused if the images are too few for one batch.
    """

    def __init__(
        self, images: Images, views: Sequence[View], batch_size: int, *, seed: int, rank: int = 0,
        world: int = 1, threads: int | None = None, ahead: int = 2, labels: bool = True, pin: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ):
        if batch_size * world > len(images):
            raise Refused(
                f"{images.source.path}: a batch of {batch_size * world:,} is more than the {len(images):,} "
                f"images; use --batch-size {len(images)} or less."
            )
        if batch_size < 1 or ahead < 1 or not 0 <= rank < world:
            raise ValueError(f"batch_size {batch_size}, ahead {ahead}, rank {rank} of {world}")
        quiet_opencv()
        self.images, self.batch_size, self.seed, self.rank, self.world = images, batch_size, seed, rank, world
        self.ahead, self.pin, self.sizes = ahead, pin, images.sizes
        self.labels = torch.from_numpy(images.labels.values) if labels and images.labels is not None else None
        self.bad: dict[int, str] = {}
        self.waited, self.times, self.clock, self.lock = 0.0, Times(), clock, threading.Lock()
        self.threads = threads or default_threads()
        self.pool = ThreadPoolExecutor(self.threads, "loader")
        self.planner = ThreadPoolExecutor(1, "loader plan")  # a plan must not wait behind pieces
        self.epoch = self.position = 0  # of the next batch to be yielded
        self.order = -1, np.empty(0, np.int64)  # epoch and its permutation
        self.jobs: deque[Job] = deque()
        self.set_views(views)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.images) // (self.batch_size * self.world)

    def set_views(self, views: Sequence[View]) -> None:
        """Make other views from the next batch on."""
        self._drop()
        self.views = expand(views)
        dtype = torch.uint8 if self.images.depth == 8 else torch.uint16
        # A batch in hand must outlive ``ahead`` more, while as many are being made.
        self.slots = deque(
            Slot(self.views, self.batch_size, self.images.channels, dtype, self.pin)
            for _ in range(2 * self.ahead)
        )
        self.yielded: Slot | None = None

    def state_dict(self) -> dict[str, int]:
        """Return epoch and position in it, in batches of all ranks, of the next batch to be yielded."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state; the next batch is the one it names."""
        self._drop()
        self.epoch, self.position = state["epoch"], state["position"]

    def close(self) -> None:
        """Stop the threads, which finish the images in hand."""
        self._drop()
        self.planner.shutdown()
        self.pool.shutdown()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.yielded is not None and self.pin:
            self.yielded.copied = torch.cuda.Event()
            self.yielded.copied.record()
        start = self.clock()
        self._fill()
        self.jobs[0].wait()  # which may be interrupted: the batch then stays the next one
        job = self.jobs.popleft()
        self.epoch, self.position = self._after(job.epoch, job.position)
        self._fill()
        self.waited += self.clock() - start
        self.yielded = job.slot
        index = torch.from_numpy(job.index)
        return Batch(
            images=list(job.slot.tensors),
            boxes=torch.from_numpy(fractions(job.boxes, job.sizes)),
            flips=torch.from_numpy(job.flips),
            index=index,
            sizes=torch.from_numpy(job.sizes),
            labels=None if self.labels is None else self.labels[index],
            epoch=job.epoch,
        )

    def _after(self, epoch: int, position: int) -> tuple[int, int]:
        return (epoch, position + 1) if position + 1 < self.steps_per_epoch else (epoch + 1, 0)

    def _fill(self) -> None:
        """Start batches until ``ahead`` are on their way."""
        while len(self.jobs) < self.ahead:
            last = self.jobs[-1] if self.jobs else None
            epoch, position = self._after(last.epoch, last.position) if last else (self.epoch, self.position)
            if self.order[0] != epoch:
                self.order = epoch, permutation(self.seed, epoch, len(self.images))
            start = (position * self.world + self.rank) * self.batch_size
            job = Job(epoch, position, self.order[1][start : start + self.batch_size].copy(), self.slots[0])
            self.slots.rotate(-1)
            job.plan = self.planner.submit(self._plan, job)
            self.jobs.append(job)

    def _drop(self) -> None:
        """Give up the batches on their way."""
        while self.jobs:
            self.jobs.popleft().give_up()

    def _plan(self, job: Job) -> list[Future[None]]:
        """Draw the boxes of a batch and share its images out among the threads."""
        if job.slot.copied is not None:
            job.slot.copied.synchronize()
        job.sizes = self.sizes[job.index]
        job.boxes, job.flips = draw_boxes(self.views, job.sizes, job.index, self.seed, job.epoch)
        least = np.array([[view.height, view.width] for view in self.views])[:, None]  # (V, 1, 2)
        # Safe while each crop keeps twice its view's size: at once the size, the box's edges, which fall on
        # whole pixels of the reduced image, would move what is seen by half a pixel of the view.
        spare = (job.boxes[:, :, 2:] // (SPARE * least)).min((0, 2))  # (B,)
        reduce = np.select([spare >= 8, spare >= 4, spare >= 2], [8, 4, 2], 1).tolist()
        starts, ends = job.boxes[:, :, :2].min(0), (job.boxes[:, :, :2] + job.boxes[:, :, 2:]).max(0)
        wanted = np.hstack([starts, ends - starts]).tolist()  # B times the box around all views
        size = max(1, -(-self.batch_size // (4 * self.threads)))
        return [
            self.pool.submit(self._make, job, reduce, wanted, range(at, min(at + size, self.batch_size)))
            for at in range(0, self.batch_size, size)
        ]

    def _make(self, job: Job, reduce: list[int], wanted: list[list[int]], rows: range) -> None:
        """Decode some images of a batch and put their views in the slot."""
        read = decoding = placing = 0.0
        start, processor = self.clock(), time.thread_time()
        for row in rows:
            got, top, left, whole = start, 0, 0, True
            try:
                data = self.images.read(int(job.index[row]))
                got = self.clock()
                if reduce[row] == 1:
                    data, top, left, whole = cut(data, *wanted[row])
                image = self.images.pixels(data, reduce[row])
            except Unreadable as reason:
                image, top, left, whole = self._replace(job, row, str(reason)), 0, 0, True
            decoded = self.clock()
            height, width = job.sizes[row].tolist() if whole else image.shape[:2]
            for view, buffer in enumerate(job.slot.buffers):
                down, right, tall, wide = job.boxes[view, row].tolist()
                crop = _crop(image, (down - top, right - left, tall, wide), height, width)
                place(crop, buffer[row], flip=bool(job.flips[view, row]), grown=self.views[view].interpolation)
            end = self.clock()
            read, decoding, placing = read + got - start, decoding + decoded - got, placing + end - decoded
            start = end
        done = Times(len(rows), read, decoding, placing, time.thread_time() - processor)
        with self.lock:
            self.times = self.times.plus(done)

    def _replace(self, job: Job, row: int, reason: str) -> np.ndarray:
        """Put the next image that decodes in the place of a bad one: its pixels, boxes and all."""
        bad = int(job.index[row])
        self.bad[bad] = reason
        for step in range(1, min(REPLACEMENTS, len(self.images))):
            other = (bad + step) % len(self.images)
            try:
                image = self.images.decode(other)
            except Unreadable as again:
                self.bad[other] = str(again)
                continue
            job.index[row], job.sizes[row] = other, self.sizes[other]
            index = np.array([other])
            boxes, flips = draw_boxes(self.views, self.sizes[index], index, self.seed, job.epoch)
            job.boxes[:, row], job.flips[:, row] = boxes[:, 0], flips[:, 0]
            return image
        raise Failed(f"{self.images.source.path}: no image near position {bad:,} can be read ({reason}).")


def place(crop: np.ndarray, out: np.ndarray, *, flip: bool = False, grown: Interpolation = "bicubic") -> None:
    """Resize a crop (H, W, C) into its place ``out`` (C, h, w), mirrored left to right if asked."""
    image = resize(crop, *out.shape[1:], grown=grown)
    if flip:
        cv2.flip(image, 1, dst=image)
    cv2.split(image, list(out))


def _crop(image: np.ndarray, box: Sequence[int], height: int, width: int) -> np.ndarray:
    """The box (top, left, height, width in pixels of the full image) out of an image that may be reduced."""
    top, left, tall, wide = box
    if image.shape[:2] == (height, width):
        return image[top : top + tall, left : left + wide]
    down, across = image.shape[0] / height, image.shape[1] / width
    start, begin = round(top * down), round(left * across)
    return image[
        start : max(start + 1, round((top + tall) * down)),
        begin : max(begin + 1, round((left + wide) * across)),
    ]


def evaluation_batches(
    images: Images, height: int, width: int, batch_size: int, threads: int | None = None, *,
    fit: Literal["centre", "whole"] = "centre",
) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, (b, C, height, width) uint8 or uint16) in the order of the set, each with its own memory.

    Each image is its largest centred box of this aspect (or the whole of it), resized; there is no flip, and
    JPEG is decoded in full, so that the pixels are those that a single image is turned into elsewhere.  One
    that fails to decode, which a survey of all images rules out, becomes the background, with a warning.
    """
    quiet_opencv()
    view = View(size=(height, width), resize=fit, flip=0.0)
    threads = threads or default_threads()
    size = max(1, -(-batch_size // (4 * threads)))  # images a task
    blank = images.background if images.depth == 8 else images.background * 257

    def make(index: np.ndarray, out: np.ndarray) -> None:
        sizes = images.survey.sizes[images.indices[index]]
        boxes, _ = draw_boxes([view], sizes, index, 0, 0)
        for row, i in enumerate(index.tolist()):
            try:
                image = images.decode(i)
            except Unreadable as reason:
                warnings.warn(f"image {i} is unreadable ({reason}): taken as blank", stacklevel=2)
                out[row] = blank
                continue
            place(_crop(image, boxes[0, row].tolist(), *sizes[row].tolist()), out[row])

    with ThreadPoolExecutor(threads, "evaluation") as pool:
        for start in range(0, len(images), batch_size):
            index = np.arange(start, min(start + batch_size, len(images)))
            shape = (len(index), images.channels, height, width)
            buffer = np.empty(shape, np.uint8 if images.depth == 8 else np.uint16)
            cuts = range(size, len(index), size)
            list(pool.map(make, np.split(index, cuts), np.split(buffer, cuts)))
            yield start, torch.from_numpy(buffer)
