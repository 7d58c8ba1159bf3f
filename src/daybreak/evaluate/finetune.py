"""finetune-v1: the whole network trained on labels, from the pretrained weights and from random ones.

A linear classifier upon the pooled vector; AdamW with layer-wise decay of the learning rate, drop path, RandAugment,
mixup and CutMix. One class an image: the recipe of MAE (arXiv 2111.06377); several labels: that of MAE for chest X-rays
(arXiv 2210.12843), without mixing. What differs: the vector is pooled behind the final normalisation, as it is
everywhere else here; no random erasing; the rate grows with the square root of the batch, as is right for Adam; a CNN and
random weights have no layer-wise decay, since what they begin with below is not worth more than what is above.
The last weights are judged, once: nothing is chosen by the test images.

N training images, n test images, B batch, C classes or labels, H W height and width.
"""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import Count, Positive, Range, Share, Training, difference
from ..data.loader import Loader
from ..data.philox import Random, permutation, uniform
from ..data.randaugment import rand_augment
from ..data.sources import Labels
from ..data.views import View
from ..errors import Failed, Refused
from ..nn.encoder import Encoder
from ..nn.heads import ClassHead
from ..signals import caught
from ..train.optim import layer_scales, make_optimizer, set_rates
from ..train.resume import generators, set_generators
from ..train.schedules import warm_cosine
from .bootstrap import errors_of
from .features import AUTOCAST, features, fingerprint, identity, unit
from .fewshot import turn_in_class
from .metrics import Number, Ranking
from .multilabel import judge_labels
from .protocols import Backbone, Result, Skipped
from .tasks import choose_classes, choose_labels, why_not
from .unfinished import Unfinished

if TYPE_CHECKING:
    from ..data.images import Images

