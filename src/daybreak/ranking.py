"""Backbones in the order of a transferability score on one set of labelled images.

N images, D width, Z classes of a backbone's own head.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from .data.images import Images, open_images
from .errors import Refused
from .evaluate.features import kept_features
from .evaluate.tasks import not_finite, why_not
from .evaluate.transfer import SCORES, check, transfer_scores
from .export.backbone import Backbone, load
from .runs import device_name
from .start import timm_backbone

TIMM_KEPT = Path("runs") / "features"  # vectors of models that have no run folder; the name of each file says whose


@dataclass(frozen=True)
class Ranked:
    """A backbone, its scores and what they took."""

    backbone: str  # as it was given
    place: int  # from 1, the best; backbones of the same score share it
    num_images: int  # labelled, that the scores are of
    width: int  # of the vectors
    scores: dict[str, float]  # by name; one that could not be had is missing
    seconds: dict[str, float]  # of "vectors" and of each score tried
    notes: list[str]  # sentences


@dataclass(frozen=True)
class Opened:
    """A backbone by its name, on the device, and where its vectors are kept."""

    name: str
    backbone: Backbone
    head: nn.Linear | None  # from (N, D) to (N, Z), or none
    folder: Path
    device: str

    def vectors(self, images: Images) -> tuple[torch.Tensor, str]:
        """Of all the images, (N, D), and a sentence on where they are kept."""
        b = self.backbone
        return kept_features(self.folder, b.encoder, images, size=b.size, mean=b.mean, std=b.std, device=self.device)


def open_backbone(name: str) -> Opened:
    """A backbone of a run folder, a backbone folder or ``timm:NAME``.

    Raises:
        Refused: there is none of that name.
    """
    device = device_name()
    if name.startswith("timm:"):
        backbone, head = timm_backbone(name.removeprefix("timm:"))
        folder = TIMM_KEPT
    else:
        backbone, head, folder = load(name), None, Path(name) / "features"
    backbone.encoder.to(device)
    return Opened(name, backbone, head, folder, device)


def rank_backbones(data: str | Path, names: Sequence[str], *, label: str | None, reference: str | Path | None, by: str,
                   console: Console) -> list[Ranked]:
    """What ``daybreak.rank`` does, with ``by`` one of SCORES."""
    if not names:
        raise Refused(f"{data}: no backbones to rank; give runs or timm models, as in: daybreak rank {data} runs/sit-1 runs/mae-1.")
    opened: dict[tuple[str | Path, int], Images] = {}  # by path and channels

    def images_of(path: str | Path, channels: int, label: str | None) -> Images:
        if (path, channels) not in opened:
            opened[path, channels] = open_images(path, label=label, channels=channels).of_split("train")
        return opened[path, channels]

    found = []
    for name in dict.fromkeys(names):
        one = open_backbone(name)
        images = images_of(data, one.backbone.channels, label)
        labels = images.labels
        if (reason := why_not(labels)) or labels is None:
            raise Refused(f"{data}: {reason}")
        start = time.perf_counter()
        vectors, sentence = one.vectors(images)
        base = None if reference is None else one.vectors(images_of(reference, one.backbone.channels, None))[0]
        seconds = time.perf_counter() - start
        console.print(f"{name}: {sentence}", soft_wrap=True, highlight=False, markup=False)
        is_known = torch.from_numpy(labels.values >= 0)
        vectors, truth = vectors[is_known], torch.from_numpy(labels.values)[is_known]
        try:
            check(vectors, truth, len(labels.classes))
            if base is not None and (reason := not_finite(base, "reference")):
                raise Refused(reason)
        except Refused as error:
            raise Refused(f"{data}: {name}: {error}") from error
        with torch.inference_mode():
            theta = None if one.head is None else one.head.cpu()(vectors).double().softmax(1)
        scores = transfer_scores(vectors, truth, reference=base, probabilities=theta)
        found.append(Ranked(name, 0, len(vectors), vectors.shape[1], {s.name: s.value for s in scores if s.value is not None},
                            {"vectors": seconds} | {s.name: s.seconds for s in scores},
                            [f"{s.name}: {s.note}" for s in scores if s.note]))
    rows = in_order(found, by)
    show(rows, by, console)
    return rows


def in_order(found: list[Ranked], by: str) -> list[Ranked]:
    """The backbones by their places in one score.

    Raises:
        Refused: one of them lacks it.
    """
    for row in found:
        if by not in row.scores:
            reason = next((note for note in row.notes if note.startswith(f"{by}:")), f"{by}: it has no class head.")
            raise Refused(f"{row.backbone}: {reason} Order by another score: --by {next(iter(row.scores), SCORES[0])}.")
    rows = sorted(found, key=lambda row: -row.scores[by])
    return [replace(row, place=1 + sum(other.scores[by] > row.scores[by] for other in rows)) for row in rows]


def show(rows: list[Ranked], by: str, console: Console) -> None:
    """One table: a line of scores and one of seconds for each backbone; then the notes."""
    names = [name for name in SCORES if any(name in row.seconds for row in rows)]
    table = Table(box=None, header_style="bold")
    for column in ("order", "backbone", "vectors", *names):
        table.add_column(f"{column} *" if column == by else column, justify="left" if column == "backbone" else "right",
                         overflow="fold")
    for row in rows:
        table.add_row(str(row.place), escape(row.backbone), f"{row.num_images:,} x {row.width}",
                      *(f"{row.scores[name]:.4g}" if name in row.scores else "-" for name in names))
        table.add_row("", "seconds", *(f"{row.seconds[name]:.2f}" if name in row.seconds else "" for name in ("vectors", *names)),
                      style="dim")
    console.print(table)
    console.print(f"* orders; the higher, the better. From {min(r.num_images for r in rows):,} labelled images.", highlight=False)
    notes = [f"{row.backbone}: {note}" for row in rows for note in row.notes]
    if len({row.width for row in rows}) > 1:
        notes.append("TMI grows with the width of the vectors, so it does not order backbones of different widths.")
    if tight := [row.backbone for row in rows if row.num_images <= row.width]:
        notes.append(f"{', '.join(tight)}: no more images than dimensions, so that the H-score is at its largest whatever the "
                     "backbone is.")
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
