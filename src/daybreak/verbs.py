"""The verbs of the command line as functions: pretrain, evaluate, embed, export, load, demo."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.table import Table

from .config import RunConfig, Tree, difference, fill, merge, parse_override, read_toml, recipe_tree, to_toml
from .data.images import Images, Split, open_images, split_images
from .data.loader import Loader
from .data.philox import Random
from .data.views import expand
from .errors import Failed, Refused
from .evaluate.features import features, pixels
from .evaluate.protocols import DEFAULT, Result, Skipped, evaluate_features
from .evaluate.rank import rankme, spread
from .export.backbone import Backbone, load, write_backbone
from .methods.base import Method, Step, find
from .nn.encoder import Encoder
from .report.html import write_report
from .train.loop import Outcome, on_device, train
from .train.plan import choose, make_budget

PIXEL_SIDE = 32  # raw pixels are compared at most at this size; more of them only costs time


@dataclass
class Run:
    """A finished run: its folder and what was measured."""

    folder: Path
    results: list[Result]
    notes: list[str]
    interrupted: int | None = None

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def load(self) -> Backbone:
        return load(self.folder)


def device_name() -> str:
    """cuda, mps or cpu: the best that is here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def settings_tree(*, method: str | None, recipe: str | Path | None, overrides: Sequence[str] | Mapping[str, Any],
                  **flags: Any) -> Tree:
    """Join recipe, flags and overrides; the last wins. Flags that are None were not given."""
    places = {"encoder": ("encoder", "name"), "image_size": ("encoder", "image_size"), "epochs": ("training", "epochs"),
              "images": ("training", "images"), "minutes": ("training", "minutes"), "batch_size": ("training", "batch_size"),
              "data": ("data", "path"), "val": ("data", "val"), "label": ("data", "label"), "group": ("data", "group"),
              "channels": ("data", "channels"), "max_bad": ("data", "max_bad"), "threads": ("data", "threads"),
              "compile": ("training", "compile")}
    tree = read_toml(recipe) if recipe else {}
    given = {k: v for k, v in flags.items() if v is not None}
    if {"epochs", "images", "minutes"} & set(given):  # a budget on the command line replaces the recipe's
        tree = merge(tree, {"training": {"epochs": None, "images": None, "minutes": None}})
    for key, value in given.items():
        section, name = places.get(key, (None, key))
        tree = merge(tree, {section: {name: value}} if section else {name: value})
    if method is not None:
        tree = merge(tree, {"method": {"name": method}})
    if isinstance(overrides, Mapping):
        return merge(tree, overrides)
    return merge(tree, *(parse_override(text) for text in overrides))


def make_encoder(config: RunConfig, cls: type[Method], channels: int) -> Encoder:
    """The encoder at its start: the same weights for the same seed."""
    torch.manual_seed(config.seed)
    e = config.encoder
    size = e.image_size or (224, 224)
    return Encoder(e.name, image_size=(size[0], size[-1]), channels=channels, patch_size=e.patch_size, width=e.width,
                   depth=e.depth, heads=e.heads, drop_path=e.drop_path or 0.0, pool=cls.pool, positions=cls.positions,
                   init=cls.init)


def make_method(config: RunConfig, channels: int) -> Method:
    cls = find(config.method_name)
    return cls(make_encoder(config, cls, channels), config.method)


def read_run(folder: Path) -> RunConfig:
    """The configuration a run was made with."""
    path = folder / "config.toml"
    if not path.is_file():
        raise Refused(f"{folder}: no config.toml in it, so it is no run; give the folder that --out named.")
    tree = read_toml(path)
    cls = find(tree["method"]["name"])
    settings = {k: v for k, v in tree.pop("method").items() if k != "name"}
    return fill(RunConfig, tree | {"method_name": cls.name, "method": fill(cls.Config, settings, "method")})


def open_split(config: RunConfig | None, data: Mapping[str, Any]) -> tuple[Images, Split]:
    """The images of a run and what of them is pretrained on, bank and queries."""
    known = dict(label=data.get("label"), group=data.get("group"), background=data.get("background", 255),
                 max_bad=data.get("max_bad", 0.05), threads=data.get("threads"))
    if not data.get("path"):
        raise Refused("no data: give a folder, an archive, a list or a table of images, as in: daybreak pretrain DATA.")
    images = open_images(data["path"], channels=data.get("channels"), **known)
    val = open_images(data["val"], **(known | {"channels": images.channels})) if data.get("val") else None
    return images, split_images(images, val)


