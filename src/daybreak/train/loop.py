"""The loop: get a batch, forward, backward, step, schedule, watch, save.

B images a step, V views. It turns a method's losses into the weights of its backbone and writes
``metrics.jsonl``, TensorBoard events and ``checkpoints/``. A run that is interrupted and resumed passes through
the same states, bit for bit on one CPU.
"""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from rich.console import Console
from torch import Tensor

from ..config import RunConfig, Training, to_tree
from ..data.images import Images
from ..data.loader import Loader
from ..data.philox import Random
from ..data.photometric import augment
from ..data.threads import processors
from ..data.trial import try_packings
from ..data.views import View, expand
from ..errors import Failed
from ..methods.base import Batch, Method, Step
from ..signals import caught
from . import checkpoint
from .advice import Adviser, Pace
from .optim import clip, make_optimizer, peak_rate, set_rates
from .progress import Bar
from .resume import Finite, first_broken, generators, keep_failure, past_failure, restore
from .schedules import Budget, cosine, warm_cosine
from .stages import WHOLE, Stage, stage_at, stages_of
from .timing import Meter, Spans
from .watch import Watch

Probe = Callable[[Method, int], dict[str, float]]  # the one thing the loop knows of evaluation: method, images seen


@dataclass
class Outcome:
    """What a finished or interrupted run leaves behind."""

    images_seen: int
    seconds: float
    interrupted: int | None  # the signal that stopped it
    stopped: str | None  # the alarm that stopped it
    bad_images: int
    waiting: float  # share of the time spent waiting for images


class Metrics:
    """``metrics.jsonl``, a line at a time, and the same numbers for TensorBoard."""

    def __init__(self, folder: Path, images_seen: int):
        self.path = folder / "metrics.jsonl"
        self.kept: list[dict[str, Any]] = []  # a resumed run says again what came after its checkpoint
        if self.path.exists():
            lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]  # a kill cuts one
            self.kept = [line for line in lines if line["images"] <= images_seen]
            self.path.write_text("".join(f"{json.dumps(line)}\n" for line in self.kept))
        self.events = TensorBoardLogger(folder, name="tensorboard", version="")

    def write(self, kind: str, images: int, **numbers: Any) -> dict[str, Any]:
        line = {"kind": kind, "images": images, **numbers}
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        scalars = {f"{kind}/{k}": v for k, v in numbers.items() if isinstance(v, int | float)}
        self.events.log_metrics(scalars, step=images)
        return line


class Signals:
    """SIGTERM and Ctrl-C ask for an end after the step in hand; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.received = 0  # the number of the signal

    def note(self, number: int) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


def on_device(batch: Batch, views: list, random: Random, images: Images, spans: Spans, last: Batch | None = None) -> Batch:
    """Move a batch to the device and apply what is photometric there; in the memory of the ``last`` one's images, if given."""
    with spans.copying() as move:
        random = replace(random, index=move(random.index))
        labels = None if batch.labels is None else move(batch.labels)
        moved = replace(batch, images=[move(x) for x in batch.images], index=random.index, labels=labels,
                        boxes=move(batch.boxes), flips=move(batch.flips), sizes=move(batch.sizes))
    since = spans.now()
    rooms = last.images if last is not None and len(last.images) == len(views) else [None] * len(views)
    looks = [augment(x, view, random, images.mean, images.std, view_index=i, out=room)
             for i, (x, view, room) in enumerate(zip(moved.images, views, rooms, strict=True))]
    spans.add("augment", since)
    return replace(moved, images=looks)


def pixel_spread(images: Tensor) -> float:
    """Deviation of the pixels of (B, C, h, w) views from one image to another, or within an image, whichever is smaller.

    0 where all images are the same, or each is of one colour; near 1 for normalised images.
    """
    x = images.float()
    within, across = x.flatten(2).std(2, correction=0).mean(), x.std(0, correction=0).mean()
    return float(within if len(x) == 1 else torch.minimum(within, across))


