"""A backbone as one ONNX file, for images of any number, height and width.

B batch, D width, C channels, H W height and width in pixels.
"""

import contextlib
import importlib.util
import io
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from ..errors import Failed, Refused
from .backbone import Backbone


def export_onnx(backbone: Backbone, file: str | Path) -> Path:
    """Write a file that takes ``images`` (B, C, H, W), normalised, and gives ``pooled`` (B, D).

    B, H and W are free, and positions follow the grid; in a ViT the patch must divide H and W. Mean,
    deviation and the size of training stand in the metadata of the file.

    Raises:
        Refused: onnx or onnxscript is not installed. Failed: the model can't be expressed in ONNX, or the
            disk did not take the file.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise Refused(f'ONNX export needs {names}; install with: pip install "daybreak[onnx]"')
    import onnx

    file, encoder = Path(file), backbone.encoder
    # Traced at another size than that of training and not square, so that no two dimensions look like one.
    height, width = 2 * encoder.image_size[0], 2 * encoder.image_size[1] + encoder.stride
    images = torch.zeros(2, encoder.channels, height, width, device=next(backbone.parameters()).device)
    rows, columns = Dim("rows"), Dim("columns")
    free = {0: Dim("batch"), 2: rows, 3: columns}
    if encoder.is_vit:
        free |= {2: encoder.patch * rows, 3: encoder.patch * columns}
    try:
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            program: Any = torch.onnx.export(encoder.model, (images,), dynamo=True, dynamic_shapes=(free,),
                                             input_names=["images"], output_names=["pooled"], verbose=False)
        model = program.model_proto
    except Exception as error:  # what the exporter raises is not declared anywhere
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Failed(f"{encoder.name} can't be written as ONNX ({reason}); choose --to timm.") from error
    facts = {"mean": backbone.mean, "std": backbone.std, "size": backbone.size}
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})
    beside = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, beside)
        os.replace(beside, file)
    except (OSError, ValueError) as error:  # ValueError: beyond the 2 GB of one protocol buffer
        beside.unlink(missing_ok=True)
        raise Failed(f"{file}: the ONNX file could not be written ({error}).") from error
    return file
