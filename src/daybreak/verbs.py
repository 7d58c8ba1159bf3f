"""The verbs of the command line as functions: pretrain, plan, evaluate, compare, embed, export, load, demo."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.strategies import DDPStrategy
from rich.console import Console

from .compare import Row, compare_runs, keep_results, told
from .config import RunConfig, recipe_tree, to_tree, write_config
from .data.images import Split, open_images
from .errors import Refused
from .evaluate.features import features, fingerprint, kept_features
from .evaluate.protocols import DEFAULT, Result, check, evaluate_features
from .evaluate.tasks import Outside
from .export.backbone import load
from .export.formats import export as export_backbone
from .launch import World, spawn, world_here
from .methods.base import Method, find, names
from .review import Run, finish, make_probe, read_results
from .runs import (
    command_line,
    device_name,
    free_folder,
    make_method,
    make_room,
    open_split,
    resolve,
    resumed,
    say_forecast,
    settings_tree,
)
from .train.checkpoint import every
from .train.forecast import Forecast
from .train.loop import train
from .train.plan import make_budget

__all__ = ["Plan", "Run", "compare", "demo", "describe_methods", "embed", "evaluate", "export", "load", "plan", "pretrain"]


@dataclass(frozen=True)
class Plan:
    """What a run would be, and what it would take."""

    config: RunConfig
    forecast: Forecast


def pretrain(data: str | Path | None = None, *, method: str | None = None, encoder: str | None = None,
             image_size: int | Sequence[int] | None = None, epochs: float | None = None, images: int | None = None,
             minutes: float | None = None, batch_size: int | None = None, val: str | Path | None = None,
             label: str | None = None, group: str | None = None, channels: int | None = None,
             max_bad: float | None = None, threads: int | None = None, compile: bool | None = None, devices: int | None = None,
             init: str | Path | None = None, init_partial: bool | None = None,
             out: str | Path | None = None, recipe: str | Path | None = None,
             overrides: Sequence[str] | Mapping[str, Any] = (), seed: int | None = None,
             save_minutes: float | None = None, resume: str | Path | None = None, skip_failure: bool = False,
             force: bool = False, pictures: bool = True, console: Console | None = None) -> Run:
    """Pretrain a backbone on a set of images, evaluate it, write its report and its weights.

    Args:
        data: folder, archive, list, table or saved data set.
        method: a name that ``daybreak methods`` lists (default "sit"), or the path of a method file.
        epochs, images, minutes: the budget, one of them; 30 minutes on a CPU and 100 epochs elsewhere by default.
        val: labelled images for the evaluation; otherwise a split of ``data``, or a tenth of it.
        devices: processes, one a device, that share each batch; torchrun and Slurm's srun say it themselves.
        init: start from the weights of a run, of a file or of ``timm:NAME``; ``init_partial`` takes what fits of them.
        overrides: ``["method.mask_ratio=0.7"]`` or a nested mapping.
        save_minutes: between two checkpoints; 10 by default.
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
    device, world = device_name(), world_here()
    leads = world is None or world.rank == 0
    console = console or Console(quiet=not leads)
    if init is not None and not str(init).startswith("timm:"):
        init = absolute(init)
    if world is not None and resume is None:
        devices = world.size
    tree = settings_tree(
        method=method, recipe=recipe, overrides=overrides, data=absolute(data), encoder=encoder, image_size=image_size,
        epochs=epochs, images=images, minutes=minutes, batch_size=batch_size, val=absolute(val), label=label, group=group,
        channels=channels, max_bad=max_bad, threads=threads, compile=compile, devices=devices, init=init,
        init_partial=init_partial, seed=seed, save_minutes=save_minutes)
    if resume is not None:
        if out is not None:
            raise Refused(f"--resume {resume} goes on in that folder; leave out --out {out}.")
        folder, made = Path(resume), None
        config, forced = resumed(folder, tree, force=force)
        if forced and leads:
            write_config(folder, config)
    else:
        if skip_failure:
            raise Refused("--skip-failure goes on with a run that failed; say which with --resume RUN.")
        all_images, split, config, made = resolve(console, device, tree)
        if world is None:
            say_forecast(console, made, split.train, config, make_fabric(device, config.training.precision))
        folder = Path(out) if out else free_folder(Path("runs"), type(made).name)
        forced = make_room(folder, config, force=force) if leads else ""
        if leads:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "command.txt").write_text(command_line() + "\n")
            all_images.survey.write(folder)
            write_config(folder, config)
    if world is None or resume is None:  # else the process that started this one has said it
        if forced:
            console.print(f"forced: {forced}", soft_wrap=True, highlight=False)
        console.print(f"run: {folder}", soft_wrap=True)
    switches = dict(skip_failure=skip_failure, force=force)
    if world is None and config.training.devices > 1:
        flags = [f"--{name.replace('_', '-')}" for name, on in (switches | {"no_pictures": not pictures}).items() if on]
        interrupted = spawn(["pretrain", "--resume", str(folder), *flags], config.training.devices)
        return Run(folder, [] if interrupted else read_results(folder), [], interrupted)
    if made is None:
        _, split = open_split(recipe_tree(config)["data"])
        made = make_method(config, split.train.channels, None if every(folder / "checkpoints") else console)
    fabric = make_fabric(device, config.training.precision, world)
    return work(made, config, split, folder, fabric, pictures=pictures, console=console, **switches)


