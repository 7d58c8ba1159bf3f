"""What the economies of DailyMAE save and cost: MAE on CIFAR-10 with each, with all and with none.

    python benchmarks/daily.py train --data DATA --work WORK --json benchmarks/results/daily_cpu.json
    python benchmarks/daily.py speed --work WORK --json benchmarks/results/daily_cpu.json
    python benchmarks/daily.py tables --json benchmarks/results/daily_cpu.json

``train`` gives loss and accuracy over the images seen. ``speed`` times the training steps of each stage of each run, which
take turns on one thread. The seconds of the table are images times the medians of those, so that what else a machine did
during a training doesn't count.
"""

import contextlib
import functools
import io
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from cifar10 import lay_out
from measured import ROOT, main, number, written
from rich.console import Console

from daybreak.config import Training, merge, parse_override, read_toml
from daybreak.data.loader import Loader
from daybreak.runs import resolve
from daybreak.train.forecast import step_of
from daybreak.train.loop import prepare, views_at
from daybreak.train.stages import Stage, stages_of
from daybreak.verbs import make_fabric

BATCH, ROUNDS, STEPS = 128, 9, 3  # steps of each kind in a round, after one that is not timed
SCHEDULE = "training.scheme=daily-1"  # stages of 24, 28 and 32 px
SHARE = "method.decode_share=0.5"  # half of the hidden patches painted
SHALLOW = "method.decoder_depth=1"  # one block for two
RUNS: dict[str, tuple[str, ...]] = {
    "plain": (), "schedule": (SCHEDULE,), "share": (SHARE,), "shallow": (SHALLOW,), "all": (SCHEDULE, SHARE, SHALLOW)}


def training(name: str) -> str:
    """MAE on 64,000 images; a linear classifier is trained at six times of the run."""
    given = "".join(f" --set {setting}" for setting in RUNS[name])
    return (f"daybreak pretrain train-10k.parquet --val test-2k.parquet --recipe recipes/mae_micro_cifar10.toml{given} "
            "--images 64000 --set watch.linear=true --set watch.probes=6 --set watch.probe_queries=2000 --seed 0 "
            f"--on-collapse warn --no-pictures --out runs/daily-{name}")


def stages(name: str) -> list[Stage]:
    hides = SimpleNamespace(mask_ratio=0.75)
    return stages_of(Training(scheme="daily-1" if SCHEDULE in RUNS[name] else "constant"), hides)


def stepper(name: str, stage: Stage, work: Path) -> Callable[[], None]:
    """A training step of a run in one of its stages, on images that the loader makes."""
    given = [setting for setting in RUNS[name] if setting != SCHEDULE]
    given += [] if stage.mask_ratio is None else [f"method.mask_ratio={stage.mask_ratio}"]
    with contextlib.redirect_stdout(io.StringIO()):
        tree = merge(read_toml(ROOT / "recipes" / "mae_micro_cifar10.toml"), *map(parse_override, given),
                     {"data": {"path": str(work / "train-10k.parquet"), "threads": 1},
                      "training": {"images": BATCH, "minutes": None, "batch_size": BATCH}})
        _, split, config, method = resolve(Console(quiet=True), "cpu", tree)
    fabric = make_fabric("cpu", config.training.precision)
    module, optimizer = prepare(method, config.training, fabric)
    loader = Loader(split.train, views_at(stage, method), BATCH, seed=0, threads=1, labels=False)
    return functools.partial(step_of, module, method, optimizer, loader, split.train, config, fabric)


def measure_speed(work: Path, file: Path) -> None:
    """Images a second of each stage of each run, a list over the rounds, into the file."""
    torch.set_num_threads(1)
    steps = {(name, i): stepper(name, stage, work) for name in RUNS for i, stage in enumerate(stages(name))}
    found: dict[tuple[str, int], list[float]] = {kind: [] for kind in steps}
    for _ in range(ROUNDS):
        for kind, step in steps.items():
            step()
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            found[kind].append(STEPS * BATCH / (time.perf_counter() - start))
    record = json.loads(file.read_text())
    record["images_per_second"] = {name: [[round(speed, 1) for speed in found[name, i]] for i in range(len(stages(name)))]
                                   for name in RUNS}
    file.write_text(written(record))


def economies_table(record: dict) -> str:
    """What each run needed for its images, for the loss that all reach and for the accuracy that all reach."""
    runs = {name: record["measured"][training(name)] for name in RUNS}
    losses = {name: trailing([row["loss"] for row in run["steps"]]) for name, run in runs.items()}
    loss = max(found[-1] for found in losses.values())
    accuracy = min(max(row["linear_accuracy"] for row in run["probes"]) for run in runs.values())
    rows = [f"| | images/s | seconds | kNN | linear | loss | seconds to a loss of {loss:.3f} | "
            f"seconds to {100 * accuracy:.1f} % in the linear probe |", "| --- |" + " --- |" * 7]
    for name, run in runs.items():
        speeds = [statistics.median(rounds) for rounds in record["images_per_second"][name]]
        until = {"end": run["images_seen"],
                 "loss": next(row["images"] for row, mean in zip(run["steps"], losses[name], strict=True) if mean <= loss),
                 "accuracy": next(row["images"] for row in run["probes"] if row["linear_accuracy"] >= accuracy)}
        seconds = {what: f"{seconds_to(images, run['images_seen'], stages(name), speeds):.0f}" for what, images in until.items()}
        accuracies = [number(record, training(name), protocol, "accuracy") for protocol in ("knn", "linear")]
        cells = [name, ", ".join(f"{speed:.0f}" for speed in speeds), seconds["end"], *accuracies, f"{losses[name][-1]:.3f}",
                 seconds["loss"], seconds["accuracy"]]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def trailing(values: list[float], last: int = 10) -> list[float]:
    """The mean of each value and those before it, of ``last``; infinite where there are fewer."""
    return [statistics.mean(values[i + 1 - last: i + 1]) if i + 1 >= last else math.inf for i in range(len(values))]


def seconds_to(images: int, whole: int, parts: list[Stage], speeds: list[float]) -> float:
    """Seconds of training steps until so many images of a run of ``whole``, at the speed of each stage."""
    ends = [*(part.start * whole for part in parts), float(whole)]
    return sum(max(0.0, min(images, high) - low) / speed
               for (low, high), speed in zip(itertools.pairwise(ends), speeds, strict=True))


TABLES = {"economies": economies_table}

if __name__ == "__main__":
    main(__doc__.splitlines()[0], {"train": lambda: [training(name) for name in RUNS]}, TABLES, lay_out,
         {"speed": measure_speed})