def pretrain(data: str | Path | None = None, *, method: str | None = None, encoder: str | None = None,
             image_size: int | Sequence[int] | None = None, epochs: float | None = None, images: int | None = None,
             minutes: float | None = None, batch_size: int | None = None, val: str | Path | None = None,
             label: str | None = None, group: str | None = None, channels: int | None = None,
             max_bad: float | None = None, threads: int | None = None, compile: bool | None = None,
             out: str | Path | None = None, recipe: str | Path | None = None,
             overrides: Sequence[str] | Mapping[str, Any] = (), seed: int | None = None,
             resume: str | Path | None = None, pictures: bool = True, console: Console | None = None) -> Run:
    """Pretrain a backbone on a set of images, evaluate it, write its report and its weights.

    Args:
        data: folder, archive, list, table or saved data set.
        method: a name that ``daybreak methods`` lists (default "sit"), or the path of a method file.
        epochs, images, minutes: the budget, one of them; 30 minutes on a CPU and 100 epochs elsewhere by default.
        val: labelled images for the evaluation; otherwise a split of ``data``, or a tenth of it.
        overrides: ``["method.mask_ratio=0.7"]`` or a nested mapping.
        resume: the folder of an interrupted run; nothing else may be given with it but ``data``.
        pictures: False leaves all images out of the report.

    Returns:
        The run: folder, results, notes.

    Raises:
        Refused: bad input. Failed: a run that could not go on.

    Example:
        >>> import daybreak
        >>> run = daybreak.pretrain("photos/", method="mae", minutes=10)  # doctest: +SKIP
    """
    console = console or Console()
    device = device_name()
    if resume is not None:
        folder = Path(resume)
        config = read_run(folder)
        tree = recipe_tree(config)
        _, split = open_split(config, tree["data"])
    else:
        tree = settings_tree(method=method, recipe=recipe, overrides=overrides, data=str(data) if data else None,
                             encoder=encoder, image_size=image_size, epochs=epochs, images=images, minutes=minutes,
                             batch_size=batch_size, val=str(val) if val else None, label=label, group=group,
                             channels=channels, max_bad=max_bad, threads=threads, compile=compile, seed=seed)
        cls = find(tree.setdefault("method", {}).setdefault("name", "sit"))
        all_images, split = open_split(None, tree.get("data", {}))
        console.print(f"data: {all_images.sentence()}")
        config, choices = choose(cls, tree, split.train, device)
        folder = Path(out) if out else free_folder(Path("runs"), cls.name)
        if (folder / "config.toml").exists():
            raise Refused(f"{folder}: holds another run; choose another --out, or go on with it: "
                          f"daybreak pretrain --resume {folder}")
        say_plan(console, config, choices, device)
    made = make_method(config, split.train.channels)
    fabric = Fabric(accelerator=device, devices=1, precision=config.training.precision)  # type: ignore[arg-type]
    fabric.launch()
    if resume is None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(to_toml(recipe_tree(config)) + "\n")
        (folder / "command.txt").write_text(command_line() + "\n")
        all_images.survey.write(folder)
    console.print(f"run: {folder}")
    budget = make_budget(config.training, len(split.train), time.monotonic)
    torch.manual_seed(config.seed)
    outcome = train(made, split.train, config, folder, fabric=fabric, budget=budget, console=console,
                    probe=make_probe(split, config, fabric), resume=resume is not None)
    if outcome.interrupted is not None:
        console.print(f"interrupted after {outcome.images_seen:,} images; all is saved. Go on with: "
                      f"daybreak pretrain --resume {folder}")
        return Run(folder, [], [], outcome.interrupted)
    return finish(made, config, split, folder, outcome, fabric, pictures=pictures, console=console)


def free_folder(parent: Path, name: str) -> Path:
    """The first of ``parent/name-1``, ``-2`` ... that does not exist."""
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"


def command_line() -> str:
    """The command of this process as one would type it."""
    import shlex

    return " ".join(["daybreak" if "daybreak" in Path(sys.argv[0]).name else "python", *map(shlex.quote, sys.argv[1:])])


def defaults_of(config: RunConfig) -> RunConfig:
    """The configuration of the same method with nothing said."""
    cls = find(config.method_name)
    return fill(RunConfig, {"method_name": cls.name, "method": cls.Config(), "training": cls.training,
                            "data": {}, "encoder": {}, "watch": {}})


def say_plan(console: Console, config: RunConfig, choices: list, device: str) -> None:
    console.print(f"method: {config.method_name} on {device}")
    for choice in choices:
        console.print(f"  chosen {choice.name} = {choice.value} ({choice.reason})")
    chosen = {c.name for c in choices}
    for name, default, value in difference(config, defaults_of(config)):
        if name not in chosen and name != "data.path":
            console.print(f"  set {name} = {value} (default {default})")


def make_probe(split: Split, config: RunConfig, fabric: Fabric):
    """Health and online kNN of a backbone on a fixed part of bank and queries; draws nothing from a generator."""
    watch = config.watch
    bank = split.bank.subset(np.linspace(0, len(split.bank) - 1, min(watch.probe_bank, len(split.bank))).astype(int))
    queries = split.queries.subset(np.linspace(0, len(split.queries) - 1, min(watch.probe_queries, len(split.queries))).astype(int))

    def probe(backbone: torch.nn.Module) -> dict[str, float]:
        size = backbone.image_size
        z = features(backbone, bank, size=size, device=fabric.device, precision=config.training.precision)
        found = {"rankme": rankme(z), "spread": spread(z)}
        if bank.labels is not None and bank.labels.kind == "class":
            q = features(backbone, queries, size=size, device=fabric.device, precision=config.training.precision)
            for result in evaluate_features(z, bank.labels, q, queries.labels, protocols=("knn-v1",), backbone="trained",
                                            data="", seed=config.seed)[0]:
                if result.metric == "accuracy":
                    found["knn_accuracy"] = result.value
        return found

    return probe
