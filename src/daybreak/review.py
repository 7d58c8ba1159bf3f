"""What is looked at while a run goes on and when it ends: numbers beside a random start and raw pixels, pictures, report."""

import contextlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.table import Table

from .config import RunConfig, difference
from .data.images import Images, Split
from .data.loader import Loader
from .data.philox import Random
from .data.views import expand
from .evaluate.features import features, fingerprint, pixels
from .evaluate.knn import nearest_others, neighbours_kept
from .evaluate.metrics import HEADLINES
from .evaluate.protocols import Result, Skipped, default, evaluate_features, evaluate_scores
from .evaluate.rank import rank_v1, rankme, spread
from .explain import strips
from .explain.clusters import Cluster, clusters
from .explain.neighbours import neighbours
from .explain.projection import project
from .export.backbone import Backbone, load, write_backbone
from .methods.base import Method, Picture, Step
from .nn.label_tokens import Scores
from .report.html import Looks, write_report
from .runs import defaults_of, make_encoder
from .train.loop import Outcome, on_device
from .train.timing import Spans

STRIPS = "strips"  # folder of a run: what each evaluation draws
GROUPED = 1000  # images that are sorted by prototypes
PIXEL_SIDE = 32  # raw pixels are compared at most at this size; more of them only costs time


@dataclass
class Run:
    """A finished run: its folder and what was measured."""

    folder: Path
    results: list[Result]
    notes: list[str]
    interrupted: int | None = None  # the signal that ended it
    stopped: str | None = None  # the alarm that ended it

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def load(self) -> Backbone:
        return load(self.folder)


def finish(method: Method, config: RunConfig, split: Split, folder: Path, outcome: Outcome, fabric: Fabric, *,
           pictures: bool, console: Console) -> Run:
    """Measure the trained backbone beside its random start and raw pixels; write weights, results and report."""
    write_backbone(method.backbone, folder / "backbone", mean=split.train.mean, std=split.train.std,
                   info={"method": config.method_name, "labels": method.labels, "images_seen": outcome.images_seen,
                         "seed": config.seed, "data": split.train.fingerprint, "channels": split.train.channels,
                         "depth": split.train.depth, "background": config.data.background},
                   label_tokens=getattr(method, "label_tokens", None),
                   label_names=split.train.labels.classes if split.train.labels else (), latent=getattr(method, "latent", None))
    console.print("evaluating the trained backbone, the same network with random weights, raw pixels")
    results, skipped, (bank, queries) = measure(method, config, split, fabric)
    notes = list(dict.fromkeys(str(s) for s in skipped))
    if split.seen and split.bank.labels is not None:
        notes.append("Without --val or a split, a fixed tenth of the images (by hash of their keys) are the queries; "
                     "pretraining saw them, unlabelled.")
    if outcome.stopped:
        notes.append(f"The run was stopped after {outcome.images_seen:,} images: {outcome.stopped}")
    if outcome.bad_images:
        notes.append(f"{outcome.bad_images} images could not be read while training and were replaced by others.")
    (folder / "results.json").write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    looks = look(method, config, split, fabric, folder, bank, queries, notes, pictures=pictures)
    report = write_report(folder, looks=looks, pictures=pictures)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(table_of(results))
    console.print(f"{outcome.images_seen:,} images in {outcome.seconds / 60:.1f} minutes, {outcome.waiting:.0%} of it waiting "
                  "for images")
    console.print(f"backbone: {folder / 'backbone'}", soft_wrap=True)
    console.print(f"report: {report}", soft_wrap=True)
    return Run(folder, results, notes, stopped=outcome.stopped)


def read_results(folder: Path) -> list[Result]:
    """The numbers of a run that has ended."""
    return [Result(**row) for row in json.loads((folder / "results.json").read_text())]


