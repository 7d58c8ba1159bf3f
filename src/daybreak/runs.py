"""A run as a folder and a configuration: from flags and recipes to a method, and back from the folder."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console

from .config import RunConfig, Tree, difference, fill, merge, parse_override, read_toml
from .data.images import Images, Split, open_images, split_images
from .errors import Refused
from .launch import check_devices
from .methods.base import Method, find
from .nn.encoder import Encoder
from .start import start_from
from .train.forecast import Forecast, forecast
from .train.plan import choose, make_budget


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
              "init_partial": ("encoder", "init_partial")}
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


def resolve(console: Console, device: str, *, method: str | None, recipe: str | Path | None,
            overrides: Sequence[str] | Mapping[str, Any], **flags: Any) -> tuple[Images, Split, RunConfig, Method]:
    """From flags to images, their split, the whole configuration and the method at its start; says what was found and chosen.

    Raises:
        Refused: whatever of it can't be.
    """
    tree = settings_tree(method=method, recipe=recipe, overrides=overrides, **flags)
    named = tree.setdefault("method", {})
    cls = find(named.setdefault("name", "sit"))
    if named["name"] != cls.name:  # a file of the user's own: the run finds it again from any folder
        named["name"] = str(Path(named["name"]).resolve())
    images, split = open_split(tree.get("data", {}))
    console.print(f"data: {images.sentence()}", soft_wrap=True)
    config, choices = choose(cls, tree, split.train, device)
    check_devices(config.training.devices, device)
    say_plan(console, config, choices, device)
    return images, split, config, make_method(config, split.train.channels, console)


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


def open_split(data: Mapping[str, Any]) -> tuple[Images, Split]:
    """The images of a run and what of them is pretrained on, bank and queries."""
    known: dict[str, Any] = dict(label=data.get("label"), group=data.get("group"), background=data.get("background", 255),
                 max_bad=data.get("max_bad", 0.05), threads=data.get("threads"))
    if not data.get("path"):
        raise Refused("no data: give a folder, an archive, a list or a table of images, as in: daybreak pretrain DATA.")
    images = open_images(data["path"], channels=data.get("channels"), **known)
    val = open_images(data["val"], **(known | {"channels": images.channels})) if data.get("val") else None
    return images, split_images(images, val)


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