NAME = "finetune-v1"
SEEN = 500_000  # images that the default number of epochs shows, within
EPOCHS = (50, 500)
BATCHES = (16, 256)
STEPS = 8  # in an epoch, that the default batch leaves at least, within the bounds above
RECIPE_BATCH = 1024  # of both papers
SMALL = 64  # pixels up to which crops are milder, since little is left of a small image
RANKED = 20  # classes up to which AUC has an error
HEAD_DEVIATION = 2e-5  # of the classifier's first weights, as in MAE


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be set with ``--set finetune.NAME=VALUE``; None takes what ``settled`` says for the data and the encoder."""

    shares: tuple[Share, ...] = (1.0,)  # of the labels, each trained on by itself
    scratch: bool = True  # whether random weights are trained too
    epochs: Count | None = None
    batch_size: Count | None = None
    learning_rate: Positive | None = None  # the peak, in the last layer
    final_learning_rate: Positive | None = None
    warmup: Share = 0.05  # share of the steps
    weight_decay: Positive = 0.05
    layer_decay: Annotated[float, Range(0.01, 1)] | None = None  # factor from each layer to the one below
    drop_path: Annotated[float, Range(0, 0.9)] | None = None
    magnitude: Annotated[float, Range(0, 10)] | None = None  # of RandAugment; 0: none
    mixup: Positive | None = None  # both numbers of the Beta distribution; 0: none
    cutmix: Positive | None = None
    smoothing: Annotated[float, Range(0, 0.9)] | None = None  # of the labels
    scale: Annotated[float, Range(0.01, 1)] | None = None  # smallest share of the image in a crop
    flip: Share = 0.5

    def said(self) -> str:
        """What is set other than by default, apart from what stands in the results anyway."""
        same = replace(self, shares=Settings().shares, scratch=True)
        return ", ".join(f"{name} = {value}" for name, _, value in difference(same, Settings()))


def settled(settings: Settings, kind: str, encoder: Encoder, num_train: int, backbone: Backbone = "trained") -> Settings:
    """The settings with nothing left open.

    The batch is the largest power of two that leaves 8 steps an epoch, from 16 to 256 (never more than the images);
    the epochs are those that show 500,000 images, from 50 to 500; the rate is the recipe's at its batch of 1,024 (2e-3 for
    classes, 1e-3 for several labels) times the square root of the batch's share of that.

    Args:
        kind: "class" or "multi".
        backbone: random weights have no layer-wise decay, whatever is set.
    """
    one = kind == "class"
    batch = min(settings.batch_size or 2 ** int(np.log2(np.clip(num_train / STEPS, *BATCHES))), num_train)
    fixed: dict[str, Any] = {"batch_size": batch} | ({"layer_decay": 1.0} if backbone != "trained" else {})
    defaults: dict[str, Any] = {
        "epochs": int(np.clip(round(SEEN / num_train), *EPOCHS)),
        "learning_rate": (2e-3 if one else 1e-3) * (batch / RECIPE_BATCH) ** 0.5, "final_learning_rate": 1e-6 if one else 1e-5,
        "layer_decay": (0.65 if one else 0.55) if encoder.is_vit else 1.0,
        "drop_path": (0.1 if one else 0.2) if encoder.is_vit else 0.0, "magnitude": 9.0 if one else 6.0,
        "mixup": 0.8 if one else 0.0, "cutmix": 1.0 if one else 0.0, "smoothing": 0.1 if one else 0.0,
        "scale": 0.08 if min(encoder.image_size) > SMALL else 0.6,
    }
    return replace(settings, **{name: value for name, value in defaults.items() if getattr(settings, name) is None} | fixed)


def matched(train: "Images", test: "Images") -> tuple["Images", "Images", list[str]]:
    """Both sets with what can be judged, their classes or labels numbered alike; and what is left out, as sentences.

    Raises:
        Refused: no labels, numbers for labels, other labels in the two sets, or one class only.
    """
    where = f"{train.source.path} and {test.source.path}"
    kind: Literal["class", "multi"] = "multi" if train.labels is not None and train.labels.kind == "multi" else "class"
    reason = why_not(train.labels, kind) or why_not(test.labels, kind)
    if reason or train.labels is None or test.labels is None:
        raise Refused(f"{where}: {reason}")
    keep, tables, classes, notes = (choose_classes if kind == "class" else choose_labels)(train.labels, test.labels)
    if not classes:
        raise Refused(f"{where}: {notes[-1]}")
    if kind == "class" and len(lone := np.unique(tables[1][keep[1]])) < 2:
        notes.append(f"The test images are of one class only, {classes[int(lone[0])]}; accuracy says little of it.")
    sides = [images.subset(rows) for images, rows in zip((train, test), keep, strict=True)]
    for images, values, rows in zip(sides, tables, keep, strict=True):
        images.labels = Labels(kind, values[rows], classes)
    return sides[0], sides[1], notes


def chosen(labels: Labels, share: float, seed: int) -> np.ndarray:
    """Positions of the images with a share of the labels, rising; a smaller share of one seed lies within a larger.

    Of classes, that share of each, at least one image. Of several labels an image, that share of the images, and for each
    label that then lacks a known 0 or 1 the first image in the order that has it.
    """
    values, order = np.asarray(labels.values), permutation(seed, 0, len(labels.values))
    if labels.kind == "class":
        counts = np.bincount(values, minlength=len(labels.classes))
        return np.flatnonzero(turn_in_class(values, order) < np.maximum(1, np.floor(share * counts + 0.5))[values])
    rows = list(order[: max(1, int(share * len(order) + 0.5))])
    for column in values.T:
        for value in (0, 1):
            if not (column[rows] == value).any():
                rows.append(next(i for i in order if column[i] == value))
    return np.unique(rows)


class Classifier(nn.Module):
    """An encoder and a linear layer upon its pooled vector."""

    def __init__(self, encoder: Encoder, num_outputs: int):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, num_outputs)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_DEVIATION)
        nn.init.zeros_(self.head.bias)

    def pooled(self, images: Tensor) -> Tensor:
        """Logits (B, C) of normalised images; by this name ``features`` reads them out."""
        return self.head(self.encoder.pooled(images))

    forward = pooled


def targets_of(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """What is aimed at, (B, C) float32: of classes (B,) shares that sum to 1, of labels (B, C) chances, NaN where unknown."""
    if labels.ndim == 1:
        return functional.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes
    return labels.float() * (1 - smoothing) + smoothing / 2


def mix(images: Tensor, targets: Tensor, draws: Sequence[float], mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Each image joined with its mirror in the batch, and their targets in the same proportion.

    Mixup (arXiv 1710.09412) takes a share q of the one and 1 - q of the other; CutMix (arXiv 1905.04899) puts a box with the
    other's pixels into it, of the image's aspect and 1 - q of its area, cut at the edges. One q and box serve the batch.

    Args:
        images: (B, C, H, W). targets: (B, classes).
        draws: four uniform numbers in [0, 1): CutMix or mixup (evenly, where both are on), q, the box's middle (y, x).
        mixup, cutmix: q is drawn from Beta(a, a) with a this number; 0 is off.
    """
    from scipy.special import betaincinv

    cuts = cutmix > 0 and (mixup == 0 or draws[0] < 0.5)
    alpha = cutmix if cuts else mixup
    if alpha == 0:
        return images, targets
    share = float(betaincinv(alpha, alpha, float(draws[1])))
    if cuts:
        images, edges = images.clone(), []
        for middle, length in zip(draws[2:4], images.shape[2:], strict=True):
            half = length * (1 - share) ** 0.5 / 2
            edges.append([round(min(max(middle * length + side * half, 0), length)) for side in (-1, 1)])
        (top, bottom), (left, right) = edges
        images[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right].flip(0)
        share = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    else:
        images = share * images + (1 - share) * images.flip(0)
    return images, share * targets + (1 - share) * targets.flip(0)