def work(method: Method, config: RunConfig, split: Split, folder: Path, fabric: Fabric, *, pictures: bool,
         console: Console, skip_failure: bool = False, force: bool = False) -> Run:
    """Train, from the last checkpoint if there is one, then measure and report: what each process of a run does."""
    folder = Path(fabric.broadcast(str(folder)))  # without --out each rank would count for itself
    budget = make_budget(config.training, len(split.train), time.monotonic)
    torch.manual_seed(config.seed)
    outcome = train(method, split.train, config, folder, fabric=fabric, budget=budget, console=console,
                    probe=make_probe(split, config, fabric), resume=skip_failure or bool(every(folder / "checkpoints")),
                    skip_failure=skip_failure, force=force)
    if fabric.world_size > 1:
        torch.distributed.destroy_process_group()  # what follows is the first one's alone
    if outcome.interrupted is not None:
        console.print(f"interrupted after {outcome.images_seen:,} images; all is saved. Go on with: "
                      f"daybreak pretrain --resume {folder}")
        return Run(folder, [], [], outcome.interrupted)
    if not fabric.is_global_zero:
        return Run(folder, [], [])
    return finish(method, config, split, folder, outcome, fabric, pictures=pictures, console=console)


def absolute(path: str | Path | None) -> str | None:
    """The whole path, so that a run finds its data again from any folder."""
    return None if path is None else str(Path(path).absolute())


def make_fabric(device: str, precision: str, world: World | None = None) -> Fabric:
    """One device, or all of a world; the precision goes in as a plugin, because Fabric else announces what the plan has said."""
    mixed: Any = precision  # Fabric's types want the literal; config.Training has checked it
    plugin = MixedPrecision(mixed, device) if precision.endswith("-mixed") else None
    if world is None:
        fabric = Fabric(accelerator=device, devices=1, plugins=plugin)
    else:
        fabric = Fabric(accelerator=device, devices=world.per_node, num_nodes=world.nodes, plugins=plugin,
                        strategy=DDPStrategy(broadcast_buffers=False))
    fabric.launch()
    return fabric


