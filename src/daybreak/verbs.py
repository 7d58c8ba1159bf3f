"""The verbs of the command line as functions: pretrain, evaluate, embed, export, load, demo."""

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.table import Table

from .config import RunConfig, Tree, difference, fill, merge, parse_override, read_toml, recipe_tree, to_toml, to_tree
from .data.images import Images, Split, open_images, split_images
from .data.loader import Loader
from .data.philox import Random
from .data.views import expand
from .errors import Refused
from .evaluate.features import features, pixels
from .evaluate.protocols import DEFAULT, Result, Skipped, evaluate_features
from .evaluate.rank import rankme, spread
from .explain.neighbours import neighbours
from .explain.projection import project
from .export.backbone import Backbone, load, write_backbone
from .export.formats import export as export_backbone
from .methods.base import Method, Picture, Step, find, names
from .nn.encoder import Encoder
from .report.html import Looks, write_report
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


def open_split(data: Mapping[str, Any]) -> tuple[Images, Split]:
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
        _, split = open_split(tree["data"])
    else:
        tree = settings_tree(method=method, recipe=recipe, overrides=overrides, data=str(data) if data else None,
                             encoder=encoder, image_size=image_size, epochs=epochs, images=images, minutes=minutes,
                             batch_size=batch_size, val=str(val) if val else None, label=label, group=group,
                             channels=channels, max_bad=max_bad, threads=threads, compile=compile, seed=seed)
        cls = find(tree.setdefault("method", {}).setdefault("name", "sit"))
        all_images, split = open_split(tree.get("data", {}))
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
        common = dict(size=size, device=fabric.device, precision=config.training.precision, mean=split.train.mean,
                      std=split.train.std, threads=config.data.threads)
        z = features(backbone, bank, **common)
        found = {"rankme": rankme(z), "spread": spread(z)}
        if bank.labels is not None and bank.labels.kind == "class":
            results, _ = evaluate_features(z, bank.labels, features(backbone, queries, **common), queries.labels,
                                           protocols=("knn-v1",))
            found |= {"knn_accuracy": r.value for r in results if r.metric == "accuracy"}
        return found

    return probe


def finish(method: Method, config: RunConfig, split: Split, folder: Path, outcome: Outcome, fabric: Fabric, *,
           pictures: bool, console: Console) -> Run:
    """Measure the trained backbone beside its random start and raw pixels; write weights, results and report."""
    write_backbone(method.backbone, folder / "backbone", mean=split.train.mean, std=split.train.std,
                   info={"method": config.method_name, "images_seen": outcome.images_seen, "seed": config.seed,
                         "data": split.train.fingerprint, "channels": split.train.channels, "depth": split.train.depth,
                         "background": config.data.background})
    console.print("evaluating: the trained backbone, the same network with random weights, raw pixels")
    results, skipped, (bank, queries) = measure(method, config, split, fabric)
    notes = list(dict.fromkeys(str(s) for s in skipped))
    if split.seen and split.bank.labels is not None:
        notes.append("Without --val or a split, a fixed tenth of the images (by hash of their keys) are the queries; "
                     "pretraining saw them, unlabelled.")
    if outcome.bad_images:
        notes.append(f"{outcome.bad_images} images could not be read while training and were replaced by others.")
    (folder / "results.json").write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    looks = look(method, config, split, fabric, folder, bank, queries, notes, pictures=pictures)
    report = write_report(folder, looks=looks, pictures=pictures)
    for note in notes:
        console.print(f"note: {note}")
    console.print(table_of(results))
    console.print(f"{outcome.images_seen:,} images in {outcome.seconds / 60:.1f} minutes, {outcome.waiting:.0%} of it waiting "
                  "for images")
    console.print(f"backbone: {folder / 'backbone'}", soft_wrap=True)
    console.print(f"report: {report}", soft_wrap=True)
    return Run(folder, results, notes)


