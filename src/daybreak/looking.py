"""The verbs that look at the backbone of a run: evaluate, compare, rank, embed, explain, export."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from .compare import Row, compare_runs, keep_results, told
from .config import fill, merge, parse_override
from .data.images import Images, open_images
from .data.masks import COVERED, VOID, labels_of, open_masks
from .data.sources import printable
from .errors import Failed, Refused, nearest
from .evaluate.dense import DENSE, WORDS, check_vits, evaluate_patches
from .evaluate.disentangle import NAME as DISENTANGLE
from .evaluate.disentangle import evaluate_factors
from .evaluate.embedding import features_through
from .evaluate.features import features, fingerprint, kept_features, view_features
from .evaluate.finetune import NAME as FINETUNE
from .evaluate.finetune import Settings
from .evaluate.protocols import PROTOCOLS, Result, Skipped, check, default, evaluate_features, evaluate_scores
from .evaluate.tasks import Outside, not_finite
from .evaluate.transfer import SCORES
from .explain.maps import explain_images
from .explain.neighbours import neighbours, spaced
from .export.backbone import Backbone, load
from .export.formats import export as export_backbone
from .methods.base import find
from .nn.encoder import Encoder
from .nn.label_tokens import Scores
from .nn.latent import Latent, Means
from .ranking import Ranked, rank_backbones
from .report.explanation import write_explanation
from .runs import device_name, make_encoder, make_method, of_split, read_run
from .train.progress import Bar
from .tuned import class_head, fine_tune

MULTILABEL = "multilabel-v1"
NEIGHBOUR_BANK = 2000  # images among which explain looks for neighbours


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The settings of protocols that have any, a table each."""

    finetune: Settings = field(default_factory=Settings)


