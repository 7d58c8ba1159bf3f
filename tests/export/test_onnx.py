"""The ONNX file gives what the backbone gives, at other sizes than those it was traced or trained at."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from daybreak.errors import Refused
from daybreak.export.backbone import Backbone
from daybreak.export.onnx import export_onnx
from daybreak.nn.encoder import Encoder


def make(name: str, **settings) -> Backbone:
    torch.manual_seed(0)
    encoder = Encoder(name, image_size=(32, 48), **settings)
    if encoder.is_vit and encoder.model.pos_embed is not None and encoder.model.pos_embed.requires_grad:
        torch.nn.init.normal_(encoder.model.pos_embed)  # at their start positions are too small to be missed
    return Backbone(encoder, mean=[0.5] * 3, std=[0.25] * 3, info={})


@pytest.mark.parametrize(("name", "settings"), [
    ("vit_micro", {"patch_size": 4, "depth": 2}),
    ("vit_micro", {"patch_size": 8, "depth": 1, "pool": "mean", "positions": "fixed"}),
    ("vit_small_patch16_dinov3", {"patch_size": 8, "depth": 1, "width": 64, "heads": 2}),
    ("test_resnet", {}),
])
def test_any_size(tmp_path, name, settings):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    backbone = make(name, **settings)
    file = export_onnx(backbone, tmp_path / "new" / "model.onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = []
    for count, height, width in ((1, 32, 48), (3, 40, 24), (2, 48, 48)):
        images = torch.randn(count, 3, height, width)
        given = session.run(["pooled"], {"images": images.numpy()})[0]
        with torch.no_grad():
            np.testing.assert_allclose(given, backbone.pooled(images).numpy(), atol=2e-5, rtol=1e-4)
        found.append(given)
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta["mean"]) == [0.5] * 3 and json.loads(meta["size"]) == [32, 48]
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r'onnx and onnxscript; install with: pip install "daybreak\[onnx\]"'):
        export_onnx(make("test_resnet"), tmp_path / "model.onnx")