def measure(method: Method, config: RunConfig, split: Split, fabric: Fabric) -> tuple[list[Result], list[Skipped], tuple]:
    """Results of all protocols for the three backbones, what was skipped, and the trained vectors of bank and queries."""
    cls, size = type(method), method.backbone.image_size
    random = make_encoder(config, cls, split.train.channels).to(fabric.device)
    common = dict(size=size, device=fabric.device, precision=config.training.precision, mean=split.train.mean,
                  std=split.train.std, threads=config.data.threads)
    small = tuple(min(side, PIXEL_SIDE) for side in size)
    tables: dict[Any, tuple] = {
        "trained": tuple(features(method.backbone, images, **common) for images in (split.bank, split.queries)),
        "random": tuple(features(random, images, **common) for images in (split.bank, split.queries)),
        "pixels": tuple(pixels(images, small, threads=config.data.threads) for images in (split.bank, split.queries)),
    }
    results: list[Result] = []
    skipped: list[Skipped] = []
    for backbone, (bank, queries) in tables.items():
        known = dict(backbone=backbone, data=split.train.fingerprint, seed=config.seed)
        found, left = evaluate_features(bank, split.bank.labels, queries, split.queries.labels, bank_groups=split.bank.groups,
                                        query_groups=split.queries.groups, **known)
        results, skipped = results + found, skipped + left
        if backbone != "pixels":
            results += [Result("rank", "v1", metric, value(bank), None, num_train=len(bank), **known)
                        for metric, value in (("rankme", rankme), ("spread", spread))]
    return results, skipped, tables["trained"]


def table_of(results: list[Result]) -> Table:
    """Accuracy and health: a row a number, a column a backbone."""
    table = Table(box=None, header_style="bold")
    for name in ("", "trained", "random weights", "raw pixels"):
        table.add_column(name, justify="left" if not name else "right")
    shown = [r for r in results if r.metric.startswith("accuracy") or r.protocol == "rank"]
    for protocol, version, metric in dict.fromkeys((r.protocol, r.version, r.metric) for r in shown):
        cells = []
        for backbone in ("trained", "random", "pixels"):
            (r,) = [r for r in shown if (r.protocol, r.metric, r.backbone) == (protocol, metric, backbone)] or [None]
            if r is None:
                cells.append("")
            elif r.error is None:
                cells.append(f"{r.value:.3g}")
            else:
                cells.append(f"{r.value:.1%} ± {r.error:.1%}")
        table.add_row(f"{protocol}-{version} {metric}", *cells)
    return table


def look(method: Method, config: RunConfig, split: Split, fabric: Fabric, folder: Path, bank: torch.Tensor, queries: torch.Tensor,
         notes: list[str], *, pictures: bool) -> Looks:
    """What the report shows besides numbers."""
    reconstructions = None
    if pictures and (picture := draw(method, config, split.queries if len(split.queries) >= 8 else split.train, fabric)):
        mean, std = (np.array(v)[:, None, None] for v in (split.train.mean, split.train.std))

        def visible(image: torch.Tensor) -> np.ndarray:
            pixels = image.float().cpu().numpy() * std + mean
            return (pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)[:, :, :3]

        reconstructions = [{"caption": picture.caption, "columns": picture.columns,
                            "rows": [[visible(i) for i in row] for row in picture.rows]}]
    return Looks(
        command=(folder / "command.txt").read_text().strip(), differences=difference(config, defaults_of(config)), notes=notes,
        neighbours=neighbours(queries, bank, split.queries, split.bank) if pictures else None,
        projection=project(queries, split.queries, pictures=pictures, seed=config.seed), reconstructions=reconstructions)


def draw(method: Method, config: RunConfig, images: Images, fabric: Fabric, count: int = 8) -> Picture | None:
    """The method's own picture of a few images."""
    count = min(count, len(images))
    few = images.subset(np.linspace(0, len(images) - 1, count).astype(int))
    loader = Loader(few, method.views, count, seed=config.seed, threads=1, labels=False)
    with contextlib.closing(loader), torch.no_grad():
        raw = next(loader)
        random = Random(config.seed, raw.epoch, raw.index)
        batch = on_device(raw, expand(method.views), random, few, fabric.device)
        return method.eval().picture(batch, Step(1.0, 0, replace(random, index=batch.index)))


