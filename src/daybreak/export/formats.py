"""The forms that a backbone can be written in, by name."""

import shutil
from pathlib import Path

from ..errors import Refused, nearest
from .backbone import WEIGHTS, load, write_backbone
from .huggingface import export_huggingface
from .onnx import export_onnx

FORMS = ("timm", "safetensors", "onnx", "huggingface")


def export(run: str | Path, to: str, out: str | Path) -> Path:
    """Write the backbone of a run in a form that other tools open.

    Args:
        run: folder of a run, or a backbone folder.
        to: "timm" (the folder ``out``, which timm opens as it is), "safetensors" (``out/model.safetensors``,
            the weights alone under timm's names), "onnx" (``out/model.onnx``) or "huggingface" (the folder ``out``, which
            transformers opens as it is).
        out: a folder; it is made where it is missing.

    Returns:
        What was written.

    Raises:
        Refused: an unknown form, no backbone in ``run``, ``out`` is a file or holds something else, or the form can't hold the
            backbone.
    """
    if to not in FORMS:
        raise Refused(f"unknown form '{to}'; {nearest(to, list(FORMS))}")
    out = Path(out)
    if out.is_file():
        raise Refused(f"{out}: is a file; give a folder.")
    backbone = load(run)
    if to == "timm":
        return write_backbone(backbone.encoder, out, mean=backbone.mean, std=backbone.std, info=backbone.info,
                              label_tokens=backbone.label_tokens, label_names=backbone.label_names, head=backbone.head,
                              latent=backbone.latent)
    if to == "huggingface":
        if out.resolve() in (Path(run).resolve(), (Path(run) / "backbone").resolve()):
            raise Refused(f"{out}: holds the backbone itself, which would be replaced; give another folder.")
        return export_huggingface(backbone, out)
    if to == "onnx":
        return export_onnx(backbone, out / "model.onnx")
    folder = Path(run) / "backbone" if (Path(run) / "backbone").is_dir() else Path(run)
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(folder / WEIGHTS, out / WEIGHTS))
