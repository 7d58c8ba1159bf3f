"""Protocols that judge single patches by masks, and what they are measured beside: random weights, pixels, a constant."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import Refused
from ..nn.encoder import Encoder
from ..nn.masking import patchify
from .features import features, fingerprint, unit
from .metrics import Number
from .patch_prompt import patch_prompt_v1
from .patches import PatchTask
from .protocols import Backbone, Result, Skipped
from .segment import segment_v1
from .tasks import not_finite

if TYPE_CHECKING:
    from ..data.images import Images
    from ..data.masks import Masks

DENSE: dict[str, Callable[[PatchTask, int], tuple[list[Number], list[str]]]] = {
    "segment-v1": segment_v1, "patch-prompt-v1": patch_prompt_v1,
}
WORDS = {"trained": "trained", "random": "random weights", "pixels": "raw pixels", "constant": "a constant"}


def evaluate_patches(encoders: Mapping[Backbone, Encoder], train: "Masks", test: "Masks", *, protocols: Sequence[str],
                     seed: int = 0, say: Callable[[str], Any] = str, **how: Any) -> tuple[list[Result], list[Skipped]]:
    """Apply protocols of ``DENSE`` to the patches of each encoder, to the pixels of patches and to a constant.

    The vectors of all patches of both sides are held in memory, of one encoder at a time.

    Args:
        encoders: by what they are ("trained", "random"); ViTs of one patch size, on the device in ``how``.
        say: told what is measured next.
        how: ``size``, ``mean``, ``std``, ``device``, ``threads`` of ``features``.

    Returns:
        Results, whose data are the fingerprints of images and masks (and, in patch-prompt-v1, the grid, on which it depends
        what is an object), joined by "+"; and what was skipped.

    Raises:
        Refused: an encoder that has no patches.
    """
    check_vits(encoders, protocols)
    data, test_data = (f"{masks.images.fingerprint}+{masks.fingerprint}" for masks in (train, test))
    num_classes = len({*train.values, *test.values})
    results: list[Result] = []
    said: dict[tuple[str, str], list[Backbone]] = {}  # protocol and note: whose it is
    for backbone, vectors in tables(encoders, train.images, test.images, how):
        say(f"patches: {WORDS[backbone]}")
        task, grid = PatchTask(vectors[0], train, vectors[1], test), "{} x {}".format(*vectors[0].shape[2:])
        known: dict[str, Any] = dict(num_train=len(train), num_test=len(test), num_classes=num_classes,
                                     backbone_hash=fingerprint(encoders[backbone]) if backbone in encoders else "",
                                     width=vectors[0].shape[1])
        for name in protocols:
            try:
                for side, table in zip(("training", "test"), vectors, strict=True):
                    if reason := not_finite(table.flatten(1), f"patches of the {side} images"):
                        raise Refused(reason)
                numbers, notes = DENSE[name](task, seed)
            except Refused as error:  # the other protocols and backbones may go on
                numbers, notes = [], [str(error)]
            for note in notes:
                said.setdefault((name, note), []).append(backbone)
            protocol, _, version = name.rpartition("-")
            tested = f"{test_data}+{grid}" if name == "patch-prompt-v1" else test_data
            results += [Result(protocol, version, number.metric, number.value, number.error, backbone, data, seed, test_data=tested,
                               **known) for number in numbers]
    skipped = [Skipped(name if len(whose) == len(encoders) + 2 else f"{name} ({', '.join(WORDS[b] for b in whose)})", note)
               for (name, note), whose in said.items()]
    return results, skipped


def check_vits(encoders: Mapping[Backbone, Encoder], protocols: Sequence[str]) -> None:
    """Refuse a CNN."""
    for encoder in encoders.values():
        if not encoder.is_vit:
            raise Refused(f"{encoder.name} is a CNN ({type(encoder.model).__name__}) and has no patch tokens for "
                          f"{' and '.join(protocols)}; evaluate a run of a ViT, such as vit_mini.")


def tables(encoders: Mapping[Backbone, Encoder], train: "Images", test: "Images",
           how: Mapping[str, Any]) -> Iterator[tuple[Backbone, list[Tensor]]]:
    """The vectors of patches (n, D, h, w) of both sides, for each backbone in turn."""
    sides = (train, test)
    for name, encoder in encoders.items():
        yield name, [features(encoder, images, patches=True, batch_size=64, **how) for images in sides]
    patch = next(iter(encoders.values())).patch
    vectors = [patch_pixels(images, how["size"], patch, how.get("threads")) for images in sides]
    yield "pixels", vectors
    yield "constant", [torch.ones_like(table[:, :1]) for table in vectors]


def patch_pixels(images: "Images", size: tuple[int, int], patch: int, threads: int | None = None) -> Tensor:
    """The pixels of each patch of the whole image resized, in [0, 1]: (n, patch * patch * C, h, w)."""
    from ..data.loader import evaluation_batches

    batches = evaluation_batches(images, *size, 256, threads, fit="whole")
    rows = torch.cat([patchify(unit(batch), patch) for _, batch in batches])  # (n, N, D)
    return rows.transpose(1, 2).unflatten(2, (size[0] // patch, size[1] // patch))
