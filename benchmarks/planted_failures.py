"""Planted failures: runs on the demo's images, each spoilt in one way, and what the run says of itself.

    python benchmarks/planted_failures.py --seed 0 --json planted_failures.json

Each of three methods first runs as it should; then each failure is planted in the same run, with the same seed. Shown are the
online kNN accuracy (knn-v1, a bank of 2,000 and 500 queries) at the random start and at the end, beside the healthy run's,
and the first sentence that the run printed. The networks are tiny, so that all of it takes minutes on one core: the
numbers say what a failure does, not what a method can do.

    python benchmarks/planted_failures.py --healthy --images 40000 --seed 0 --json healthy.json

runs every method that there is with nothing planted and the settings that ``daybreak pretrain`` chooses for these images, on
the device at hand, and shows what the same thresholds make of it: no sentence is expected. It may be done in pieces, each with
some ``--methods`` and the same ``--json``, which is added to. What was logged is kept under ``--metrics``, where a healthy run
that a signal ended goes on; ``--judge`` trains nothing and reads it again, after a threshold was changed.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.fabric import Fabric
from rich.console import Console

import daybreak
from daybreak.config import RunConfig
from daybreak.data.images import Images, Split
from daybreak.errors import Failed
from daybreak.methods.base import Batch, Method, Step, find, names
from daybreak.review import make_probe
from daybreak.runs import device_name, make_method, open_split, settings_tree
from daybreak.train.checkpoint import every
from daybreak.train.loop import train, watch_of
from daybreak.train.plan import choose, make_budget
from daybreak.train.schedules import Budget

DEMO = Path(daybreak.__file__).parent / "demo"
COMMON = ("encoder.width=64", "encoder.depth=2", "training.precision=32-true", "training.batch_size=64",
          "training.learning_rate_rule=fixed", "training.learning_rate=1e-3", "watch.log_steps=5", "watch.probes=5",
          "watch.on_collapse=warn")
FALL = 0.05  # of kNN accuracy, from which on a failure hurts: over two standard errors of 500 queries
QUIET = ("training.precision=32-true", "watch.on_collapse=warn")  # of the runs of --healthy; all else is chosen
HEALTHY = {  # method: images, settings
    "simclr": (12_000, ("encoder.patch_size=7", "method.temperature=0.5", "method.scale=[0.3, 1.0]")),
    "mae": (20_000, ("encoder.patch_size=7",)),
    "sit": (12_000, ("encoder.patch_size=7", "method.hidden=128", "method.momentum=0.95")),
}


def shown(change: Callable[[torch.Tensor], torch.Tensor], views: slice = slice(None)) -> Callable[[Method], None]:
    """Show the method other images than the loader's: ``change`` of (B, C, h, w) views."""

    def plant(method: Method) -> None:
        forward = method.forward

        def spoilt(batch: Batch, step: Step):
            chosen = range(len(batch.images))[views]
            images = [change(x) if i in chosen else x for i, x in enumerate(batch.images)]
            return forward(dataclasses.replace(batch, images=images), step)

        method.forward = spoilt  # type: ignore[method-assign]  # a planted failure is put into one object

    return plant


def zero_head(method: Method) -> None:
    for parameter in method.head.parameters():  # type: ignore[union-attr]  # of SimCLR, which has a head
        parameter.data.zero_()


def hot(method: Method) -> None:
    method.config = dataclasses.replace(method.config, temperature=100.0)  # settings refuse more than 10


class Flat(Images):
    """Images of which every one is read as the same even grey, as by a decoder that fails in silence."""

    def read(self, i: int) -> np.ndarray:
        return cv2.imencode(".png", np.full(self.sizes[i], 128, np.uint8))[1].ravel()


def flat(images: Images) -> Images:
    return Flat(**vars(images))


def repeated(images: Images) -> Images:
    return images.subset(np.zeros(len(images), np.int64))


PERMUTED = shown(lambda x: x.roll(1, 0), slice(1, 2))
FAST = ("training.learning_rate=1.0",)
DECAY = ("training.weight_decay=100.0", "training.final_weight_decay=100.0")


@dataclass(frozen=True)
class Plant:
    """A failure: settings on top of the healthy run's, a change of the method once it is built, or of what is trained on."""

    settings: tuple[str, ...] = ()
    change: Callable[[Method], None] | None = None
    images: Callable[[Images], Images] | None = None


