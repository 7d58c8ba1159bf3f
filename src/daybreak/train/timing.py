"""Where the time goes: reading, decoding and placing in the loader's threads; copy, augmentation and step on the device."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..data.loader import Loader
from .advice import Costs

NAMES = ("copy", "augment", "step")


class Spans:
    """Seconds that copies, augmentation and steps take, in sum.

    On a CPU by the clock; on a GPU by events in its streams, so that nothing has to wait for it until ``close``.
    Copies to a GPU run in a stream of their own: they begin at once, beside the step before.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter):
        self.device, self.clock = device, clock
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.spans: list[tuple[str, Any, Any]] = []

    def now(self) -> Any:
        """The time, or an event at this point of the current stream."""
        if self.stream is None:
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, name: str, since: Any) -> None:
        """Count the time from ``since`` until now."""
        self.spans.append((name, since, self.now()))

    @contextlib.contextmanager
    def copying(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Give a function that moves a tensor to the device; all that it moved is there for what comes after."""
        moved: list[Tensor] = []

        def move(tensor: Tensor) -> Tensor:
            moved.append(tensor.to(self.device, non_blocking=self.stream is not None))
            return moved[-1]

        place: Any = contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
        with place:
            since = self.now()
            yield move
            self.add("copy", since)
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for tensor in moved:  # else their memory could be given away while the current stream still reads it
                tensor.record_stream(current)

    def close(self) -> dict[str, float]:
        """Return the seconds of each stage since the last time, once the device has done them all."""
        spans, self.spans = self.spans, []
        seconds = dict.fromkeys(NAMES, 0.0)
        if self.stream is not None:
            torch.cuda.synchronize(self.device)
        for name, start, end in spans:
            seconds[name] += end - start if self.stream is None else start.elapsed_time(end) / 1000
        return seconds


class Meter:
    """Costs an image, from one look to the next, of what ``loader`` makes and this process trains on."""

    def __init__(self, loader: Loader, spans: Spans, seen: int, processor: Callable[[], float] = time.process_time):
        self.loader, self.spans, self.clock = loader, spans, processor
        self.seen, self.times, self.processor = seen, loader.times, processor()

    def close(self, seen: int) -> Costs | None:
        """Return the costs since the last look, or None if nothing was loaded or trained on.

        ``seen``: images that this process has trained on.
        """
        count, self.seen = seen - self.seen, seen
        now, processor = self.loader.times, self.clock()
        loaded, all_processors = now.minus(self.times), processor - self.processor
        self.times, self.processor = now, processor
        device = self.spans.close()
        if not loaded.images or not count:
            return None
        return Costs(
            read=loaded.read / loaded.images, decode=loaded.decode / loaded.images, place=loaded.place / loaded.images,
            processor=loaded.processor / loaded.images, others=max(0.0, all_processors - loaded.processor) / count,
            **{name: seconds / count for name, seconds in device.items()})
