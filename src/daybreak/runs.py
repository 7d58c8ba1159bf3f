"""A run as a folder and a configuration: from flags and recipes to a method, and back from the folder."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console

from .config import RunConfig, Tree, difference, fill, from_tree, merge, parse_override, read_toml, recipe_tree, to_tree
from .data.images import Images, Split, open_images, split_images
from .data.photometric import without_colour
from .errors import Refused
from .launch import check_devices
from .methods.base import Method, find
from .nn.encoder import Encoder
from .start import start_from
from .train import checkpoint
from .train.forecast import Forecast, forecast
from .train.plan import choose, make_budget

ALIKE = ("watch.", "data.threads")  # settings that change nothing of what is learned
FIXED = ("encoder.", "training.optimizer", "training.no_decay")  # settings that the weights in a checkpoint depend on
SHOWN = 6  # differences named in one sentence


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
              "compile": ("training", "compile"), "devices": ("training", "devices"), "init": ("encoder", "init"),
              "init_partial": ("encoder", "init_partial"), "save_minutes": ("watch", "save_minutes"),
              "on_collapse": ("watch", "on_collapse")}
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


def resolve(console: Console, device: str, tree: Tree) -> tuple[Images, Split, RunConfig, Method]:
    """From settings to images, their split, the whole configuration and the method at its start; says what it found and chose.

    Raises:
        Refused: whatever of it can't be.
    """
    named = tree.setdefault("method", {})
    cls = find(named.setdefault("name", "sit"))
    if named["name"] != cls.name:  # a file of the user's own: the run finds it again from any folder
        named["name"] = str(Path(named["name"]).resolve())
    images, split = open_split(tree.get("data", {}), cls.labels)
    console.print(f"data: {images.sentence()}", soft_wrap=True)
    config, choices = choose(cls, tree, split.train, device)
    check_devices(config.training.devices, device)
    say_plan(console, config, choices, device)
    made = make_method(config, split.train.channels, console)
    if said := without_colour(made.views, split.train.channels):
        console.print(f"  {said}", soft_wrap=True, highlight=False)
    return images, split, config, made


def of_split(images: Images, names: Sequence[str], console: Console) -> Images:
    """The images of the first of these splits that the source has, which is said; all of them if it has none."""
    found = images.of_split(*names)
    if found is not images and found.splits:
        console.print(f"{images.source.path}: the {len(found):,} images of its split {found.splits[0]}", soft_wrap=True)
    return found


def make_encoder(config: RunConfig, cls: type[Method], channels: int) -> Encoder:
    """The encoder at its start: the same weights for the same seed."""
    torch.manual_seed(config.seed)
    e = config.encoder
    size = e.image_size or (224, 224)
    return Encoder(e.name, image_size=(size[0], size[-1]), channels=channels, patch_size=e.patch_size, width=e.width,
                   depth=e.depth, heads=e.heads, drop_path=e.drop_path or 0.0, pool=cls.pool, positions=cls.positions,
                   init=cls.init)


def make_method(config: RunConfig, channels: int, console: Console | None = None) -> Method:
    """The method at its start; with a console, on the weights that ``encoder.init`` names, which it says."""
    cls = find(config.method_name)
    encoder = make_encoder(config, cls, channels)
    if console is not None and config.encoder.init is not None:
        match = start_from(encoder, config.encoder.init, partial=config.encoder.init_partial)
        console.print(f"init: {config.encoder.init}: {match.sentence()}", soft_wrap=True)
    method = cls(encoder, config.method)
    if not cls.exact_accumulation:  # else the loop accumulates, which computes nothing twice
        method.encoder.in_parts(config.training.accumulate)
    return method


def read_run(folder: Path) -> RunConfig:
    """The configuration a run was made with."""
    path = folder / "config.toml"
    if not path.is_file():
        raise Refused(f"{folder}: no config.toml in it, so it is no run; give the folder that --out named.")
    tree = read_toml(path)
    settings = tree.pop("method")
    name = settings.pop("name")
    cls = find(name)
    return fill(RunConfig, tree | {"method_name": name, "method": fill(cls.Config, settings, "method")})


def resumed(folder: Path, given: Tree, *, force: bool) -> tuple[RunConfig, str]:
    """The configuration a run goes on with, and what ``force`` changes in it, as text.

    What the last checkpoint was made with is compared with ``config.toml`` and the settings given now. Those that
    change nothing of what is learned may differ.

    Raises:
        Refused: another method, or other settings without ``force``, with the difference.
    """
    there = read_run(folder)
    kept = next((p for p in (folder / "checkpoints", folder / "failure") if checkpoint.every(p)), None)
    tree = checkpoint.load_last(kept, mmap=True)["config"] if kept else to_tree(there)  # it ended before its first checkpoint
    cls = find(tree["method_name"])
    before = from_tree(tree, cls.Config)
    name = given.get("method", {}).get("name", there.method_name)
    if (there.method_name, find(name).name) != (before.method_name, cls.name):
        raise Refused(f"{folder}: is a run of '{cls.name}', and its weights can't go on with '{find(name).name}'; "
                      "start another run with --out.")
    if (size := given.get("encoder", {}).get("image_size")) is not None:  # one number stands for height and width
        given = merge(given, {"encoder": {"image_size": [size, size] if isinstance(size, int) else list(size)}})
    tree = merge(recipe_tree(there), given, {"method": {"name": before.method_name}})
    settings = {k: v for k, v in tree.pop("method").items() if k != "name"}
    now = from_tree(tree | {"method_name": before.method_name, "method": settings}, cls.Config)
    changed = [row for row in difference(now, before) if not row[0].startswith(ALIKE)]
    if not changed:
        return now, ""
    if fixed := [row for row in changed if row[0].startswith(FIXED)]:
        raise Refused(f"{folder}: the weights depend on {told(fixed)}, which --force can't change; start another run with --out.")
    if not force:
        raise Refused(f"{folder}: the run was made with other settings: {told(changed)}. Leave them out"
                      f"{' and mend config.toml' if not given else ''}, or add --force to go on with what is said now.")
    return now, told(changed)


def told(changed: list[tuple[str, Any, Any]]) -> str:
    """Settings that differ: ``name then -> now``, the first few."""
    text = "; ".join(f"{name} {then} -> {now}" for name, then, now in changed[:SHOWN])
    return text + (f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else "")


def make_room(folder: Path, config: RunConfig, *, force: bool) -> str:
    """See that ``folder`` holds no other run; with ``force`` one is moved aside. Returns what was done, as text.

    Raises:
        Refused: there is a run, and no ``force``; says in what it differs.
    """
    if not (folder / "config.toml").exists():
        return ""
    there = read_run(folder)
    if there.method_name != config.method_name:
        differs = f"a run of '{there.method_name}', not '{config.method_name}'"
    else:
        changed = told(difference(config, there))
        differs = f"another run, which differs in {changed}" if changed else "another run of the same settings"
    if not force:
        raise Refused(f"{folder}: holds {differs}; choose another --out, go on with it (daybreak pretrain --resume {folder}), or "
                      "add --force to move it aside.")
    aside = free_folder(folder.resolve().parent, folder.resolve().name)
    folder.rename(aside)
    return f"{differs} stood in {folder}; it is now {aside}"


def open_split(data: Mapping[str, Any], labels: str = "none") -> tuple[Images, Split]:
    """The images of a run and what of them is pretrained on, bank and queries.

    A method that learns from ``labels`` never sees the queries; another may, where the data have no split of their own.
    """
    known: dict[str, Any] = dict(label=data.get("label"), group=data.get("group"), background=data.get("background", 255),
                 max_bad=data.get("max_bad", 0.05), threads=data.get("threads"))
    if not data.get("path"):
        raise Refused("no data: give a folder, an archive, a list or a table of images, as in: daybreak pretrain DATA.")
    images = open_images(data["path"], channels=data.get("channels"), **known)
    val = open_images(data["val"], **(known | {"channels": images.channels})) if data.get("val") else None
    split = split_images(images, val)
    if split.seen and labels != "none":
        split = replace(split, train=split.bank, seen=False)
    return images, split


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
    return fill(RunConfig, {"method_name": cls.name, "method": cls.Config(), "training": cls.recipe,
                            "data": {}, "encoder": {}, "watch": {}})


def say_plan(console: Console, config: RunConfig, choices: list, device: str) -> None:
    console.print(f"method: {config.method_name} on {device}", soft_wrap=True)
    for choice in choices:
        console.print(f"  chosen {choice.name} = {choice.value} ({choice.reason})", soft_wrap=True, highlight=False)
    chosen = {c.name for c in choices}
    for name, default, value in difference(config, defaults_of(config)):
        if name not in chosen and name != "data.path":
            console.print(f"  differs {name} = {value} (default {default})", soft_wrap=True, highlight=False)


def say_forecast(console: Console, method: Method, images: Images, config: RunConfig, fabric: Fabric) -> Forecast:
    """Try a few steps and say what the run will take."""
    t, found = config.training, forecast(method, images, config, fabric)
    budget = make_budget(t, len(images), None).images if t.minutes is None else round(60 * t.minutes * found.images_per_second)
    console.print(f"  expected {found.sentence(budget, len(images))}", soft_wrap=True, highlight=False)
    if warning := found.warning(t.batch_size // t.devices):
        console.print(f"  {warning}", soft_wrap=True, highlight=False)
    return found