def measure(method: Method, config: RunConfig, split: Split, fabric: Fabric) -> tuple[list[Result], list[Skipped], tuple]:
    """Results of all protocols for the three backbones, what was skipped, and the trained vectors of bank and queries."""
    cls, size = type(method), method.backbone.image_size
    random = make_encoder(config, cls, split.train.channels).to(fabric.device)
    common: dict[str, Any] = dict(size=size, device=fabric.device, precision=config.training.precision, mean=split.train.mean,
                  std=split.train.std, threads=config.data.threads)
    small = (min(size[0], PIXEL_SIDE), min(size[1], PIXEL_SIDE))
    tables: dict[Any, tuple] = {
        "trained": tuple(features(method.backbone, images, **common) for images in (split.bank, split.queries)),
        "random": tuple(features(random, images, **common) for images in (split.bank, split.queries)),
        "pixels": tuple(pixels(images, small, threads=config.data.threads) for images in (split.bank, split.queries)),
    }
    results: list[Result] = []
    skipped: list[Skipped] = []
    for backbone, (bank, queries) in tables.items():
        known: dict[str, Any] = dict(backbone=backbone, data=split.train.fingerprint, seed=config.seed)
        if backbone != "pixels":
            known["backbone_hash"] = fingerprint(method.backbone if backbone == "trained" else random)
        found, left = evaluate_features(bank, split.bank.labels, queries, split.queries.labels, bank_groups=split.bank.groups,
                                        query_groups=split.queries.groups, test_data=split.queries.fingerprint,
                                        protocols=default(split.bank.labels), **known)
        results, skipped = results + found, skipped + left
        if backbone != "pixels":
            results += [Result("rank", "v1", metric, value, None, num_train=len(bank), width=bank.shape[1], **known)
                        for metric, value in rank_v1(bank).items()]
    if hasattr(method, "label_tokens") and split.train.labels and split.train.labels.kind == "multi":
        found, left = evaluate_scores(
            features(Scores(method.encoder, method.label_tokens), split.queries, **common), split.train.labels.classes,
            split.queries.labels, data=split.train.fingerprint, seed=config.seed, groups=split.queries.groups,
            test_data=split.queries.fingerprint, backbone_hash=fingerprint(method.backbone))
        results, skipped = results + found, skipped + left
    return results, skipped, tables["trained"]


def table_of(results: list[Result]) -> Table:
    """Accuracy, means over labels, and health: a row a number, a column a backbone."""
    table = Table(box=None, header_style="bold")
    for name in ("", "trained", "random weights", "raw pixels"):
        table.add_column(name, justify="left" if not name else "right")
    shown = [r for r in results if r.metric.startswith(HEADLINES) or r.protocol == "rank"]
    for protocol, version, metric in dict.fromkeys((r.protocol, r.version, r.metric) for r in shown):
        cells = []
        for backbone in ("trained", "random", "pixels"):
            r = next((r for r in shown if (r.protocol, r.metric, r.backbone) == (protocol, metric, backbone)), None)
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
    if pictures and (picture := draw(method, config, shown(split), fabric)):
        reconstructions = [{"caption": picture.caption, "columns": picture.columns, "rows": visible(picture, split)}]
    return Looks(
        clusters=group(method, config, split, fabric) if pictures else None,
        command=(folder / "command.txt").read_text().strip(), differences=difference(config, defaults_of(config)), notes=notes,
        strips=strips.read(folder / STRIPS) if pictures else None,
        neighbours=neighbours(queries, bank, split.queries, split.bank) if pictures else None,
        projection=project(queries, split.queries, pictures=pictures, seed=config.seed), reconstructions=reconstructions)


def shown(split: Split) -> Images:
    """The images that pictures are made of."""
    return split.queries if len(split.queries) >= 8 else split.train


def visible(picture: Picture | None, split: Split) -> list[list[np.ndarray]]:
    """The rows of a picture as (h, w, c) uint8 images of at most three channels."""
    if picture is None:
        return []
    mean, std = (np.array(v)[:, None, None] for v in (split.train.mean, split.train.std))

    def one(image: torch.Tensor) -> np.ndarray:
        pixels = image.float().cpu().numpy()
        pixels = pixels * std + mean if picture.normalised else pixels
        return (pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)[:, :, :3]

    return [[one(image) for image in row] for row in picture.rows]


