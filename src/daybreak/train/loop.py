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
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from rich.console import Console
from torch import Tensor

from ..config import RunConfig, to_tree
from ..data.images import Images
from ..data.loader import Loader
from ..data.philox import Random
from ..data.photometric import augment
from ..data.threads import processors
from ..data.trial import try_packings
from ..data.views import expand
from ..errors import Failed, Refused
from ..methods.base import Batch, Method, Step
from . import checkpoint
from .advice import Adviser, Pace
from .optim import clip, make_optimizer, peak_rate, set_rates
from .progress import Bar
from .schedules import Budget, cosine, warm_cosine
from .stages import Meter, Stages

Probe = Callable[[torch.nn.Module], dict[str, float]]  # the one thing the loop knows of evaluation


@dataclass
class Outcome:
    """What a finished or interrupted run leaves behind."""

    images_seen: int
    seconds: float
    interrupted: int | None  # the signal that stopped it
    bad_images: int
    waiting: float  # share of the time spent waiting for images


class Metrics:
    """``metrics.jsonl``, a line at a time, and the same numbers for TensorBoard."""

    def __init__(self, folder: Path, images_seen: int):
        self.path = folder / "metrics.jsonl"
        if self.path.exists():  # a resumed run says again what came after its checkpoint
            kept = [line for line in self.path.read_text().splitlines() if json.loads(line)["images"] <= images_seen]
            self.path.write_text("".join(f"{line}\n" for line in kept))
        self.events = TensorBoardLogger(folder, name="tensorboard", version="")

    def write(self, kind: str, images: int, **numbers: Any) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"kind": kind, "images": images, **numbers}) + "\n")
        scalars = {f"{kind}/{k}": v for k, v in numbers.items() if isinstance(v, int | float)}
        self.events.log_metrics(scalars, step=images)