PLANTS = {  # method, what is wrong
    ("simclr", "learning rate x 1000"): Plant(FAST),
    ("simclr", "weight decay 100"): Plant(DECAY),
    ("simclr", "projector zeroed"): Plant(change=zero_head),
    ("simclr", "temperature 100"): Plant(change=hot),
    ("simclr", "constant images"): Plant(images=flat),
    ("simclr", "one image repeated"): Plant(images=repeated),
    ("simclr", "targets permuted"): Plant(change=PERMUTED),
    ("mae", "learning rate x 1000"): Plant(FAST),
    ("mae", "weight decay 100"): Plant(DECAY),
    ("mae", "constant images"): Plant(images=flat),
    ("sit", "learning rate x 1000"): Plant(FAST),
    ("sit", "weight decay 100"): Plant(DECAY),
    ("sit", "constant images"): Plant(images=flat),
    ("sit", "one image repeated"): Plant(images=repeated),
}


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    start: float  # online kNN accuracy of the random start
    end: float | None  # and at the end; None if it did not get there
    said: list[str]  # sentences of the watch, or the one that the run failed with
    seconds: float


def demo_split() -> Split:
    return open_split({"path": str(DEMO / "animals-train.parquet"), "val": str(DEMO / "animals-val.parquet")})[1]


def run(name: str, split: Split, plant: Plant | None = None, *, seed: int = 0, images: int | None = None,
        settings: tuple[str, ...] | None = None, keep: Path | None = None, judge: bool = False,
        work: Path | None = None) -> Outcome:
    """Train a method, spoilt or not, and read what it wrote.

    Args:
        images, settings: instead of those in ``HEALTHY``, which run on the CPU; own settings take the device at hand.
        keep: where the metrics are copied to.
        judge: train nothing, and judge the metrics in ``keep`` by the thresholds of now. An alarm ends no run here, so a run
            under other thresholds would have logged the same.
    """
    plant, device = plant or Plant(), "cpu" if settings is None else device_name()
    if settings is None:
        budget, mine = HEALTHY[name]
        images, settings = images or budget, (*COMMON, *mine)
    tree = settings_tree(method=name, recipe=None, overrides=[*settings, *plant.settings], images=images, seed=seed, threads=1)
    if plant.images:
        split = dataclasses.replace(split, train=plant.images(split.train))
    config, _ = choose(find(name), tree, split.train, device)
    method = make_method(config, split.train.channels)
    if plant.change:
        plant.change(method)
    budget = make_budget(config.training, len(split.train), None)
    if judge and keep:
        return outcome(judged(keep.read_text(), method, config, budget), config, 0.0)
    fabric, failed, began = Fabric(accelerator=device, devices=1), "", time.monotonic()
    with contextlib.nullcontext(work) if work else tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            resume, probe = bool(every(folder / "checkpoints")), make_probe(split, config, fabric)
            ended = train(method, split.train, config, folder, fabric=fabric, budget=budget, probe=probe, resume=resume,
                          console=Console(file=io.StringIO()))
            if ended.interrupted:
                raise SystemExit(f"{name}: interrupted after {ended.images_seen:,} images; the same command goes on with it")
        except Failed as failure:
            failed = str(failure).replace(str(folder), "RUN")
        text = (folder / "metrics.jsonl").read_text()
    if keep is not None:
        keep.write_text(text)
    return outcome([json.loads(line) for line in text.splitlines()], config, time.monotonic() - began, failed)


def judged(text: str, method: Method, config: RunConfig, budget: Budget) -> list[dict]:
    """The lines of a ``metrics.jsonl``, with the alarms that the thresholds of now would have raised in place of those in it."""
    method.batch_size, lines = config.training.batch_size, []
    watch = watch_of(method, config)
    for line in filter(lambda line: line["kind"] != "alarm", map(json.loads, text.splitlines())):
        alarm = watch.see(line, budget.progress(line["images"]))
        lines.append(line)
        if alarm:
            lines.append({"kind": "alarm", "images": line["images"], **dataclasses.asdict(alarm)})
    return lines


def outcome(lines: list[dict], config: RunConfig, seconds: float, failed: str = "") -> Outcome:
    said = [line["sentence"] for line in lines if line["kind"] == "alarm"] + [failed] * bool(failed)
    scores = [(line["images"], line["knn_accuracy"]) for line in lines if line["kind"] == "health"]
    end = scores[-1][1] if scores[-1][0] >= (config.training.images or 0) else None
    return Outcome(scores[0][1], end, said, seconds)