def micro_batches(batch: Batch, parts: int) -> Iterator[Batch]:
    """Cut a batch into equal runs of samples."""
    size = len(batch.index) // parts
    for start in range(0, size * parts, size):
        cut = slice(start, start + size)
        yield replace(batch, images=[x[cut] for x in batch.images], boxes=batch.boxes[:, cut], flips=batch.flips[:, cut],
                      index=batch.index[cut], sizes=batch.sizes[cut],
                      labels=None if batch.labels is None else batch.labels[cut])


def train(method: Method, images: Images, config: RunConfig, folder: Path, *, fabric: Fabric, budget: Budget,
          probe: Probe, console: Console, resume: bool = False, skip_failure: bool = False, force: bool = False) -> Outcome:
    """Train ``method`` on ``images`` until the budget is spent.

    Args:
        probe: given the method and the images seen, returns health and online accuracy; it must draw from no generator.
        resume: go on from the last checkpoint of ``folder``.
        skip_failure: go on from ``folder/failure``, past the batch that is kept there.
        force: go on with other data or with a changed ``config``.

    Raises:
        Failed: a loss that is not finite; what led to it is in ``folder/failure``.
    """
    t, views = config.training, expand(method.views)
    module, optimizer = prepare(method, t, fabric)
    loader = Loader(images, views, t.batch_size // fabric.world_size, seed=config.seed, rank=fabric.global_rank,
                    world=fabric.world_size, threads=config.data.threads, pin=fabric.device.type == "cuda",
                    labels=method.labels != "none")
    seen, best = 0, float("-inf")
    skipped: list[list[int]] = []  # epoch and position of batches that gave a loss which was not finite

    def snapshot() -> dict[str, Any]:
        return {"method": method.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict(),
                "budget": budget.state_dict(), "images_seen": seen, "best": best, "generators": generators(), "skipped": skipped,
                "fingerprint": images.fingerprint, "count": len(images), "config": to_tree(config)}

    if resume:
        state, skipping = past_failure(folder) if skip_failure else (checkpoint.load_last(folder / "checkpoints"), "")
        forced = restore(state, method, optimizer, loader, budget, images, force=force)
        seen, best, skipped = state["images_seen"], state["best"], state.get("skipped", [])
        if (skip_failure or force) and fabric.is_global_zero:  # what was decided now holds for a later resume too
            checkpoint.save(folder / "checkpoints", snapshot(), seen)
        at = f"epoch {loader.epoch}, batch {loader.position} of {loader.steps_per_epoch}"
        for text in filter(None, (forced and f"forced: {forced}", skipping, f"going on at image {seen:,} ({at})")):
            console.print(text, soft_wrap=True, highlight=False)
    method.batch_size = t.batch_size
    metrics: Any = Metrics(folder, seen) if fabric.is_global_zero else None
    watch = watch_of(method, config)
    for line in metrics.kept if metrics else []:
        watch.see(line, budget.progress(line["images"]))

    def log(kind: str, **numbers: Any) -> None:
        line = metrics.write(kind, seen, **numbers)
        if alarm := watch.see(line, budget.progress(seen)):
            metrics.write("alarm", seen, **asdict(alarm))
            console.print(f"watch: {alarm.sentence}", soft_wrap=True, highlight=False)

    def start_measuring() -> None:
        window.close(seen, loader.waited)
        meter.close(seen // world)

    if config.watch.probes and not resume and metrics:
        log("health", **probe(method, seen))  # of the start, which later ones are held against; outside the budget
    stages, stage, stop = stages_of(t, config.method), WHOLE, False
    probe_every = 1 / config.watch.probes if config.watch.probes else 2.0
    steps, saved_at, window, signals = seen // t.batch_size, time.monotonic(), Window(seen), Signals()
    finite = Finite(1 if fabric.device.type == "cpu" else config.watch.log_steps)
    spans, world = Spans(fabric.device), fabric.world_size
    meter = Meter(loader, spans, seen // world)
    adviser = Adviser(images.source.path, lambda seconds, one: try_packings(images, views, seconds, one))
    method.train()
    budget.start()
    with caught(signals.note), Bar(console) as bar, contextlib.closing(loader):
        stream, batch = iter(loader), None
        while not (budget.over(seen) or signals.received or stop):
            if world > 1:  # drop path draws from torch's generator: other numbers on each rank, no state to keep
                torch.manual_seed(config.seed + seen * world + fabric.global_rank)
            progress = budget.progress(seen)
            if (now := stage_at(stages, progress)) != stage:
                stage, views = now, views_at(now, method)
                loader.set_views(views)
            rate = warm_cosine(progress, peak_rate(t), t.final_learning_rate, t.warmup)
            final_decay = t.weight_decay if t.final_weight_decay is None else t.final_weight_decay
            set_rates(optimizer, rate, cosine(t.weight_decay, final_decay, progress))

            while [loader.epoch, loader.position] in skipped:
                next(stream)
            where = {"epoch": loader.epoch, "position": loader.position, "images": seen}
            raw, drawn = next(stream), generators()
            random = Random(config.seed, raw.epoch, raw.index.clone())
            step = Step(progress, seen, random, fabric.global_rank, world, stage.mask_ratio)
            batch = on_device(raw, views, step.random, images, spans, batch)
            since = spans.now()
            step.random = replace(step.random, index=batch.index)
            loss, numbers = backward(module, batch, step, fabric, t.accumulate if method.exact_accumulation else 1)
            method.before_update(step)
            norm = clip(method, t.clip, t.clip_mode)
            both = loss if t.precision == "16-mixed" else loss + norm  # its scaler meets infinite gradients and skips them
            if bad := finite.first_bad(where, both, now=budget.over(seen + len(raw.index) * world)):
                raise Failed(keep_failure(folder, snapshot() | {"generators": drawn}, raw, bad, loss,
                                          partial(first_broken, method, module, batch, step)))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(step)
            spans.add("step", since)
            seen, steps = seen + len(raw.index) * world, steps + 1
            stop = agree(fabric, budget, seen, signals, watch.stops(config.watch.on_collapse, budget.progress(seen)),
                         is_due=steps % config.watch.log_steps == 0)
            is_due = steps % config.watch.log_steps == 0 or budget.over(seen)
            costs = meter.close(seen // world) if is_due else None
            if is_due and world > 1:
                torch.distributed.all_reduce(loss.div_(world))
            if not fabric.is_global_zero:
                continue

            if is_due:
                speed, waiting = window.close(seen, loader.waited)
                log("train", seconds=round(budget.elapsed(), 3), loss=float(loss), learning_rate=rate, gradient_norm=float(norm),
                    images_per_second=round(speed, 2), waiting=round(waiting, 4),
                    pixel_spread=round(pixel_spread(batch.images[0]), 4),
                    seconds_an_image=costs and {k: float(f"{v:.3g}") for k, v in asdict(costs).items()},
                    **{name: float(value) for name, value in numbers.items()})
                left = max(budget.images - seen, 0) / max(speed, 1e-9)
                bar.show(budget.progress(seen), loss=float(loss), speed=speed, waiting=waiting, left=left)
                if costs:
                    pace = Pace(waiting=waiting, speed=speed / world, costs=costs, threads=loader.threads,
                                processors=max(1, processors() // world))
                    if said := adviser.look(pace):
                        console.print(f"  {said}", soft_wrap=True, highlight=False)
                    start_measuring()  # a trial is no training
            if int(budget.progress(seen) / probe_every) > int(progress / probe_every):
                found = probe(method, seen)
                method.train()
                log("health", **found)
                if (score := found.get("knn_accuracy", float("-inf"))) > best:
                    best = score
                    checkpoint.save(folder / "checkpoints", snapshot(), seen, best=True)
                start_measuring()  # nor is a probe
            if not finite.held and time.monotonic() - saved_at >= 60 * config.watch.save_minutes:
                checkpoint.save(folder / "checkpoints", snapshot(), seen)
                saved_at = time.monotonic()
            stop = stop or (world == 1 and watch.stops(config.watch.on_collapse, budget.progress(seen)))
        if fabric.is_global_zero:
            checkpoint.save(folder / "checkpoints", snapshot(), seen)
            metrics.events.finalize("success")
    ended = budget.over(seen) or signals.received
    return Outcome(seen, budget.elapsed(), signals.received or None, None if ended or watch.alarm is None else watch.alarm.sentence,
                   len(loader.bad), loader.waited / max(budget.elapsed(), 1e-9))


def watch_of(method: Method, config: RunConfig) -> Watch:
    """What judges a run of ``method``, whose batch size must be known."""
    return Watch(method.degenerate(), prototypes=getattr(method.config, "prototypes", None),
                 start="random weights" if config.encoder.init is None else "the starting weights",
                 several_labels=method.labels == "multi")


def prepare(method: Method, t: Training, fabric: Fabric) -> tuple[Any, Any]:
    """Module and optimiser as the device wants them, with the switches of the training applied."""
    if t.compile:
        method.encoder.compile_blocks()
    if t.channels_last:
        method.encoder.to(memory_format=torch.channels_last)
    method.encoder.checkpointing(t.gradient_checkpointing)
    if fabric.device.type == "cpu" and t.precision == "bf16-mixed":
        plain_attention(method)
    return fabric.setup(method, make_optimizer(method, t))


def views_at(stage: Stage, method: Method) -> list[View]:
    """The method's views at the size of a stage, to whole patches."""
    views = expand(method.views)
    return views if stage.size == 1 else [view.scaled(stage.size, method.encoder.stride) for view in views]


def agree(fabric: Fabric, budget: Budget, seen: int, signals: Signals, stop: bool, *, is_due: bool) -> bool:
    """Look at the clock; where it is due, several ranks take over the first one's budget and its wish to ``stop``, which
    is returned, and a signal that any of them received."""
    if fabric.world_size == 1:
        budget.look(seen)
        return False
    if not is_due:
        return False
    if fabric.is_global_zero:
        budget.look(seen)
    told = torch.tensor([budget.images if fabric.is_global_zero else 0, signals.received, stop], device=fabric.device)
    agreed: Any = fabric.all_reduce(told, reduce_op="max")
    budget.images, signals.received, is_over = agreed.tolist()
    return bool(is_over)


def backward(module, batch: Batch, step: Step, fabric: Fabric, parts: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward and backward over the batch, in ``parts``; the loss and the numbers of the last part."""
    total = torch.zeros((), device=fabric.device)
    numbers: dict[str, Tensor] = {}
    for i, part in enumerate(micro_batches(batch, parts) if parts > 1 else [batch]):
        here = replace(step, random=replace(step.random, index=part.index))
        with fabric.no_backward_sync(module, enabled=i < parts - 1):
            value, numbers = module(part, here)
            fabric.backward(value / parts)
        total += value.detach() / parts
    return total, numbers


def plain_attention(module: torch.nn.Module) -> None:
    """Leave torch's fused attention, which in bf16 on a CPU takes 1.4 to 2.8 times as long as two matrix products."""
    part: Any
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False


class Window:
    """Images a second and share of time spent waiting, since the last look."""

    def __init__(self, seen: int, clock: Callable[[], float] = time.monotonic):
        self.clock, self.images, self.waited, self.since = clock, seen, 0.0, clock()

    def close(self, images: int, waited: float) -> tuple[float, float]:
        now = self.clock()
        seconds = max(now - self.since, 1e-9)
        speed, waiting = (images - self.images) / seconds, (waited - self.waited) / seconds
        self.since, self.images, self.waited = now, images, waited
        return speed, min(waiting, 1.0)