def plan(data: str | Path, *, hours: float | None = None, method: str | None = None, encoder: str | None = None,
         image_size: int | Sequence[int] | None = None, batch_size: int | None = None, channels: int | None = None,
         devices: int | None = None, recipe: str | Path | None = None, overrides: Sequence[str] | Mapping[str, Any] = (),
         console: Console | None = None) -> Plan:
    """Say what ``pretrain`` would do with these images, and what it would take, after a few steps; nothing is written.

    Args:
        hours: the budget; otherwise that of ``pretrain``.

    Returns:
        The configuration, and the forecast of speed and memory.

    Raises:
        Refused: what ``pretrain`` would refuse.
    """
    console, device = console or Console(), device_name()
    tree = settings_tree(method=method, recipe=recipe, overrides=overrides, data=absolute(data), encoder=encoder,
                         image_size=image_size, batch_size=batch_size, channels=channels, devices=devices,
                         minutes=None if hours is None else 60 * hours)
    _, split, config, made = resolve(console, device, tree)
    found = say_forecast(console, made, split.train, config, make_fabric(device, config.training.precision))
    return Plan(config, found)


def evaluate(run: str | Path, *, train: str | Path, test: str | Path, protocols: Sequence[str] | None = None,
             label: str | None = None, group: str | None = None, ood: str | Path | None = None, seed: int = 0,
             console: Console | None = None) -> list[Result]:
    """Measure the backbone of a run on labelled images, print the table, add the numbers to the run's ``evaluations.json``.

    Vectors are kept in the run's ``features/`` and used again.

    Args:
        run: folder of a run or of a backbone.
        train: images of the bank, which classifiers are also trained on. test: the queries.
        protocols: names; None takes knn-v1 and linear-v1, or multilabel-v1 where images have several labels.
        group: column of what belongs together, in both sets.
        ood: images of other kinds, which ood-v1 tells from those of ``test``.
        seed: of draws, orders and resamples.

    Raises:
        Refused: unknown protocol, images without labels, no class in common.
    """
    console = console or Console()
    check(protocols or ())
    if ood is not None and "ood-v1" not in (protocols or ()):
        raise Refused(f"--ood {ood} is read by ood-v1 alone; add --protocol ood-v1.")
    backbone, device, folder = load(run), device_name(), Path(run)
    backbone.encoder.to(device)
    sets = [open_images(path, label=label, channels=backbone.channels, group=group) for path in (train, test)]
    if ood is not None:
        sets.append(open_images(ood, channels=backbone.channels))
    vectors = []
    for images in sets:
        found, sentence = kept_features(folder / "features", backbone.encoder, images, size=backbone.size, device=device,
                                        mean=backbone.mean, std=backbone.std)
        console.print(f"{images.source.path}: {sentence}", soft_wrap=True, highlight=False)
        vectors.append(found)
    (bank, queries), kind = sets[:2], sets[0].labels.kind if sets[0].labels else "none"
    chosen = tuple(protocols or (("multilabel-v1",) if kind == "multi" else DEFAULT))
    results, skipped = evaluate_features(
        vectors[0], bank.labels, vectors[1], queries.labels, protocols=chosen, data=bank.fingerprint, seed=seed,
        bank_groups=bank.groups, query_groups=queries.groups, test_data=queries.fingerprint,
        backbone_hash=fingerprint(backbone.encoder),
        outside=None if ood is None else Outside(vectors[2], sets[2].groups, sets[2].fingerprint))
    for left in skipped:
        console.print(f"note: {left}", soft_wrap=True, highlight=False)
    if not results:
        raise Refused(f"{train}: nothing could be measured; {skipped[0].reason}")
    for r in results:
        console.print(f"  {r.protocol}-{r.version} {r.metric}: {told(r)}", soft_wrap=True, highlight=False)
    console.print(f"numbers: {keep_results(folder, results)}", soft_wrap=True)
    return results


def compare(runs: Sequence[str | Path], *, out: str | Path | None = None, console: Console | None = None) -> list[Row]:
    """Print the numbers of the trained backbones of runs side by side, and mark those that differ from the first's.

    Args:
        out: an HTML file in which they are also drawn.

    Raises:
        Refused: fewer than two runs, a folder without numbers, or no number that was measured alike in all of them.
    """
    return compare_runs([Path(run) for run in runs], console or Console(), None if out is None else Path(out))


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