def table(record: dict) -> str:
    """The page's table of what was measured."""
    rows = ["| method | what is wrong | kNN, healthy | kNN, spoilt | hurts | what the run says |", "| --- " * 6 + "|"]
    for row in record["planted"]:
        end = "stopped" if row["end"] is None else f"{row['end']:.1%}"
        cells = [row["method"], row["what"], f"{record['healthy'][row['method']]['end']:.1%}", end,
                 "yes" if does_hurt(row, record) else "no", (row["said"] or ["nothing"])[0]]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def does_hurt(row: dict, record: dict) -> bool:
    """Whether kNN accuracy fell far enough below the healthy run's, to a tenth of a point."""
    return row["end"] is None or round(record["healthy"][row["method"]]["end"] - row["end"], 3) >= FALL


def run_healthy(split: Split, arguments: argparse.Namespace, record: dict, write: Callable[[], None]) -> None:
    """The methods that are asked for, with the settings that are chosen for them; nothing should be said."""
    record |= {"images": arguments.images, "device": device_name()}
    rows = record.setdefault("healthy", {})
    for name in arguments.methods or names():
        keep = arguments.metrics and arguments.metrics / f"{name}-{arguments.images}-{arguments.seed}.jsonl"
        found = dataclasses.asdict(run(name, split, seed=arguments.seed, images=arguments.images, settings=QUIET, keep=keep,
                                       judge=arguments.judge, work=keep and keep.with_suffix("")))
        if arguments.judge:
            found["seconds"] = rows.get(name, found)["seconds"]  # those of the training
        record["healthy"] = rows = dict(sorted((rows | {name: found}).items()))
        print(f"{name}: {found}", flush=True)
        write()
    print(healthy_table(record))


def healthy_table(record: dict) -> str:
    """The page's table of the healthy runs."""
    rows = [f"| {name} | {row['start']:.1%} | {row['end'] or math.nan:.1%} | {' '.join(row['said']) or 'nothing'} |"
            for name, row in record["healthy"].items()]
    return "\n".join(["| method | kNN, start | kNN, end | what the run says |", "| --- | --- | --- | --- |", *rows])


def run_planted(split: Split, arguments: argparse.Namespace, record: dict, write: Callable[[], None]) -> None:
    """The failures that are asked for, each beside its method's healthy run."""
    healthy, planted = record.get("healthy", {}), record.get("planted", [])
    record |= {"healthy": {}, "planted": []}

    def measured(name: str, what: str, plant: Plant | None, before: dict | None) -> dict:
        keep = arguments.metrics and arguments.metrics / f"{name} {what} {arguments.seed}.jsonl"
        found = dataclasses.asdict(run(name, split, plant, seed=arguments.seed, keep=keep, judge=arguments.judge))
        return found | ({"seconds": before["seconds"]} if arguments.judge and before else {})

    for (name, what), plant in PLANTS.items():
        if arguments.only not in f"{name}: {what}":
            continue
        if name not in record["healthy"]:
            record["healthy"][name] = measured(name, "healthy", None, healthy.get(name))
            print(f"{name}: healthy {record['healthy'][name]}", flush=True)
        before = next((row for row in planted if (row["method"], row["what"]) == (name, what)), None)
        record["planted"].append({"method": name, "what": what, **measured(name, what, plant, before)})
        print(record["planted"][-1], flush=True)
        write()
    print(table(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of METHOD: WHAT, of the failures to plant")
    parser.add_argument("--healthy", action="store_true", help="run methods as they are, and plant nothing")
    parser.add_argument("--methods", nargs="+", choices=names(), help="of --healthy; without it all")
    parser.add_argument("--images", type=int, default=40_000, help="budget of each run of --healthy")
    parser.add_argument("--metrics", type=Path, help="folder in which each run leaves its metrics")
    parser.add_argument("--judge", action="store_true", help="train nothing: judge what is in --metrics once more")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    split = demo_split()
    if arguments.metrics:
        arguments.metrics.mkdir(parents=True, exist_ok=True)
    only = f' --only "{arguments.only}"' if arguments.only else ""
    mode = f" --healthy --images {arguments.images}" if arguments.healthy else ""
    record: dict[str, Any] = {"command": f"python benchmarks/planted_failures.py{mode} --seed {arguments.seed}{only}",
                              "torch": torch.__version__, "machine": platform.machine()}
    if (arguments.healthy or arguments.judge) and arguments.json and arguments.json.exists():
        before = json.loads(arguments.json.read_text())
        if before["command"] != record["command"]:
            parser.error(f"{arguments.json} is of another command: {before['command']}")
        record = before

    def write() -> None:
        if arguments.json:
            arguments.json.write_text(json.dumps(record, indent=1) + "\n")

    if arguments.healthy:
        run_healthy(split, arguments, record, write)
    else:
        run_planted(split, arguments, record, write)


if __name__ == "__main__":
    main()
