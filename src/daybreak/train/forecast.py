"""What a run will take, from a few small steps of it: memory at its batch, images a second, hours.

B images a step. Memory of a step is a constant and a share an image, so two small batches tell that of the whole one. Where
that fits, a step of the whole batch is timed: an image takes longer in it than in one that a cache holds. Else time is told
as memory is.
"""

import contextlib
import copy
import os
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.fabric import Fabric

from ..config import RunConfig
from ..data.images import Images
from ..data.loader import Loader
from ..data.philox import Random
from ..methods.base import Method, Step
from .loop import backward, on_device, prepare
from .optim import clip
from .timing import Spans

WARM, MEASURED = 2, 3  # steps of each small batch: the first ones allocate the optimiser's state and choose kernels
ENOUGH, MOST = 1.0, 20  # seconds that short steps are measured for, and how many at most
LARGEST = 4  # what is tried is at most a quarter of the batch
FULL = 0.9  # share of the memory that may be planned with


@dataclass(frozen=True)
class Forecast:
    """Of a run at its batch."""

    images_per_second: float  # of all devices
    peak_bytes: int | None  # of one device; None where the system does not tell it
    bytes_per_image: float  # of the batch of a device
    available_bytes: int | None
    tried: tuple[int, int]  # batches that memory is told from

    def sentence(self, images: int, count: int) -> str:
        """What ``images`` of a set of ``count`` will take."""
        said = (f"{self.images_per_second:,.0f} images/s, {images:,} images ({images / count:,.1f} epochs) in "
                f"{images / self.images_per_second / 3600:.2f} hours")
        if self.peak_bytes is not None:
            of = f" of {self.available_bytes / 2**30:.1f}" if self.available_bytes else ""
            said += f", memory {self.peak_bytes / 2**30:.1f}{of} GiB"
            said += f" (from steps of {self.tried[0]} and {self.tried[1]} images)"
        return said

    def warning(self, batch: int) -> str | None:
        """What to do where a device's ``batch`` will not fit, or None."""
        if self.peak_bytes is None or self.available_bytes is None or self.peak_bytes <= FULL * self.available_bytes:
            return None
        fits = int(batch - (self.peak_bytes - FULL * self.available_bytes) / max(self.bytes_per_image, 1))
        smaller = f"a batch of {1 << max(fits, 1).bit_length() - 1} or --set " if fits >= 2 else "--set "
        return f"memory will not suffice: use {smaller}training.gradient_checkpointing=true"


def forecast(method: Method, images: Images, config: RunConfig, fabric: Fabric) -> Forecast:
    """Run a few steps of a copy of ``method`` at an eighth and a quarter of the batch of one device, then at all of it, uncompiled.

    Memory is that of the whole process on a CPU, what torch holds on a GPU; it is foretold before a whole batch is tried, which
    is left out where it would not fit.
    """
    t = replace(config.training, compile=False)
    parts = t.accumulate if method.exact_accumulation else 1  # micro-batches that are whole steps but for the update
    batch = t.batch_size // t.devices // parts
    small, large = max(2, batch // (2 * LARGEST)), max(4, batch // LARGEST)
    method = copy.deepcopy(method)
    module, optimizer = prepare(method, t, fabric)
    # The first trial leaves memory behind that no later one needs anew: only after it do two differ by their batch alone.
    _, (t1, m1), (t2, m2) = [trial(module, method, optimizer, images, config, fabric, size) for size in (small, small, large)]
    whole = t2 + max(t2 - t1, 0) / (large - small) * (batch - large)
    if m1 is None or m2 is None:
        peak, slope = None, 0.0
    else:
        slope = max(m2 - m1, 0) / (large - small)
        peak = round(m2 + slope * (batch - large))
    found = Forecast(t.batch_size / (parts * whole), peak, slope, available(fabric.device), (small, large))
    if batch <= large or found.warning(batch) is not None:
        return found
    whole, _ = trial(module, method, optimizer, images, config, fabric, batch, warm=1, measured=1)
    return replace(found, images_per_second=t.batch_size / (parts * whole))


def trial(module, method: Method, optimizer, images: Images, config: RunConfig, fabric: Fabric,
          batch: int, *, warm: int = WARM, measured: int = MEASURED) -> tuple[float, int | None]:
    """Median seconds of a step of this batch after ``warm`` ones, and the peak of memory meanwhile."""
    times, peak = list[float](), Peak(fabric.device)
    with contextlib.closing(Loader(images, method.views, batch, seed=config.seed, threads=config.data.threads,
                                   pin=fabric.device.type == "cuda", labels=method.labels != "none")) as loader:
        for _ in range(warm):
            step_of(module, method, optimizer, loader, images, config, fabric)
        peak.reset()
        while len(times) < measured or (sum(times) < ENOUGH and len(times) < MOST):
            start = time.perf_counter()
            step_of(module, method, optimizer, loader, images, config, fabric)
            times.append(time.perf_counter() - start)
    return statistics.median(times), peak.read()


def step_of(module, method: Method, optimizer, loader: Loader, images: Images, config: RunConfig, fabric: Fabric) -> None:
    """One step as the loop makes it, waiting for the device; a teacher stays, whose move takes little."""
    raw = next(loader)
    random = Random(config.seed, raw.epoch, raw.index.clone())
    ready = on_device(raw, loader.views, random, images, Spans(fabric.device))
    step = Step(0.5, 0, replace(random, index=ready.index))
    loss, _ = backward(module, ready, step, fabric, 1)
    clip(method, config.training.clip, config.training.clip_mode)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    float(loss)


class Peak:
    """The largest memory of this process (Linux) or of torch on a GPU, since the last reset."""

    STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def __init__(self, device: torch.device):
        self.device = device

    def reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.REFERENCES.exists():
            self.REFERENCES.write_text("5")  # the kernel's way to set the peak back to what is in use

    def read(self) -> int | None:
        """Bytes, or None where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if not self.REFERENCES.exists():
            return None
        (line,) = [line for line in self.STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024


def available(device: torch.device) -> int | None:
    """Bytes that this device has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
