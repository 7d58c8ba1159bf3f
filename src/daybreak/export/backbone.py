"""A backbone as a folder that timm opens as it is, and as one line of Python: ``daybreak.load``.

B batch, P prefix tokens, N patches, D width, C channels, H W height and width in pixels.
"""

import importlib.metadata
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..data.decode import Unreadable, decode, resize
from ..data.views import View, draw_boxes
from ..errors import Failed, Refused
from ..nn.conv_vae import NAME as OWN
from ..nn.encoder import Encoder, Tokens
from ..nn.heads import ClassHead
from ..nn.label_tokens import LabelTokens
from ..nn.latent import Latent, Means
from .card import model_card

WEIGHTS, CONFIG, README = "model.safetensors", "config.json", "README.md"
LABELS = "label_tokens.safetensors"  # of runs with a token for each label
HEAD = "head.safetensors"  # of fine-tuned backbones
LATENT = "latent.safetensors"  # of runs with a latent code
# Modes of Pillow that a PNG holds; others are first made RGB.
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


class Backbone(nn.Module):
    """A pretrained encoder with the transform it wants, in evaluation mode.

    Attributes:
        encoder, dim (D), size (H, W) it was trained at, channels, mean and std (C numbers, of pixels in
        [0, 1]), info (what the run said about itself), label_tokens (None where the run had none) and
        label_names (L names), head (of a fine-tuned backbone, else None), latent (None where the run had
        no latent code).

    Example:
        >>> import daybreak, torch
        >>> backbone = daybreak.load("runs/sit-1")  # doctest: +SKIP
        >>> vector = backbone.pooled(backbone.transform("leaf.jpg")[None])  # doctest: +SKIP
    """

    def __init__(self, encoder: Encoder, *, mean: Sequence[float], std: Sequence[float],
                 info: dict[str, Any], label_tokens: LabelTokens | None = None, label_names: Sequence[str] = (),
                 head: ClassHead | None = None, latent: Latent | None = None):
        super().__init__()
        self.encoder, self.info, self.head, self.latent = encoder, info, head, latent
        self.label_tokens, self.label_names = label_tokens, tuple(label_names)
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.dim, self.channels, self.size = encoder.dim, encoder.channels, encoder.image_size
        self.eval()

    def pooled(self, images: Tensor) -> Tensor:
        """(B, D) of normalised images (B, C, H, W)."""
        return self.encoder.pooled(images)

    forward = pooled

    def tokens(self, images: Tensor) -> Tokens:
        """Prefix (B, P, D) and patch tokens (B, N, D) of normalised images (B, C, H, W); of a ViT only."""
        return self.encoder.tokens(images)

    def map(self, images: Tensor) -> Tensor:
        """(B, D, h, w) of normalised images (B, C, H, W)."""
        return self.encoder.map(images)

    def code(self, images: Tensor) -> Tensor:
        """(B, d) mean of the latent code of normalised images (B, C, H, W)."""
        if self.latent is None:
            raise Refused(f"this backbone has no latent code; those of --method devae have, and this one is of "
                          f"'{self.info.get('method', 'unknown')}'.")
        return Means(self.encoder, self.latent).pooled(images)

    def scores(self, images: Tensor) -> Tensor:
        """(B, L) probability of each label, in the order of ``label_names``, of normalised images (B, C, H, W)."""
        return self._labels()(self.encoder, images).sigmoid()

    def label_maps(self, images: Tensor) -> Tensor:
        """(B, L, h, w) where the token of each label looks, mean over its blocks, of normalised images (B, C, H, W)."""
        return self._labels().maps(self.encoder, images).mean(1)

    def _labels(self) -> LabelTokens:
        if self.label_tokens is None:
            raise Refused(f"this backbone has no label tokens; those of --method lt_vit have, and this one is of "
                          f"'{self.info.get('method', 'unknown')}'.")
        return self.label_tokens

    def transform(self, image: str | Path | Image.Image | np.ndarray) -> Tensor:
        """Make one image what the backbone wants, as evaluation does: centred box, resized, normalised.

        Args:
            image: a file, a Pillow image, or an array (H, W) or (H, W, C), RGB, uint8 or uint16.

        Returns:
            (C, H, W) float32 at the size of training.

        Raises:
            Refused: not an image, or an array of another shape or type.
        """
        pixels = self._pixels(image)  # (h, w, C)
        view = View(size=self.size, resize="centre", flip=0.0)
        sizes, index = np.array([pixels.shape[:2]]), np.zeros(1, np.int64)
        top, left, height, width = draw_boxes([view], sizes, index, 0, 0)[0][0, 0].tolist()
        box = np.ascontiguousarray(pixels[top : top + height, left : left + width])
        resized = resize(box, *self.size).reshape(*self.size, self.channels)
        full = 65535 if pixels.dtype == np.uint16 else 255
        found = torch.from_numpy(resized.astype(np.float32)).permute(2, 0, 1) / full
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return (found - mean) / std

    def _pixels(self, image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
        if isinstance(image, np.ndarray):
            return self._array(image)
        try:
            if isinstance(image, Image.Image):
                what, data = "the image", np.frombuffer(_png(image), np.uint8)
            else:
                what, data = str(image), np.fromfile(image, np.uint8)
            return decode(data, channels=self.channels, depth=self.info.get("depth", 8),
                          background=self.info.get("background", 255))
        except (OSError, Unreadable) as error:
            raise Refused(f"{what}: can't be read as an image ({error}); give a file, a Pillow image or an "
                          "array.") from None

    def _array(self, image: np.ndarray) -> np.ndarray:
        pixels = image[:, :, None] if image.ndim == 2 else image
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels.repeat(self.channels, axis=2)
        if pixels.ndim != 3 or pixels.shape[2] != self.channels or pixels.dtype not in (np.uint8, np.uint16):
            raise Refused(f"an array of shape {image.shape} and type {image.dtype} was given, and this "
                          f"backbone takes (height, width, {self.channels}) of uint8 or uint16; convert it.")
        return pixels


def write_backbone(encoder: Encoder, folder: str | Path, *, mean: Sequence[float], std: Sequence[float],
                   info: dict[str, Any], label_tokens: LabelTokens | None = None, label_names: Sequence[str] = (),
                   head: ClassHead | None = None, latent: Latent | None = None) -> Path:
    """Write a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` opens by itself.

    It is written as ``replace_folder`` does.

    Args:
        encoder: what is written; it stays as it is.
        mean, std: of the data, C numbers in units of [0, 1].
        info: what the run says about itself (method, data, images seen ...), numbers, strings, lists and
            dicts only; ``depth`` and ``background`` in it are those of decoding.
        label_tokens, latent: of the encoder, and the names of its labels; timm passes them by.
        head: upon the pooled vector; timm passes it by too.

    Raises:
        Refused: the folder holds something else. Failed: the disk did not take it.
    """
    config = timm_config(encoder, mean, std, info)
    if label_tokens is not None:
        config["daybreak"]["label_tokens"] = {"first": label_tokens.first, "names": list(label_names)}
    if head is not None:
        config["daybreak"]["head"] = {"kind": head.kind, "classes": list(head.classes), "said": head.said}
    if latent is not None:
        config["daybreak"]["latent"] = latent.size
    text, card = json.dumps(config, indent=2) + "\n", model_card(config)

    def fill(beside: Path) -> None:
        for name, module in ((WEIGHTS, encoder.model), (LABELS, label_tokens), (HEAD, head), (LATENT, latent)):
            if module is not None:
                save_file(tensors_of(module), beside / name, metadata={"format": "pt"})
        (beside / CONFIG).write_text(text)
        (beside / README).write_text(card)

    return replace_folder(Path(folder), fill)


def replace_folder(folder: Path, fill: Callable[[Path], object]) -> Path:
    """Let ``fill`` write a folder beside and rename it, so a reader never sees half of it; a former backbone is replaced.

    Raises:
        Refused: the folder holds something else. Failed: the disk did not take it.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / WEIGHTS).is_file() or not any(folder.iterdir()))):
        raise Refused(f"{folder}: exists and is no backbone; choose another folder.")
    beside, former = (folder.with_name(f".{folder.name}.{word}") for word in ("part", "former"))
    try:
        for old in (beside, former):
            shutil.rmtree(old, ignore_errors=True)
        beside.mkdir(parents=True)
        fill(beside)
        if folder.exists():
            os.replace(folder, former)
        os.replace(beside, folder)
        shutil.rmtree(former, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise Failed(f"{folder}: the backbone could not be written ({error}).") from error
    return folder


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of what a module holds, as safetensors takes it."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}


def timm_config(encoder: Encoder, mean: Sequence[float], std: Sequence[float],
                info: dict[str, Any]) -> dict[str, Any]:
    """What ``config.json`` holds: timm's description of the model, and ours under ``daybreak``."""
    height, width = encoder.image_size
    architecture = encoder.timm_name.partition(".")[0]  # a tag after the dot names weights that were not used
    arguments = {key: value for key, value in encoder.arguments.items() if key != "drop_path_rate"}
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": encoder.dim,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [encoder.channels, height, width],
            "fixed_input_size": False,
            "mean": list(map(float, mean)),
            "std": list(map(float, std)),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": 0,
            # Without it timm would not know which layer to leave new when it is asked for a classifier.
            "classifier": encoder.model.pretrained_cfg.get("classifier"),
            # No "first_conv": timm would convert the first layer of models without 3 channels once more.
        },
        "daybreak": {
            "version": importlib.metadata.version("daybreak"),
            "encoder": encoder.settings,
            "pooling": encoder.pooling,
            "is_own": architecture == OWN,  # which timm does not know by itself
            "info": info,
        },
    }


