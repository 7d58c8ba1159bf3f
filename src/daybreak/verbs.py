"""The verbs of the command line as functions: pretrain, evaluate, embed, export, load, demo."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from rich.console import Console

from .config import recipe_tree, to_tree, write_config
from .data.images import open_images, split_images
from .errors import Refused
from .evaluate.features import features
from .evaluate.protocols import DEFAULT, Result, evaluate_features
from .export.backbone import load
from .export.formats import export as export_backbone
from .methods.base import find, names
from .review import Run, finish, make_probe
from .runs import (
    command_line,
    device_name,
    free_folder,
    make_method,
    make_room,
    open_split,
    resumed,
    say_plan,
    settings_tree,
)
from .train.loop import train
from .train.plan import choose, make_budget

__all__ = ["Run", "demo", "describe_methods", "embed", "evaluate", "export", "load", "pretrain"]


def pretrain(data: str | Path | None = None, *, method: str | None = None, encoder: str | None = None,
             image_size: int | Sequence[int] | None = None, epochs: float | None = None, images: int | None = None,
             minutes: float | None = None, batch_size: int | None = None, val: str | Path | None = None,
             label: str | None = None, group: str | None = None, channels: int | None = None,
             max_bad: float | None = None, threads: int | None = None, compile: bool | None = None,
             out: str | Path | None = None, recipe: str | Path | None = None,
             overrides: Sequence[str] | Mapping[str, Any] = (), seed: int | None = None,
             save_minutes: float | None = None, on_collapse: str | None = None, resume: str | Path | None = None, 
             skip_failure: bool = False, force: bool = False, pictures: bool = True, console: Console | None = None) -> Run:
    """Pretrain a backbone on a set of images, evaluate it, write its report and its weights.

    Args:
        data: folder, archive, list, table or saved data set.
        method: a name that ``daybreak methods`` lists (default "sit"), or the path of a method file.
        epochs, images, minutes: the budget, one of them; 30 minutes on a CPU and 100 epochs elsewhere by default.
        val: labelled images for the evaluation; otherwise a split of ``data``, or a tenth of it.
        overrides: ``["method.mask_ratio=0.7"]`` or a nested mapping.
        save_minutes: between two checkpoints; 10 by default.
        on_collapse: "warn" or "stop"; by default a warning, and a stop if it stands for a tenth of the budget.
        resume: the folder of an interrupted run. Settings given with it must be those it was made with.
        skip_failure: go on past the batch whose loss was not finite.
        force: go on with other settings or other data, or move a run that stands in ``out`` aside; it is said which.
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
    flags = dict(data=absolute(data), encoder=encoder, image_size=image_size, epochs=epochs, images=images, minutes=minutes,
                 batch_size=batch_size, val=absolute(val), label=label, group=group, channels=channels, max_bad=max_bad,
                 threads=threads, compile=compile, seed=seed, save_minutes=save_minutes, on_collapse=on_collapse)
    tree = settings_tree(method=method, recipe=recipe, overrides=overrides, **flags)
    if resume is not None:
        if out is not None:
            raise Refused(f"--resume {resume} goes on in that folder; leave out --out {out}.")
        folder = Path(resume)
        config, forced = resumed(folder, tree, force=force)
        all_images, split = open_split(recipe_tree(config)["data"])
    else:
        if skip_failure:
            raise Refused("--skip-failure goes on with a run that failed; say which with --resume RUN.")
        named = tree.setdefault("method", {})
        cls = find(named.setdefault("name", "sit"))
        if named["name"] != cls.name:  # a file of the user's own: the run finds it again from any folder
            named["name"] = str(Path(named["name"]).resolve())
        all_images, split = open_split(tree.get("data", {}))
        console.print(f"data: {all_images.sentence()}", soft_wrap=True)
        config, choices = choose(cls, tree, split.train, device)
        folder = Path(out) if out else free_folder(Path("runs"), cls.name)
        say_plan(console, config, choices, device)
    made = make_method(config, split.train.channels)
    fabric = make_fabric(device, config.training.precision)
    if resume is None:
        forced = make_room(folder, config, force=force)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "command.txt").write_text(command_line() + "\n")
        all_images.survey.write(folder)
        write_config(folder, config)
    if forced:
        console.print(f"forced: {forced}", soft_wrap=True, highlight=False)
    console.print(f"run: {folder}", soft_wrap=True)
    budget = make_budget(config.training, len(split.train), time.monotonic)
    torch.manual_seed(config.seed)
    outcome = train(made, split.train, config, folder, fabric=fabric, budget=budget, console=console,
                    probe=make_probe(split, config, fabric), resume=resume is not None, skip_failure=skip_failure, force=force)
    if outcome.interrupted is not None:
        console.print(f"interrupted after {outcome.images_seen:,} images; all is saved. Go on with: "
                      f"daybreak pretrain --resume {folder}")
        return Run(folder, [], [], outcome.interrupted)
    run = finish(made, config, split, folder, outcome, fabric, pictures=pictures, console=console)
    if outcome.stopped:
        console.print(f"stopped after {outcome.images_seen:,} images: {outcome.stopped} To go on all the same: "
                      f"daybreak pretrain --resume {folder} --on-collapse warn", soft_wrap=True, highlight=False)
    return run


def absolute(path: str | Path | None) -> str | None:
    """The whole path, so that a run finds its data again from any folder."""
    return None if path is None else str(Path(path).absolute())


def make_fabric(device: str, precision: str) -> Fabric:
    """One device; the precision goes in as a plugin, because Fabric else announces what the plan has said."""
    mixed: Any = precision  # Fabric's types want the literal; config.Training has checked it
    plugin = MixedPrecision(mixed, device) if precision.endswith("-mixed") else None
    fabric = Fabric(accelerator=device, devices=1, plugins=plugin)
    fabric.launch()
    return fabric


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
    known: dict[str, Any] = dict(label=label, channels=backbone.channels)
    first, second = open_images(train, **known), open_images(test, **known)
    split = split_images(first, second)
    split = replace(split, bank=first, train=first)
    common: dict[str, Any] = dict(size=backbone.size, device=device, mean=backbone.mean, std=backbone.std)
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
    console.print(f"data: {images.sentence()}", soft_wrap=True)
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
                     "needs_tokens": cls.needs_tokens, "settings": to_tree(cls.Config()), "training": to_tree(cls.recipe),
                     "small": cls.small})
    return rows
