"""The verbs of the command line as functions: those that make something here, those that look at it in ``looking``."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.strategies import DDPStrategy
from rich.console import Console

from .config import RunConfig, recipe_tree, to_tree, write_config
from .data.dsprites import is_dsprites
from .data.encode import PackSettings
from .data.images import Split
from .data.pack import write_pack
from .data.sources import open_source, printable
from .data.store import verify_pack
from .errors import Failed, Refused
from .launch import World, cluster_here, spawn, world_here
from .looking import compare, embed, evaluate, explain, export, load, rank
from .methods.base import Method, find, names
from .review import STRIPS, Run, finish, make_probe, read_results
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
from .train.progress import Bar

__all__ = ["Plan", "Run", "compare", "demo", "describe_methods", "embed", "evaluate", "explain", "export", "load", "pack", "plan",
           "pretrain", "rank"]


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
             save_minutes: float | None = None, on_collapse: str | None = None, resume: str | Path | None = None,
             skip_failure: bool = False, force: bool = False, pictures: bool = True, console: Console | None = None) -> Run:
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
        init_partial=init_partial, seed=seed, save_minutes=save_minutes, on_collapse=on_collapse)
    if resume is not None:
        if out is not None:
            raise Refused(f"--resume {resume} goes on in that folder; leave out --out {out}.")
        folder, made = Path(resume), None
        config, forced = resumed(folder, tree, force=force)
        if leads:
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
        _, split = open_split(recipe_tree(config)["data"], find(config.method_name).labels)
        made = make_method(config, split.train.channels, None if every(folder / "checkpoints") else console)
    fabric = make_fabric(device, config.training.precision, world)
    return work(made, config, split, folder, fabric, pictures=pictures, console=console, **switches)


def work(method: Method, config: RunConfig, split: Split, folder: Path, fabric: Fabric, *, pictures: bool,
         console: Console, skip_failure: bool = False, force: bool = False) -> Run:
    """Train, from the last checkpoint if there is one, then measure and report: what each process of a run does."""
    folder = Path(fabric.broadcast(str(folder)))  # without --out each rank would count for itself
    budget = make_budget(config.training, len(split.train), time.monotonic)
    torch.manual_seed(config.seed)
    resume, start = skip_failure or bool(every(folder / "checkpoints")), folder / "start_neighbours.pt"
    if fabric.is_global_zero and not resume:
        start.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    continues = config.encoder.init is not None and (not resume or start.exists())  # else the weights it began with are gone
    outcome = train(method, split.train, config, folder, fabric=fabric, budget=budget, console=console,
                    probe=make_probe(split, config, fabric, start if continues else None, folder / STRIPS if pictures else None),
                    resume=resume, skip_failure=skip_failure, force=force)
    if fabric.world_size > 1:
        torch.distributed.destroy_process_group()  # what follows is the first one's alone
    if outcome.interrupted is not None:
        console.print(f"interrupted after {outcome.images_seen:,} images; all is saved. Go on with: "
                      f"daybreak pretrain --resume {folder}", soft_wrap=True, highlight=False)
        return Run(folder, [], [], outcome.interrupted)
    if not fabric.is_global_zero:
        return Run(folder, [], [])
    run = finish(method, config, split, folder, outcome, fabric, pictures=pictures, console=console)
    if outcome.stopped:
        console.print(f"stopped after {outcome.images_seen:,} images: {outcome.stopped} To go on all the same: "
                      f"daybreak pretrain --resume {folder} --on-collapse warn", soft_wrap=True, highlight=False)
    return run


def absolute(path: str | Path | None) -> str | None:
    """The whole path, so that a run finds its data again from any folder."""
    if path is None:
        return None
    if is_dsprites(path):
        return str(path)
    whole = str(Path(path).absolute())
    if whole != printable(whole):
        raise Refused(f"{printable(whole)}: the name is not UTF-8, and a run could not note it; rename it, or give a link to it.")
    return whole


def make_fabric(device: str, precision: str, world: World | None = None) -> Fabric:
    """One device, or all of a world; the precision goes in as a plugin, because Fabric else announces what the plan has said."""
    mixed: Any = precision  # Fabric's types want the literal; config.Training has checked it
    plugins: list[Any] = [cluster_here(), *([MixedPrecision(mixed, device)] if precision.endswith("-mixed") else [])]
    if world is None:
        fabric = Fabric(accelerator=device, devices=1, plugins=plugins)
    else:
        fabric = Fabric(accelerator=device, devices=world.per_node, num_nodes=world.nodes, plugins=plugins,
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


def pack(data: str | Path | None = None, out: str | Path | None = None, *, short_side: int | str = 256,
         encoding: Literal["auto", "jpeg", "raw", "lossless"] = "auto", quality: int = 90, workers: int | None = None,
         label: str | None = None, group: str | None = None, max_bad: float = 0.05, verify: str | Path | None = None,
         console: Console | None = None) -> Path:
    """Pack images into Arrow shards that train faster and that ``datasets.load_from_disk`` opens; or verify a pack.

    Args:
        data: folder, archive, list, table or saved data set. out: the folder to write, or to go on with.
        short_side: pixels; images whose shorter side is larger are shrunk to it. "keep" shrinks none.
        encoding: "auto" (JPEG; raw pixels up to 64 x 64; PNG for 16-bit grey or transparency), "jpeg", "raw", "lossless".
        quality: of JPEG, 1 to 100.
        workers: threads; None takes one for each processor.
        verify: a pack to read again and check; nothing else may be given with it.

    Returns:
        The folder of the pack.

    Raises:
        Refused: bad input, or a folder that holds another pack. Failed: it can't be written, or is damaged.

    Example:
        >>> import daybreak
        >>> daybreak.pack("photos/", "packed/", short_side=256)  # doctest: +SKIP
        >>> run = daybreak.pretrain("packed/")  # doctest: +SKIP
    """
    console = console or Console()
    if verify is not None:
        if data is not None or out is not None:
            raise Refused(f"--verify {verify} reads a pack and writes none; leave {data or out} out.")
        with Bar(console, title="verifying") as bar:
            damaged = verify_pack(Path(verify), lambda done, total: bar.count(done / 1e6, total / 1e6, "MB"))
        for sentence in damaged:
            console.print(f"damaged: {sentence}", soft_wrap=True, highlight=False)
        if damaged:
            raise Failed(f"{verify}: {len(damaged)} of its shards damaged; remove these, and the daybreak pack command that "
                         "wrote them packs them again.")
        console.print(f"{verify}: all shards are whole", soft_wrap=True)
        return Path(verify)
    if data is None or out is None:
        raise Refused("two names are needed: the images and the folder to write, as in: daybreak pack DATA OUT.")
    if short_side != "keep" and not str(short_side).isdecimal():
        raise Refused(f"--short-side {short_side}; expected pixels, 1 or more, or keep.")
    settings = PackSettings(short_side=None if short_side == "keep" else int(short_side), encoding=encoding, quality=quality)
    source, out = open_source(data, label=label, group=group), Path(out)
    try:
        with Bar(console, title="packing") as bar:
            packed = write_pack(source, out, settings, max_bad=max_bad, workers=workers,
                                progress=lambda done, total: bar.count(done, total, "images"))
    except KeyboardInterrupt:
        raise Failed(f"{out}: interrupted; the shards that are whole stay, and the same command goes on.") from None
    console.print(f"packed: {packed.sentence}", soft_wrap=True)
    if packed.left_out:
        console.print(f"left out: {packed.left_out:,} unreadable images, named in {out / 'bad.csv'}", soft_wrap=True)
    console.print(f"{packed.bytes / 1e9:.2f} GB in {packed.shards:,} shards: {out}", soft_wrap=True)
    return out


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