def evaluate(run: str | Path, *, train: str | Path, test: str | Path, protocols: Sequence[str] | None = None,
             label: str | None = None, seed: int = 0, console: Console | None = None) -> list[Result]:
    """Measure the backbone of a run on labelled images and print the table.

    Args:
        run: folder of a run or of a backbone.
        train: images of the bank, which linear-v1 also trains on. test: the queries.
        protocols: names; None takes knn-v1 and linear-v1.

    Raises:
        Refused: unknown protocol, images without labels, classes that differ.
    """
    console = console or Console()
    backbone, device = load(run), device_name()
    backbone.encoder.to(device)
    known = dict(label=label, channels=backbone.channels)
    first, second = open_images(train, **known), open_images(test, **known)
    split = split_images(first, second)
    split = replace(split, bank=first, train=first)
    common = dict(size=backbone.size, device=device, mean=backbone.mean, std=backbone.std)
    vectors = [features(backbone.encoder, images, **common) for images in (split.bank, split.queries)]
    results, skipped = evaluate_features(
        vectors[0], split.bank.labels, vectors[1], split.queries.labels, protocols=tuple(protocols or DEFAULT),
        data=first.fingerprint, seed=seed, bank_groups=split.bank.groups, query_groups=split.queries.groups)
    for left in skipped:
        console.print(f"note: {left}")
    if not results:
        raise Refused(f"{train}: nothing could be measured; {skipped[0].reason}")
    for r in results:
        error = f" ± {r.error:.1%}" if r.error is not None else ""
        console.print(f"  {r.protocol}-{r.version} {r.metric}: {r.value:.1%}{error}")
    return results


def embed(run: str | Path, data: str | Path, *, out: str | Path, label: str | None = None, group: str | None = None,
          console: Console | None = None) -> Path:
    """Write a Parquet file with key, label and group (where there are any) and vector of every readable image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    console = console or Console()
    backbone, device, out = load(run), device_name(), Path(out)
    backbone.encoder.to(device)
    images = open_images(data, label=label, group=group, channels=backbone.channels)
    console.print(f"data: {images.sentence()}")
    vectors = features(backbone.encoder, images, size=backbone.size, device=device, mean=backbone.mean, std=backbone.std)
    columns: dict[str, Any] = {"key": images.keys}
    if images.labels is not None:
        values = images.labels.values
        columns["label"] = ([images.labels.classes[v] if v >= 0 else None for v in values] if images.labels.kind == "class"
                            else values.tolist())
    if images.groups is not None:
        columns["group"] = images.groups
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().ravel()), vectors.shape[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.part")
    pq.write_table(pa.table(columns), beside)
    os.replace(beside, out)
    console.print(f"{len(images):,} vectors of width {vectors.shape[1]}: {out}", soft_wrap=True)
    return out


def export(run: str | Path, *, to: str, out: str | Path, console: Console | None = None) -> Path:
    """Write the backbone of a run as ``timm``, ``safetensors`` or ``onnx``; returns what was written."""
    path = export_backbone(run, to, out)
    (console or Console()).print(f"{to}: {path}", soft_wrap=True)
    return path


def demo(*, out: str | Path | None = None, minutes: float | None = None, seed: int = 0,
         console: Console | None = None) -> Run:
    """Pretrain on the animal silhouettes that come with the package, evaluate, report."""
    here = Path(__file__).parent / "demo"
    return pretrain(here / "animals-train.parquet", val=here / "animals-val.parquet", recipe=here / "demo.toml",
                    minutes=minutes, seed=seed, out=out or free_folder(Path("runs"), "demo"), console=console)


def describe_methods() -> list[dict[str, Any]]:
    """Name, summary, what it asks for, and settings with their defaults, of every method."""
    rows = []
    for name in names():
        cls = find(name)
        document = sys.modules[cls.__module__].__doc__ or ""
        rows.append({"name": name, "summary": document.strip().splitlines()[0], "labels": cls.labels, "pool": cls.pool,
                     "needs_tokens": cls.needs_tokens, "settings": to_tree(cls.Config()), "training": to_tree(cls.training),
                     "small": cls.small})
    return rows
