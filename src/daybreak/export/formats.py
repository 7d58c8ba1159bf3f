"""The forms that a backbone can be written in, by name."""

import shutil
from pathlib import Path

from ..errors import Refused, nearest
from .backbone import WEIGHTS, load, write_backbone
from .onnx import export_onnx

FORMS = ("timm", "safetensors", "onnx")


def export(run: str | Path, to: str, out: str | Path) -> Path:
    """Write the backbone of a run in a form that other tools open.

    Args:
        run: folder of a run, or a backbone folder.
        to: "timm" (the folder ``out``, which timm opens as it is), "safetensors" (``out/model.safetensors``,
            the weights alone under timm's names) or "onnx" (``out/model.onnx``).
        out: a folder; it is made where it is missing.

    Returns:
        What was written.

    Raises:
        Refused: an unknown form, no backbone in ``run``, or ``out`` is a file or holds something else.
    """
    if to not in FORMS:
        raise Refused(f"unknown form '{to}'; {nearest(to, list(FORMS))}")
    out = Path(out)
    if out.is_file():
        raise Refused(f"{out}: is a file; give a folder.")
    backbone = load(run)
    if to == "timm":
        return write_backbone(backbone.encoder, out, mean=backbone.mean, std=backbone.std, info=backbone.info,
                              label_tokens=backbone.label_tokens, label_names=backbone.label_names, latent=backbone.latent)
    if to == "onnx":
        return export_onnx(backbone, out / "model.onnx")
    folder = Path(run) / "backbone" if (Path(run) / "backbone").is_dir() else Path(run)
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(folder / WEIGHTS, out / WEIGHTS))
