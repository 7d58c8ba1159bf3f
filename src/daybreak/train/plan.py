"""What is not said is chosen from the data and the machine, and each choice comes with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..config import DataConfig, EncoderConfig, RunConfig, Training, WatchConfig, fill, merge, to_tree
from ..data.images import Images
from ..data.sources import Labels
from ..errors import Refused, nearest
from ..methods.base import Method
from .optim import peak_rate
from .schedules import Budget
from .stages import stages_of

FEWEST = 8  # images below which there is nothing to compare
SMALL = 128  # pixels up to which a method's settings for small images and the small preset apply


@dataclass(frozen=True)
class Choice:
    """A setting that the user did not name: what was chosen, and why."""

    name: str
    value: Any
    reason: str


def choose(method: type[Method], tree: Mapping[str, Any], images: Images, device: str) -> tuple[RunConfig, list[Choice]]:
    """Resolve a tree of named settings into a whole configuration.

    Precedence, the last wins: the method's defaults, its settings for small images, what is chosen here, the tree.

    Args:
        tree: recipe, flags and ``--set``, joined.
        images: what will be pretrained on.
        device: "cpu", "cuda" or "mps".

    Raises:
        Refused: an unknown setting, two budgets, a batch larger than the data, or labels that are needed and not there.
    """
    if len(images) < FEWEST:
        raise Refused(f"{images.source.path}: {len(images)} images to learn from; expected at least {FEWEST}, and hundreds "
                      "before anything is learned; add images.")
    choices: list[Choice] = []
    encoder = dict(tree.get("encoder", {}))
    side = int(np.median(images.sizes.min(axis=1)))
    if encoder.get("image_size") is None:
        size, reason = image_size(side, device)
        encoder["image_size"] = [size, size]
        choices.append(Choice("encoder.image_size", f"{size} x {size}", reason))
    height, width = np.broadcast_to(encoder["image_size"], 2)
    encoder["image_size"] = [int(height), int(width)]
    small = max(height, width) <= SMALL
    if encoder.get("name") in (None, "auto"):
        encoder["name"] = "vit_micro" if device == "cpu" else "vit_mini" if small else "vit_small_patch16_224"
        choices.append(Choice("encoder.name", encoder["name"], "small images or no GPU: a small ViT" if small or device == "cpu"
                              else "the usual ViT for images of this size"))
    defaults = merge({"training": to_tree(method.recipe), "encoder": {"drop_path": method.drop_path}},
                     method.small if small else {})
    if small and method.small:
        choices.append(Choice(f"method.{method.name}", "its settings for small images", f"images of at most {SMALL} px"))
    mine = merge(defaults, tree, {"encoder": encoder})
    training = dict(mine["training"])
    given = dict(tree.get("training", {}))

    if "batch_size" not in given:
        batch, reason = batch_size(training["batch_size"], len(images), device)
        training["batch_size"] = batch
        choices.append(Choice("training.batch_size", batch, reason))
    if training["batch_size"] > len(images):
        raise Refused(f"a batch of {training['batch_size']} from {len(images)} images: a batch holds each image once; "
                      f"use --batch-size {max(2, largest_power(len(images)))} or more images ({images.source.path}).")
    named = [k for k in ("images", "epochs", "minutes") if given.get(k) is not None]
    if len(named) > 1:
        raise Refused(f"{' and '.join('--' + n for n in named)} are both budgets; give one.")
    if not named:
        key, amount, reason = ("minutes", 30.0, "no GPU") if device == "cpu" else ("epochs", 100.0, "the field's short run")
        training[key] = amount
        choices.append(Choice(f"training.{key}", amount, reason))
    if training.get("precision", "auto") == "auto":
        training["precision"], reason = precision(device)
        choices.append(Choice("training.precision", training["precision"], reason))
    settings = {k: v for k, v in mine.get("method", {}).items() if k != "name"}
    if method.labels != "none":
        num_classes = len(needed_labels(method, images).classes)
        if hasattr(method.Config, "classes"):
            if settings.get("classes") not in (None, num_classes):
                raise Refused(f"method.classes = {settings['classes']}, and {images.source.path} has {num_classes} classes; leave "
                              "it out, and the data say it.")
            settings["classes"] = num_classes
            choices.append(Choice("method.classes", num_classes, "those of the labels"))
    known = {"data", "encoder", "training", "watch", "method", "seed"}
    if unknown := set(mine) - known:
        name = sorted(unknown)[0]
        raise Refused(f"unknown setting '{name}'; {nearest(name, sorted(known))}")
    config = RunConfig(
        method_name=str(tree["method"]["name"]), method=fill(method.Config, settings, "method"),
        data=fill(DataConfig, mine.get("data", {}), "data"), encoder=fill(EncoderConfig, mine["encoder"], "encoder"),
        training=fill(Training, training, "training"), watch=fill(WatchConfig, mine.get("watch", {}), "watch"),
        seed=mine.get("seed", 0),
    )
    t = config.training
    if t.batch_size % t.devices:
        raise Refused(f"a batch of {t.batch_size} is not shared evenly by {t.devices} devices; use --batch-size "
                      f"{max(1, t.batch_size // t.devices) * t.devices}.")
    stages_of(t, config.method)  # refuses a scheme that the method can't follow
    share = t.batch_size // t.devices
    if share % t.accumulate:
        raise Refused(f"training.accumulate = {t.accumulate} does not divide the batch of {share} of a device; try "
                      f"{next((parts for parts in range(t.accumulate, share) if share % parts == 0), share)}.")
    choices.append(Choice("learning rate", f"{peak_rate(t):.2g}", {
        "linear": f"base {t.learning_rate:g} x batch {t.batch_size} / 256", "sqrt": f"base {t.learning_rate:g} x sqrt(batch)",
        "fixed": "as given"}[t.learning_rate_rule]))
    choices.append(Choice("warm-up", f"{t.warmup:.0%} of the budget", "then half a cosine"))
    return config, choices


def needed_labels(method: type[Method], images: Images) -> Labels:
    """The labels that a method learns from.

    Raises:
        Refused: the images have none, or another kind.
    """
    labels, path = images.labels, images.source.path
    if labels is None:
        raise Refused(f"{path}: no labels, and '{method.name}' learns from a label for each image; give a folder for each class or "
                      "--label COLUMN, or take a method that needs none, such as --method sit.")
    if labels.kind != method.labels and (labels.kind, method.labels) != ("class", "multi"):  # a class is a label too
        raise Refused(f"{path}: its labels are of the kind '{labels.kind}', and '{method.name}' learns from '{method.labels}'; "
                      "name another column with --label, or take a method that needs none, such as --method sit.")
    return labels


def image_size(side: int, device: str) -> tuple[int, str]:
    if side <= 64:
        return max(8, round(side / 4) * 4), f"the images' own size ({side} px), in patches of 4"
    if device == "cpu":
        return 96, f"no GPU, and images of {side} px"
    return 224, f"images of {side} px"


def batch_size(wanted: int, count: int, device: str) -> tuple[int, str]:
    """The method's batch, as far as the data and the machine allow."""
    limit = 256 if device == "cpu" else 1024
    if wanted > limit:
        wanted, reason = limit, f"the method's {wanted} is for many GPUs"
    else:
        reason = "the method's own"
    if wanted > count // 4:
        return max(2, largest_power(count // 4)), f"{count} images give at least 4 batches an epoch"
    return wanted, reason


def largest_power(limit: int) -> int:
    """The largest power of two that is not above ``limit`` (1 at least)."""
    return 1 << max(limit, 1).bit_length() - 1


def precision(device: str) -> tuple[str, str]:
    """bf16 where the chip computes in it, fp32 otherwise."""
    if device == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = device == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return ("bf16-mixed", "the chip computes in bf16") if has else ("32-true", "the chip does not compute in bf16")


def make_budget(training: Training, count: int, clock) -> Budget:
    """The budget in images, or in seconds by the given clock."""
    if training.minutes is not None:
        return Budget(count, seconds=60 * training.minutes, clock=clock)
    images = training.images or round((training.epochs or 0) * count)
    return Budget(max(images, training.batch_size), clock=clock)