def loss_of(logits: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Cross-entropy with targets (B, C), mean over the batch; of several labels the binary one, mean over what is known."""
    if kind == "class":
        return functional.cross_entropy(logits.float(), targets)
    known = ~targets.isnan()
    each = functional.binary_cross_entropy_with_logits(logits.float(), targets.nan_to_num(0.0), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def tune(encoder: Encoder, images: "Images", settings: Settings, *, seed: int, mean: Sequence[float], std: Sequence[float],
         device: str = "cpu", precision: str = "32-true", threads: int | None = None,
         say: Callable[[str], object] | None = None, progress: Callable[[int, int], object] | None = None,
         unfinished: Unfinished | None = None) -> Classifier:
    """Train an encoder, which is changed, and a new classifier upon it; deterministic on one machine but for a GPU's rounding.

    Args:
        encoder: on ``device``.
        images: labelled, without unknown classes.
        settings: with nothing left open, as ``settled`` gives them.
        mean, std: C numbers in units of [0, 1].
        precision: "32-true" or "bf16-mixed"; in 16 bits of another kind gradients would vanish, since no loss is scaled.
        say: told what is gone on with.
        progress: told images seen and the number of all that will be.
        unfinished: where states are kept. A training that was interrupted goes on from its last one and ends with the same
            weights (on a CPU to the bit); SIGINT and SIGTERM let the step end and save it first.

    Raises:
        Failed: the loss was not finite. KeyboardInterrupt: a signal came, and the state is saved.
    """
    s: Any = settings
    assert images.labels is not None
    kind, num_classes = images.labels.kind, len(images.labels.classes)
    view = View(size=encoder.image_size, scale=(s.scale, 1.0), flip=s.flip)
    shift, deviation = (torch.tensor(list(numbers), device=device)[:, None, None] for numbers in (mean, std))
    torch.manual_seed(seed)  # of the classifier's start and the drop path; the caller's generators are kept by finetune_v1
    model = Classifier(encoder.requires_grad_(True), num_classes).to(device).train()  # positions that were fixed learn too
    scales = {f"encoder.{name}": scale for name, scale in layer_scales(encoder, s.layer_decay).items()}
    optimizer = make_optimizer(model, Training(
        optimizer="adamw", learning_rate=s.learning_rate, learning_rate_rule="fixed", batch_size=s.batch_size,
        weight_decay=s.weight_decay, no_decay="1d-and-tokens"), scales)
    kind_of_device, narrow = torch.device(device).type, AUTOCAST.get(precision)
    path, state, received = None, None, list[int]()
    if unfinished is not None:
        path = unfinished.path(depends_on(encoder, images, s, seed, mean, std, kind_of_device, precision))
        state = unfinished.load(path)
    with contextlib.ExitStack() as stack:
        loader = stack.enter_context(contextlib.closing(
            Loader(images, [view], s.batch_size, seed=seed, threads=threads, pin=kind_of_device == "cuda")))
        steps = s.epochs * loader.steps_per_epoch
        if state is not None:
            model.load_state_dict(state["model"])
            if say:
                say(f"going on after {state['step']:,} of {steps:,} steps in {path}")
            if state["step"] < steps:
                optimizer.load_state_dict(state["optimizer"])
                loader.load_state_dict(state["loader"])
                set_generators(state["generators"])
        stack.enter_context(caught(received.append) if unfinished else contextlib.nullcontext())
        for step in range(state["step"] if state else 0, steps):
            batch = next(loader)
            assert batch.labels is not None
            pixels = unit(batch.images[0].to(device, non_blocking=True))  # (B, C, H, W) in [0, 1]
            x = (rand_augment(pixels, Random(seed, batch.epoch, batch.index), s.magnitude, mean) - shift) / deviation
            draws = uniform(seed, "mix", batch.epoch, np.array([step]), 4)[0].tolist()
            x, targets = mix(x, targets_of(batch.labels.to(device), num_classes, s.smoothing), draws, s.mixup, s.cutmix)
            set_rates(optimizer, warm_cosine(step / steps, s.learning_rate, min(s.final_learning_rate, s.learning_rate), s.warmup),
                      s.weight_decay)
            optimizer.zero_grad()
            with torch.autocast(kind_of_device, narrow, enabled=narrow is not None):
                logits = model(x)
            loss = loss_of(logits, targets, kind)
            loss.backward()
            optimizer.step()
            if step % 20 == 19 or step == steps - 1:  # seldom, since each look waits for the device
                if not loss.isfinite():
                    if path:
                        path.unlink(missing_ok=True)  # nothing can go on from it
                    raise Failed(f"{images.source.path}: the loss of {NAME} is {loss.item()} after {step + 1} steps; set a lower "
                                 f"--set finetune.learning_rate (it was {s.learning_rate:.2g}).")
                if progress:
                    progress((step + 1) * s.batch_size, steps * s.batch_size)
            if unfinished and path and (received or unfinished.is_due or step == steps - 1):
                unfinished.save(path, {"step": step + 1, "model": model.state_dict()} | ({} if step == steps - 1 else {
                    "optimizer": optimizer.state_dict(), "loader": loader.state_dict(), "generators": generators()}))
            if received:
                raise KeyboardInterrupt
    return model.eval()


def depends_on(encoder: Encoder, images: "Images", settings: Settings, seed: int, mean: Sequence[float], std: Sequence[float],
               device: str, precision: str) -> dict[str, str]:
    """All that the weights after a training follow from, in words."""
    assert images.labels is not None
    labels = hashlib.sha256(np.ascontiguousarray(images.labels.values).tobytes()).hexdigest()[:16]
    return identity(encoder, images, encoder.image_size, mean, std) | {
        "training": f"{NAME}, seed {seed}, {device}, {precision}, {settings}", "labels": f"{images.labels.classes} {labels}"}


def judge_classes(probabilities: np.ndarray, truth: np.ndarray, groups: list[str] | None, seed: int) -> list[Number]:
    """Accuracy, balanced accuracy and AUC, with errors, of scores (n, C) against (n,) classes.

    Balanced accuracy is the mean recall of the classes that occur; AUC that of one class against the rest, mean over the
    classes that occur (of two classes: that of the second), and none where all images are of one. In a resample, of those that
    occur in it. Of more than 20 classes AUC has no error, since each resample ranks all images anew for each class.
    """
    right, num_classes = (probabilities.argmax(1) == truth).astype(float), probabilities.shape[1]
    present = np.unique(truth)
    rankings = [Ranking(probabilities[:, c], truth == c) for c in (present if num_classes > 2 else [1]) if len(present) > 1]

    def measure(weights: np.ndarray) -> np.ndarray:
        mass, found = (np.bincount(truth, weights=w, minlength=num_classes) for w in (weights, weights * right))
        recall = found[mass > 0] / mass[mass > 0]
        return np.array([found.sum() / mass.sum(), recall.mean()])

    def area(weights: np.ndarray) -> np.ndarray:
        values = np.array([ranking.auc(weights) for ranking in rankings])
        return np.array([values[np.isfinite(values)].mean() if np.isfinite(values).any() else np.nan])

    once, sample = np.ones(len(truth)), (len(truth), groups)
    values, errors = [*measure(once)], errors_of(measure, sample, seed=seed)
    if rankings:
        values, errors = [*values, *area(once)], errors + (
            errors_of(area, sample, seed=seed) if num_classes <= RANKED else [None])
    return [Number(name, float(value), error) for name, value, error
            in zip(("accuracy", "balanced accuracy", "AUC"), values, errors, strict=False)]


def finetune_v1(make: Callable[[float], Encoder], train: "Images", test: "Images", settings: Settings, *,
                backbone: Backbone = "trained", seed: int = 0, mean: Sequence[float], std: Sequence[float], device: str = "cpu",
                precision: str = "32-true", threads: int | None = None, say: Callable[[str], object] | None = None,
                progress: Callable[[int, int], object] | None = None, unfinished: Unfinished | None = None,
                keep: Callable[[Encoder, ClassHead], object] | None = None) -> tuple[list[Result], list[Skipped]]:
    """Fine-tune from one start with each share of the labels, and measure on the test images after the last step.

    Args:
        make: gives the encoder at its start for a drop path; called once a share, and once before for a look at its shape.
        train, test: labelled images; classes and labels are matched by name.
        seed: of which labels, order, crops, augmentation, mixing, drop path, resamples.
        mean, std: C numbers that pixels in [0, 1] are normalised by.
        say: told what is trained, with all settings.
        progress: told images seen and the number of all that will be, of one share after the other.
        unfinished: as ``tune`` takes it; a share that was trained before an interruption is not trained again.
        keep: given what was trained with the most labels, when all shares are measured.

    Returns:
        Results, and what was left out.

    Raises:
        Refused: labels that can't be judged (see ``matched``) or trained on. Failed: the loss was not finite.
    """
    if not settings.shares or min(settings.shares) <= 0:
        raise Refused(f"finetune.shares = {list(settings.shares)}: expected shares of the labels above 0 up to 1, such as 0.1.")
    train, test, notes = matched(train, test)
    assert train.labels is not None and test.labels is not None
    kind: Literal["class", "multi"] = "class" if train.labels.kind == "class" else "multi"
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        shape = make(0.0)
    results: list[Result] = []
    best: tuple[Encoder, ClassHead] | None = None
    for share in settings.shares:
        part = train if share == 1 else train.subset(chosen(train.labels, share, seed))
        if len(part) < 2:
            raise Refused(f"{train.source.path}: {share:.3g} of the labels is {len(part)} image; two are needed.")
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            complete = settled(settings, kind, shape, len(part), backbone)
            encoder = make(complete.drop_path or 0.0).to(device)
            start, width = fingerprint(encoder), encoder.dim
            if say:
                say(f"{NAME}: {backbone} weights, {len(part):,} images: {told(complete)}")
            model = tune(encoder, part, complete, seed=seed, mean=mean, std=std, device=device, precision=precision,
                         threads=threads, say=say, progress=progress, unfinished=unfinished)
            logits = features(model, test, size=encoder.image_size, device=device, precision=precision, mean=mean, std=std,
                              threads=threads)
        truth = np.asarray(test.labels.values)
        if kind == "class":
            numbers = judge_classes(logits.softmax(1).numpy(), truth, test.groups, seed)
        else:
            numbers = judge_labels(logits.double().numpy(), truth.astype(float), test.labels.classes, seed=seed, groups=test.groups)
        suffix = "" if share == 1 else f" ({100 * share:.4g}% of the labels)"
        name, _, version = NAME.rpartition("-")
        results += [Result(name, version, n.metric + suffix, n.value, n.error, backbone, train.fingerprint, seed, len(part),
                           len(test), len(train.labels.classes), test.fingerprint, start, width, settings.said())
                    for n in numbers]
        if keep and share == max(settings.shares):
            best = model.encoder, ClassHead(model.head, train.labels.classes, kind, f"{NAME} on {len(part):,} images of "
                                            f"{train.source.path}, seed {seed}")
    if keep and best:
        keep(*best)
    return results, [Skipped(NAME, note) for note in notes]


def told(settings: Settings) -> str:
    """All settings in one line."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in ("shares", "scratch")}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