def load(path: str | Path) -> Backbone:
    """The backbone of a run folder, or of a folder that :func:`write_backbone` wrote.

    Raises:
        Refused: no such folder, no backbone in it, or weights that do not fit to the last tensor.
    """
    path = Path(path)
    folder = path / "backbone" if (path / "backbone").is_dir() else path
    if path.is_file():
        raise Refused(f"{path}: is a file; give the folder of a run, or the backbone folder in it.")
    if not path.is_dir():
        raise Refused(f"{path}: no such folder; give the folder of a run, or the backbone folder in it.")
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        hint = " (the run did not end; go on with --resume)" if (path / "config.toml").is_file() else ""
        raise Refused(f"{folder}: holds no {' and no '.join(missing)}, so there is no backbone here{hint}.")
    try:
        config = json.loads((folder / CONFIG).read_text())
        ours, cfg = config["daybreak"], config["pretrained_cfg"]
        settings = ours["encoder"] | {"image_size": tuple(ours["encoder"]["image_size"])}
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{folder / CONFIG}: not written by Daybreak ({type(error).__name__}: {error}); "
                      "timm may open it: timm.create_model('local-dir:...', pretrained=True).") from None
    with torch.random.fork_rng(devices=[]):  # the random start that is overwritten moves no generator
        encoder = Encoder(**settings)
        labels = ours.get("label_tokens")
        tokens = LabelTokens(encoder, len(labels["names"]), labels["first"]) if labels else None
        made = ours.get("head")
        head = ClassHead(nn.Linear(encoder.dim, len(made["classes"])), **made) if made else None
        latent = Latent(encoder.dim, ours["latent"]) if ours.get("latent") else None
    load_weights(encoder.model, folder / WEIGHTS)
    for part, file in ((tokens, LABELS), (head, HEAD), (latent, LATENT)):
        if part is not None:
            load_weights(part, folder / file)
    return Backbone(encoder, mean=cfg["mean"], std=cfg["std"], info=ours["info"], label_tokens=tokens,
                    label_names=labels["names"] if labels else (), head=head, latent=latent)


def load_weights(model: nn.Module, file: Path) -> None:
    """Fill all tensors of a model from a safetensors file.

    Raises:
        Refused: a tensor is missing, one too many, or of another shape: nothing is loaded in part.
    """
    try:
        given = load_file(file)
    except (SafetensorError, OSError) as error:
        raise Refused(f"{file}: not a whole safetensors file ({error}); export the backbone again.") from None
    wanted = model.state_dict()
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & given.keys() if wanted[name].shape != given[name].shape)
    if missing or extra or other:
        first = (missing + extra + other)[0]
        raise Refused(f"{file}: of {len(wanted)} tensors {len(missing)} are missing and {len(other)} have "
                      f"another shape, and {len(extra)} are too many (first: {first}); "
                      "the weights are of another model.")
    model.load_state_dict(given)


def _png(image: Image.Image) -> bytes:
    """A Pillow image as a file, so that it goes the way of all files; upright, as its EXIF says."""
    upright = ImageOps.exif_transpose(image)
    buffer = io.BytesIO()
    (upright if upright.mode in PNG_MODES else upright.convert("RGB")).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
