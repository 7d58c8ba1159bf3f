"""What is explained of images, and what can't be."""

import pytest
import torch
from rich.console import Console

import daybreak
from daybreak.errors import Refused
from daybreak.export.backbone import write_backbone
from daybreak.nn.encoder import Encoder


def test_features_that_are_not_finite_are_refused(textures, tmp_path):
    encoder = Encoder("vit_micro", image_size=(16, 16), patch_size=4, width=64, depth=1, heads=1)
    torch.nn.init.constant_(encoder.model.norm.bias, torch.nan)
    folder = write_backbone(encoder, tmp_path / "broken", mean=(0.5,) * 3, std=(0.25,) * 3, info={})
    with pytest.raises(Refused, match="3 of 3 vectors of the images are not finite"):
        daybreak.explain(folder, textures, out=tmp_path / "page", count=3, console=Console(quiet=True))
