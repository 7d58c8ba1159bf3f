"""A backbone with a class head: fine-tuned by ``evaluate``, which keeps it in the run, or fitted for ``explain``."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from .compare import keep_results
from .data.images import Images, open_images
from .errors import Failed, Refused
from .evaluate.class_head import fit_head
from .evaluate.features import kept_features
from .evaluate.finetune import NAME as FINETUNE
from .evaluate.finetune import Settings, finetune_v1
from .evaluate.protocols import Result, Skipped
from .evaluate.unfinished import Unfinished
from .export.backbone import Backbone, write_backbone
from .methods.base import find
from .nn.encoder import Encoder
from .nn.heads import ClassHead
from .runs import make_encoder, of_split, read_run
from .train.progress import Bar

TUNED = "finetuned"  # folder in a run, of the backbone that was fine-tuned last, with its head
UNFINISHED = "finetuning"  # folder in a run, of the states that an interrupted fine-tuning goes on from


def fine_tune(folder: Path, backbone: Backbone, sets: list[Images], settings: Settings, seed: int, device: str,
              console: Console) -> tuple[list[Result], list[Skipped]]:
    """Numbers of finetune-v1, of the backbone and of the run's random start; those of each are kept as soon as they are there.

    The backbone that is fine-tuned with the most labels is written to ``finetuned`` in ``folder``, with its head. What is
    done before an interruption stays in ``finetuning``, from where the same call goes on.

    Raises:
        Refused: labels that can't be judged or trained on. Failed: interrupted, or a loss that was not finite.
    """
    def trained(drop_path: float) -> Encoder:
        settings: dict[str, Any] = dict(backbone.encoder.settings)
        encoder = Encoder(**settings, drop_path=drop_path)
        encoder.load_state_dict(backbone.encoder.state_dict())
        return encoder

    starts: dict[Any, Callable[[float], Encoder]] = {"trained": trained}
    results: list[Result] = []
    skipped: list[Skipped] = []
    if settings.scratch:
        try:
            config = read_run(folder)
            method = find(config.method_name)
            starts["random"] = lambda drop_path: make_encoder(
                replace(config, encoder=replace(config.encoder, drop_path=drop_path)), method, backbone.channels)
        except Refused as error:  # a backbone without its run, or a method that is not here
            skipped.append(Skipped(FINETUNE, f"random weights are left out: {error}"))

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False)

    def write(encoder: Encoder, head: ClassHead) -> None:
        info = backbone.info | {"labels": head.kind, "fine-tuned": head.said}
        say(f"fine-tuned: {write_backbone(encoder, folder / TUNED, mean=backbone.mean, std=backbone.std, info=info, head=head)}")

    unfinished = Unfinished(folder / UNFINISHED)
    try:
        for name, make in starts.items():
            with Bar(console, title=f"fine-tuning {name} weights") as bar:
                found, left = finetune_v1(
                    make, sets[0], sets[1], settings, backbone=name, seed=seed, mean=backbone.mean, std=backbone.std,
                    device=device, precision="bf16-mixed" if device == "cuda" else "32-true", say=say,
                    progress=partial(bar.count, unit="images"), unfinished=unfinished,
                    keep=write if name == "trained" else None)
            keep_results(folder, found)
            results, skipped = results + found, skipped + left
    except KeyboardInterrupt:
        raise Failed(f"{folder}: fine-tuning was interrupted; what is done stays in {unfinished.folder}, and the same command "
                     "goes on.") from None
    unfinished.clear()
    return results, skipped


def class_head(run: Path, backbone: Backbone, train: str | Path | None, target: str | None, label: str | None, device: str,
               console: Console) -> ClassHead | None:
    """The head that ``explain`` shows classes of, on the device, if there is any; which it says.

    Raises:
        Refused: images to fit it on without classes, or a class that it does not have.
    """
    head = backbone.head
    if train is not None:
        images = of_split(open_images(train, label=label, channels=backbone.channels), ("train",), console)
        vectors, sentence = kept_features(run / "features", backbone.encoder, images, size=backbone.size, device=device,
                                          mean=backbone.mean, std=backbone.std)
        console.print(f"{images.source.path}: {sentence}", soft_wrap=True, highlight=False)
        head = fit_head(vectors, images.labels, groups=images.groups, where=str(images.source.path))
    if head is None:
        if target is not None:
            raise Refused(f"--class {target}: {run} has no class head; give labelled images to fit one on (--train DATA), or a "
                          f"fine-tuned backbone, such as {run / TUNED} after daybreak evaluate with {FINETUNE}.")
        if (run / TUNED).is_dir():
            console.print(f"note: a fine-tuned backbone with a class head is in {run / TUNED}; to explain it: daybreak explain "
                          f"{run / TUNED} ...", soft_wrap=True, highlight=False)
        return None
    if target is not None:
        head.place(target)  # refused before the long work
    console.print(f"class head: {head.said}", soft_wrap=True, highlight=False)
    return head.to(device)