def evaluate(run: str | Path, *, train: str | Path, test: str | Path, protocols: Sequence[str] | None = None,
             label: str | None = None, group: str | None = None, ood: str | Path | None = None, void: Sequence[int] | None = None,
             shares: Sequence[float] | None = None, overrides: Sequence[str] | Mapping[str, Any] = (), seed: int = 0,
             console: Console | None = None) -> list[Result]:
    """Measure the backbone of a run on labelled images, print the table, add the numbers to the run's ``evaluations.json``.

    Vectors are kept in the run's ``features/`` and used again.

    Args:
        run: folder of a run or of a backbone.
        train: images of the bank, which classifiers are also trained on; of data with splits, those of "train".
        test: the queries; of data with splits, those of "val", or else of "test".
        protocols: names; None takes knn-v1 and linear-v1, or multilabel-v1 where images have several labels (with which the
            label tokens of a run that has them are measured too).
        group: column of what belongs together, in both sets.
        ood: images of other kinds, which ood-v1 tells from those of ``test``.
        void: values of pixels in masks that are of no class, for segment-v1, patch-prompt-v1 and multilabel-v1; None takes
            255. The first two also measure random weights, raw pixels and a constant; the third, of data with masks and
            without several labels an image, asks which classes cover 1 % of an image or more, of random weights too.
        shares: of the labels, above 0 up to 1, that finetune-v1 trains on, each by itself; all of them by default.
        overrides: ``["finetune.epochs=20"]`` or a nested mapping; see ``daybreak.evaluate.finetune.Settings``.
        seed: of draws, orders and resamples. disentangle-v1 takes every column of classes for a factor.

    Raises:
        Refused: unknown protocol or setting, images without labels or masks, no class in common, a CNN where patches are
            judged. Failed: a loss was not finite.
    """
    console = console or Console()
    check(protocols or (), [*PROTOCOLS, *DENSE, DISENTANGLE, FINETUNE])
    dense, pooled = [name for name in protocols or () if name in DENSE], [name for name in protocols or () if name in PROTOCOLS]
    tuned = FINETUNE in (protocols or ())
    if ood is not None and "ood-v1" not in pooled:
        raise Refused(f"--ood {ood} is read by ood-v1 alone; add --protocol ood-v1.")
    if void is not None and not dense and MULTILABEL not in pooled:
        raise Refused(f"--void is read by {', '.join(DENSE)} and {MULTILABEL} alone; add --protocol {next(iter(DENSE))}.")
    if (shares or overrides) and not tuned:
        raise Refused(f"{'--share' if shares else '--set'} is read by {FINETUNE} alone; add --protocol {FINETUNE}.")
    tree = merge(overrides) if isinstance(overrides, Mapping) else merge(*map(parse_override, overrides))
    measures = fill(Measures, merge(tree, {"finetune": {"shares": list(shares)}} if shares else {}))
    backbone, device, folder = load(run), device_name(), Path(run)
    backbone.encoder.to(device)
    if dense:
        check_vits({"trained": backbone.encoder}, dense)
    sets = [of_split(open_images(path, label=label, channels=backbone.channels, group=group), names, console)
            for path, names in ((train, ("train",)), (test, ("val", "test")))]
    bank, queries = sets
    if bank.fingerprint == queries.fingerprint and (both := len(np.intersect1d(bank.indices, queries.indices))):
        console.print(f"note: {both:,} of {len(queries):,} test images are training images too, which flatters the numbers; "
                      "give others with --test.", soft_wrap=True, highlight=False)
    known = set(bank.groups or ())
    if shared := sum(name in known for name in queries.groups or ()):
        console.print(f"note: {shared:,} of {len(queries):,} test images are of groups that are in the training images too.")
    results, skipped = ([], []) if not dense else measure_patches(
        folder, backbone, sets, dense, VOID if void is None else void, seed, device, console)
    if MULTILABEL in pooled and all(images.source.masks is not None and not has_several(images) for images in sets):
        more = measure_present(folder, backbone, sets, VOID if void is None else void, seed, device, console)
        results, skipped = results + more[0], skipped + more[1]
        pooled.remove(MULTILABEL)
    if pooled or not protocols:
        more = measure_pooled(folder, backbone, sets, pooled, ood, seed, device, console)
        results, skipped = results + more[0], skipped + more[1]
    if DISENTANGLE in (protocols or ()):
        more = measure_factors(folder, backbone, sets, seed, device, console)
        results, skipped = results + more[0], skipped + more[1]
    if tuned:
        more = fine_tune(folder, backbone, sets, measures.finetune, seed, device, console)
        results, skipped = results + more[0], skipped + more[1]
    for left in dict.fromkeys(skipped):
        console.print(f"note: {left}", soft_wrap=True, highlight=False, markup=False)
    if not results:
        raise Refused(f"{train}, {test}: nothing could be measured. {skipped[0].reason}")
    for line in lines(results):
        console.print(f"  {line}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"numbers: {keep_results(folder, results)}", soft_wrap=True)
    return results


def measure_pooled(folder: Path, backbone: Backbone, sets: list[Images], protocols: Sequence[str], ood: str | Path | None,
                   seed: int, device: str, console: Console) -> tuple[list[Result], list[Skipped]]:
    """Numbers of one vector an image, for images of the bank and queries."""
    sets = sets if ood is None else [*sets, open_images(ood, channels=backbone.channels)]
    vectors = vectors_of(sets, backbone.encoder, folder, backbone, device, console)
    bank, queries = sets[:2]
    chosen, views = tuple(protocols or default(bank.labels)), None
    if "rank-v1" in chosen and len(bank) > 1:
        views = view_features(backbone.encoder, bank, size=backbone.size, mean=backbone.mean, std=backbone.std, seed=seed,
                              device=device)
    results, skipped = evaluate_features(
        vectors[0], bank.labels, vectors[1], queries.labels, protocols=chosen, data=bank.fingerprint, seed=seed,
        bank_groups=bank.groups, query_groups=queries.groups, test_data=queries.fingerprint,
        backbone_hash=fingerprint(backbone.encoder), views=views,
        outside=None if ood is None else Outside(vectors[2], sets[2].groups, sets[2].fingerprint))
    if backbone.label_tokens is not None and "multilabel-v1" in chosen:
        own = Scores(backbone.encoder, backbone.label_tokens.to(device))
        logits = features(own, queries, size=backbone.size, device=device, mean=backbone.mean, std=backbone.std)
        more, left_out = evaluate_scores(logits, backbone.label_names, queries.labels, seed=seed, groups=queries.groups,
                                         data=backbone.info.get("data", ""), test_data=queries.fingerprint,
                                         backbone_hash=fingerprint(backbone.encoder))
        results, skipped = results + more, skipped + left_out
    return results, skipped


def vectors_of(sets: Sequence[Images], encoder: nn.Module, folder: Path, backbone: Backbone, device: str,
               console: Console) -> list[Tensor]:
    """The vectors (N, D) of each set by ``encoder``, on images as the backbone wants them; kept in the run's folder."""
    vectors = []
    for images in sets:
        found, sentence = kept_features(folder / "features", encoder, images, size=backbone.size, device=device,
                                        mean=backbone.mean, std=backbone.std)
        console.print(f"{images.source.path}: {sentence}", soft_wrap=True, highlight=False)
        vectors.append(found)
    return vectors


def has_several(images: Images) -> bool:
    return images.labels is not None and images.labels.kind == "multi"


def measure_present(folder: Path, backbone: Backbone, sets: list[Images], void: Sequence[int], seed: int, device: str,
                    console: Console) -> tuple[list[Result], list[Skipped]]:
    """Numbers of multilabel-v1 where masks say which classes are in an image, of the backbone and of the run's random start."""
    masks = [open_masks(images, void) for images in sets]
    console.print(f"labels: the classes that cover {100 * COVERED:g} % of an image or more, by its mask")
    bank, queries = (labels_of(side) for side in masks)
    data, test_data = (f"{side.images.fingerprint}+{side.fingerprint}" for side in masks)
    encoders, skipped = random_beside(folder, backbone, (MULTILABEL,), device)
    results: list[Result] = []
    for name, encoder in encoders.items():
        vectors = vectors_of(sets, encoder, folder, backbone, device, console)
        more = evaluate_features(vectors[0], bank, vectors[1], queries, protocols=(MULTILABEL,), backbone=name, data=data,
                                 test_data=test_data, seed=seed, bank_groups=sets[0].groups, query_groups=sets[1].groups,
                                 backbone_hash=fingerprint(encoder))
        results, skipped = results + more[0], skipped + more[1]
    return results, skipped


def random_beside(folder: Path, backbone: Backbone, protocols: Sequence[str],
                  device: str) -> tuple[dict[Any, Encoder], list[Skipped]]:
    """The backbone and its run's random start, if there is one; if not, why, for each of the protocols."""
    encoders: dict[Any, Encoder] = {"trained": backbone.encoder}
    try:
        config = read_run(folder)
        with torch.random.fork_rng(devices=[]):
            encoders["random"] = make_encoder(config, find(config.method_name), backbone.channels).to(device)
    except Refused as error:  # a backbone without its run, or a method that is not here
        return encoders, [Skipped(name, f"random weights are left out: {error}") for name in protocols]
    return encoders, []


def measure_factors(folder: Path, backbone: Backbone, sets: list[Images], seed: int, device: str,
                    console: Console) -> tuple[list[Result], list[Skipped]]:
    """Numbers of disentangle-v1 with every label column for a factor: of the means of the latent code where the run has one,
    else of the pooled vectors, and of the run's random start."""
    networks: dict[Any, tuple[Encoder, Latent | None]] = {"trained": (backbone.encoder, backbone.latent)}
    results: list[Result] = []
    skipped: list[Skipped] = []
    try:
        with torch.random.fork_rng(devices=[]):
            start = make_method(read_run(folder), backbone.channels)
        networks["random"] = start.backbone, getattr(start, "latent", None)
    except Refused as error:  # a backbone without its run, or a method that is not here
        skipped.append(Skipped(DISENTANGLE, f"random weights are left out: {error}"))
    factors = [{name: held.take(images.indices) for name, held in images.source.labels.items()} for images in sets]
    for name, (encoder, latent) in networks.items():
        network = (encoder if latent is None else Means(encoder, latent)).to(device)
        codes = vectors_of(sets, network, folder, backbone, device, console)
        numbers, left = evaluate_factors(codes[0], factors[0], codes[1], factors[1], backbone=name, data=sets[0].fingerprint,
                                         test_data=sets[1].fingerprint, seed=seed, backbone_hash=fingerprint(encoder))
        results, skipped = results + numbers, skipped + left
    return results, skipped


def measure_patches(folder: Path, backbone: Backbone, sets: list[Images], protocols: Sequence[str], void: Sequence[int],
                    seed: int, device: str, console: Console) -> tuple[list[Result], list[Skipped]]:
    """Numbers of the patches of images with masks: of the backbone, its random start, raw pixels and a constant."""
    train, test = (open_masks(images, void) for images in sets)
    encoders, left = random_beside(folder, backbone, protocols, device)
    results, skipped = evaluate_patches(
        encoders, train, test, protocols=protocols, seed=seed, size=backbone.size, mean=backbone.mean, std=backbone.std,
        device=device, say=lambda text: console.print(text, soft_wrap=True))
    return results, left + skipped


def lines(results: list[Result]) -> list[str]:
    """Numbers as one reads them: one of the trained backbone a line, what it is measured beside after it."""
    found = []
    for name in dict.fromkeys((r.protocol, r.version, r.metric) for r in results):
        trained, *others = sorted((r for r in results if (r.protocol, r.version, r.metric) == name),
                                  key=lambda r: list(WORDS).index(r.backbone))
        beside = "; ".join(f"{WORDS[r.backbone]} {told(r)}" for r in others)
        who = "" if trained.backbone == "trained" else f"{WORDS[trained.backbone]} "
        found.append(f"{name[0]}-{name[1]} {name[2]}: {who}{told(trained)}" + (f" ({beside})" if beside else ""))
    return found


def compare(runs: Sequence[str | Path], *, out: str | Path | None = None, console: Console | None = None) -> list[Row]:
    """Print the numbers of the trained backbones of runs side by side, and mark those that differ from the first's.

    Args:
        out: an HTML file in which they are also drawn.

    Raises:
        Refused: fewer than two runs, a folder without numbers, or no number that was measured alike in all of them.
    """
    return compare_runs([Path(run) for run in runs], console or Console(), None if out is None else Path(out))


def rank(data: str | Path, backbones: Sequence[str | Path], *, label: str | None = None, reference: str | Path | None = None,
         by: str = "LogME", console: Console | None = None) -> list[Ranked]:
    """Order backbones by how well they would serve labelled images, without training; print the table.

    The scores are those of ``evaluate.transfer``: TMI, PED, LogME, H-score, and LEEP of a backbone with a class head.
    Vectors are kept, and shared with ``evaluate``: in a run's ``features/``, those of timm in ``runs/features/``.

    Args:
        data: labelled images, one class each; if they have a split "train", its images alone.
        backbones: folders of runs or backbones, or ``timm:NAME`` for pretrained weights of timm.
        label: label column; the first by default.
        reference: images by which PED scales the dimensions, such as those of pretraining; ``data`` by default.
        by: the score that orders, of TMI, PED, LogME, H-score, LEEP.

    Returns:
        The backbones, best first.

    Raises:
        Refused: an unknown score or backbone, one class, fewer images than classes, vectors that are not finite, or a
            backbone without the score that orders.

    Example:
        >>> import daybreak
        >>> best = daybreak.rank("leaves/", ["runs/sit-1", "runs/mae-1"])[0].backbone  # doctest: +SKIP
    """
    known = {name.lower(): name for name in SCORES}
    if by.lower() not in known:
        raise Refused(f"--by {by}: no such score; {nearest(by, list(SCORES))}")
    return rank_backbones(data, [str(name) for name in backbones], label=label, reference=reference, by=known[by.lower()],
                          console=console or Console())


def embed(run: str | Path, data: str | Path, *, out: str | Path, label: str | None = None, group: str | None = None,
          max_bad: float = 0.05, console: Console | None = None) -> Path:
    """Write a Parquet file with key, label and group (where there are any) and vector of every readable image.

    Until it is written, what is done is kept in ``.NAME.vectors`` beside it: after an interruption the same call goes on.

    Args:
        group: column of what belongs together. max_bad: share of unreadable images above which nothing is done.

    Raises:
        Refused: no backbone, no images, too many unreadable, a folder for a file. Failed: interrupted.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    console, out = console or Console(), Path(out)
    if out.is_dir():
        raise Refused(f"--out {out}: a folder; expected the name of a Parquet file, such as {out / 'vectors.parquet'}.")
    backbone, device = load(run), device_name()
    backbone.encoder.to(device)
    images = open_images(data, label=label, group=group, channels=backbone.channels, max_bad=max_bad)
    console.print(f"data: {images.sentence()}", soft_wrap=True)
    kept = out.with_name(f".{out.name}.vectors")
    try:
        with Bar(console, title="embedding") as bar:
            vectors = features_through(kept, backbone.encoder, images, size=backbone.size, mean=backbone.mean, std=backbone.std,
                                       device=device, say=lambda text: console.print(text, soft_wrap=True, highlight=False),
                                       progress=partial(bar.count, unit="images"))
    except KeyboardInterrupt:
        raise Failed(f"{out}: interrupted; the vectors that are done stay in {kept}, and the same command goes on.") from None
    if reason := not_finite(vectors, "images"):
        console.print(f"note: {reason}", soft_wrap=True, highlight=False)
    columns: dict[str, Any] = {"key": list(map(printable, images.keys))}
    if images.labels is not None:
        values = images.labels.values
        columns["label"] = ([images.labels.classes[v] if v >= 0 else None for v in values] if images.labels.kind == "class"
                            else values.tolist())
    if images.groups is not None:
        columns["group"] = list(map(printable, images.groups))
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().ravel()), vectors.shape[1])
    beside = out.with_name(f".{out.name}.part")
    pq.write_table(pa.table(columns), beside)
    os.replace(beside, out)
    kept.unlink()
    console.print(f"{len(images):,} vectors of width {vectors.shape[1]}: {out}", soft_wrap=True)
    return out


def explain(run: str | Path, images: str | Path, *, out: str | Path, count: int = 12, label: str | None = None,
            train: str | Path | None = None, target: str | None = None, console: Console | None = None) -> Path:
    """Write ``explain.html``: what the backbone of a run makes of some images, and how far its maps can be believed.

    Args:
        images: of any source; ``count`` of them, evenly spaced over classes and files, are explained.
        out: folder of the page.
        train: labelled images to fit a class head on, for Grad-CAM; of data with splits those of ``train``. A fine-tuned
            backbone (``RUN/finetuned``) brings its own head, which is taken where no ``train`` is given.
        target: the class of Grad-CAM; None takes the one that is predicted of each image.

    Returns:
        The path of the page, one file under 10 MB that needs nothing else.

    Raises:
        Refused: no backbone, no readable images, a count that gives no page or one above 10 MB, a ``train`` without classes,
            a ``target`` that is none of them.
    """
    if count < 1:
        raise Refused(f"--count {count}: at least one image must be explained.")
    console = console or Console()
    backbone, device = load(run), device_name()
    backbone.encoder.to(device)
    head = class_head(Path(run), backbone, train, target, label, device, console)
    found = open_images(images, label=label, channels=backbone.channels)
    console.print(f"data: {found.sentence()}", soft_wrap=True)
    chosen = spaced(found, count)
    rest = np.setdiff1d(np.arange(len(found)), chosen)
    rest = rest[np.linspace(0, len(rest) - 1, min(len(rest), NEIGHBOUR_BANK)).astype(int)]
    shown, bank = found.subset(chosen), found.subset(rest)
    known: dict[str, Any] = dict(size=backbone.size, device=device, mean=backbone.mean, std=backbone.std)
    console.print(f"explaining {len(shown)} of {len(found):,} images; most of the time goes into scoring the maps")
    if backbone.label_tokens is not None:
        backbone.label_tokens.to(device)
    explanation = explain_images(backbone.encoder, shown, **known, label_tokens=backbone.label_tokens,
                                 label_names=backbone.label_names, head=head, target=target)
    near = None
    if len(bank):
        queries, vectors = (features(backbone.encoder, some, **known) for some in (shown, bank))
        near = neighbours(queries, vectors, shown, bank, count=len(shown))
    path = write_explanation(Path(out), explanation, near, backbone=backbone.encoder, name=Path(run).resolve().name,
                             info=backbone.info, data=found.sentence(), bank=len(bank))
    for note in explanation.notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(f"page: {path}", soft_wrap=True)
    return path


def export(run: str | Path, *, to: str, out: str | Path, console: Console | None = None) -> Path:
    """Write the backbone of a run as ``timm``, ``safetensors``, ``onnx`` or ``huggingface``; returns what was written."""
    path = export_backbone(run, to, out)
    (console or Console()).print(f"{to}: {path}", soft_wrap=True)
    return path