class Assigning(torch.nn.Module):
    """A method whose ``pooled`` are the scores of its prototypes (B, K): what ``features`` can read."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def pooled(self, images: torch.Tensor) -> torch.Tensor | None:
        return self.method.assignments(images)


def group(method: Method, config: RunConfig, split: Split, fabric: Fabric) -> list[Cluster] | None:
    """What the prototypes of a method stand for, by queries evenly spaced over theirs; None of a method without."""
    if type(method).assignments is Method.assignments:
        return None
    few = split.queries.subset(np.linspace(0, len(split.queries) - 1, min(GROUPED, len(split.queries))).astype(int))
    return clusters(features(Assigning(method), few, size=method.backbone.image_size, device=fabric.device, mean=split.train.mean,
                             std=split.train.std, precision=config.training.precision, threads=config.data.threads), few)


def draw(method: Method, config: RunConfig, images: Images, fabric: Fabric, count: int = 8) -> Picture | None:
    """The method's own picture of a few images."""
    count = min(count, len(images))
    few = images.subset(np.linspace(0, len(images) - 1, count).astype(int))
    loader = Loader(few, method.views, count, seed=config.seed, threads=1, labels=False)
    with contextlib.closing(loader), torch.no_grad():
        raw = next(loader)
        random = Random(config.seed, raw.epoch, raw.index)
        batch = on_device(raw, expand(method.views), random, few, Spans(fabric.device))
        return method.eval().picture(batch, Step(1.0, 0, replace(random, index=batch.index)))


def make_probe(split: Split, config: RunConfig, fabric: Fabric, start: Path | None = None, strip: Path | None = None):
    """Health and online kNN of a method's backbone on a fixed part of bank and queries; draws nothing from a generator.

    Args:
        start: the file of the neighbours under the weights that a run continues from. Without classes, later backbones are
            held against it; the first backbone writes it if it is not there.
        strip: the folder of the drawings that show a few images at each evaluation; None draws nothing.
    """
    watch = config.watch
    bank = split.bank.subset(np.linspace(0, len(split.bank) - 1, min(watch.probe_bank, len(split.bank))).astype(int))
    queries = split.queries.subset(np.linspace(0, len(split.queries) - 1, min(watch.probe_queries, len(split.queries))).astype(int))

    has_classes = bank.labels is not None and bank.labels.kind == "class"
    few = shown(split).subset(np.linspace(0, len(shown(split)) - 1, min(strips.COUNT, len(shown(split)))).astype(int))

    def probe(method: Method, seen: int) -> dict[str, float]:
        backbone = method.backbone
        size = backbone.image_size
        common: dict[str, Any] = dict(size=size, device=fabric.device, precision=config.training.precision, mean=split.train.mean,
                      std=split.train.std, threads=config.data.threads)
        if strip is not None:
            made = draw(method, config, few, fabric)
            strips.keep(strip, seen, few, features(backbone, few, patches=True, **common),
                        made.columns if made else [], visible(made, split))
        z = features(backbone, bank, **common)
        found = {"rankme": rankme(z), "spread": spread(z)}
        if start is not None and not has_classes:
            now = nearest_others(z)
            if not start.exists():
                torch.save(now, start)
            found["neighbours_kept"] = neighbours_kept(torch.load(start, weights_only=True), now)
        if has_classes:
            results, _ = evaluate_features(z, bank.labels, features(backbone, queries, **common), queries.labels,
                                           protocols=("knn-v1", "linear-v1") if watch.linear else ("knn-v1",))
            for r in results:
                if r.metric == "accuracy":
                    found |= {f"{r.protocol}_accuracy": r.value, f"{r.protocol}_error": r.error or 0.0}
        return found

    return probe