class Signals:
    """SIGTERM and Ctrl-C ask for an end after the step in hand; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator["Signals"]:
        def note(number, _frame):
            if self.received is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.received = number

        try:
            before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: the caller handles signals
            before = {}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def on_device(batch: Batch, views: list, random: Random, images: Images, stages: Stages) -> Batch:
    """Move a batch to the device and apply what is photometric there."""
    with stages.copying() as move:
        random = replace(random, index=move(random.index))
        labels = None if batch.labels is None else move(batch.labels)
        moved = replace(batch, images=[move(x) for x in batch.images], index=random.index, labels=labels,
                        boxes=move(batch.boxes), flips=move(batch.flips), sizes=move(batch.sizes))
    since = stages.now()
    looks = [augment(x, view, random, images.mean, images.std, view_index=i)
             for i, (x, view) in enumerate(zip(moved.images, views, strict=True))]
    stages.add("augment", since)
    return replace(moved, images=looks)


def micro_batches(batch: Batch, parts: int) -> Iterator[Batch]:
    """Cut a batch into equal runs of samples."""
    size = len(batch.index) // parts
    for start in range(0, size * parts, size):
        cut = slice(start, start + size)
        yield replace(batch, images=[x[cut] for x in batch.images], boxes=batch.boxes[:, cut], flips=batch.flips[:, cut],
                      index=batch.index[cut], sizes=batch.sizes[cut],
                      labels=None if batch.labels is None else batch.labels[cut])


def train(method: Method, images: Images, config: RunConfig, folder: Path, *, fabric: Fabric, budget: Budget,
          probe: Probe, console: Console, resume: bool = False) -> Outcome:
    """Train ``method`` on ``images`` until the budget is spent.

    Args:
        probe: given the backbone, returns health and online accuracy; it must draw from no generator.
        resume: go on from the last checkpoint of ``folder``.

    Raises:
        Failed: a loss that is not finite; what led to it is in ``folder/failure``.
    """
    t, views = config.training, expand(method.views)
    if t.compile:
        method.encoder.compile_blocks()
    if t.channels_last:
        method.encoder.to(memory_format=torch.channels_last)
    method.encoder.checkpointing(t.gradient_checkpointing)
    if fabric.device.type == "cpu" and t.precision == "bf16-mixed":
        plain_attention(method)
    optimizer = make_optimizer(method, t)
    module, optimizer = fabric.setup(method, optimizer)
    loader = Loader(images, views, t.batch_size // fabric.world_size, seed=config.seed, rank=fabric.global_rank,
                    world=fabric.world_size, threads=config.data.threads, pin=fabric.device.type == "cuda",
                    labels=method.labels != "none")
    seen, best = 0, float("-inf")
    if resume:
        state = checkpoint.load_last(folder / "checkpoints")
        seen, best = restore(state, method, optimizer, loader, budget, images)
    metrics = Metrics(folder, seen)

    def snapshot() -> dict[str, Any]:
        generators = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            generators |= {f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
        return {"method": method.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict(),
                "budget": budget.state_dict(), "images_seen": seen, "best": best, "generators": generators,
                "fingerprint": images.fingerprint, "config": to_tree(config)}

    def start_measuring() -> None:
        window.close(seen, loader.waited)
        meter.close(seen // world)

    probe_every = 1 / config.watch.probes if config.watch.probes else 2.0
    steps, saved_at, window, signals = seen // t.batch_size, time.monotonic(), Window(seen), Signals()
    stages, world = Stages(fabric.device), fabric.world_size
    meter = Meter(loader, stages, seen // world)
    adviser = Adviser(images.source.path, lambda seconds, one: try_packings(images, views, seconds, one))
    method.train()
    budget.start()
    with signals.listening(), Bar(console) as bar, contextlib.closing(loader):
        stream = iter(loader)
        while not budget.over(seen) and signals.received is None:
            budget.look(seen)
            progress = budget.progress(seen)
            rate = warm_cosine(progress, peak_rate(t), t.final_learning_rate, t.warmup)
            final_decay = t.weight_decay if t.final_weight_decay is None else t.final_weight_decay
            set_rates(optimizer, rate, cosine(t.weight_decay, final_decay, progress))

            raw = next(stream)
            step = Step(progress, seen, Random(config.seed, raw.epoch, raw.index.clone()), fabric.global_rank, fabric.world_size)
            batch = on_device(raw, views, step.random, images, stages)
            since = stages.now()
            step.random = replace(step.random, index=batch.index)
            loss, numbers = backward(module, batch, step, fabric, t.accumulate)
            if (fabric.device.type == "cpu" or steps % config.watch.log_steps == 0) and not torch.isfinite(loss):
                raise Failed(keep_failure(folder, snapshot(), raw, seen, loss))
            method.before_update(step)
            norm = clip(method, t.clip, t.clip_mode)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(step)
            stages.add("step", since)
            seen, steps = seen + len(raw.index) * fabric.world_size, steps + 1

            if steps % config.watch.log_steps == 0 or budget.over(seen):
                (speed, waiting), costs = window.close(seen, loader.waited), meter.close(seen // world)
                metrics.write("train", seen, seconds=round(budget.elapsed(), 3), loss=float(loss), learning_rate=rate,
                              gradient_norm=float(norm), images_per_second=round(speed, 2), waiting=round(waiting, 4),
                              seconds_an_image=costs and {k: float(f"{v:.3g}") for k, v in asdict(costs).items()},
                              **{name: float(value) for name, value in numbers.items()})
                left = max(budget.images - seen, 0) / max(speed, 1e-9)
                bar.show(budget.progress(seen), loss=float(loss), speed=speed, waiting=waiting, left=left)
                if costs and fabric.is_global_zero:
                    pace = Pace(waiting=waiting, speed=speed / world, costs=costs, threads=loader.threads,
                                processors=max(1, processors() // world))
                    if said := adviser.look(pace):
                        console.print(f"  {said}", soft_wrap=True, highlight=False)
                    start_measuring()  # a trial is no training
            if int(budget.progress(seen) / probe_every) > int(progress / probe_every):
                found = probe(method.backbone)
                method.train()
                metrics.write("health", seen, **found)
                if (score := found.get("knn_accuracy", float("-inf"))) > best:
                    best = score
                    checkpoint.save(folder / "checkpoints", snapshot(), seen, best=True)
                start_measuring()  # nor is a probe
            if time.monotonic() - saved_at >= 60 * config.watch.save_minutes:
                checkpoint.save(folder / "checkpoints", snapshot(), seen)
                saved_at = time.monotonic()
        checkpoint.save(folder / "checkpoints", snapshot(), seen)
    metrics.events.finalize("success")
    return Outcome(seen, budget.elapsed(), signals.received, len(loader.bad), loader.waited / max(budget.elapsed(), 1e-9))


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


def restore(state: dict, method: Method, optimizer, loader: Loader, budget: Budget, images: Images) -> tuple[int, float]:
    """Put everything back where the checkpoint left it; returns images seen and the best online accuracy."""
    if state["fingerprint"] != images.fingerprint:
        raise Refused(f"the data changed since the run began (fingerprint {state['fingerprint']} then, {images.fingerprint} "
                      "now); resume with the same images, or start another run with --out.")
    method.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    loader.load_state_dict(state["loader"])
    budget.load_state_dict(state["budget"])
    for name, generator in state["generators"].items():
        if name == "cpu":
            torch.set_rng_state(generator)
        elif torch.cuda.is_available():
            torch.cuda.set_rng_state(generator, int(name.removeprefix("cuda")))
    return state["images_seen"], state["best"]


def keep_failure(folder: Path, state: dict, batch: Batch, seen: int, loss: Tensor) -> str:
    """Keep weights, generators and the batch that gave a loss which is not finite; returns the sentence to say."""
    kept = folder / "failure"
    checkpoint.save(kept, state | {"batch": {"images": [x.clone() for x in batch.images], "index": batch.index.clone()}}, seen)
    broken = next((name for name, value in state["method"].items() if not torch.isfinite(value).all()), None)
    where = f"the first weight that is not finite is {broken}" if broken else "all weights are still finite"
    return (f"the loss became {float(loss)} after {seen:,} images; {where}. Try a lower rate (--set training.learning_rate) "
            f"or --set training.precision=32-true; the batch and the weights are in {kept}.")


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
