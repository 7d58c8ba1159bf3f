"""The worked example in CONTRIBUTING.md is a whole method: it is run as it stands there."""

import re
from pathlib import Path

import pytest
import torch
from conftest import noise_batch, step_for

from daybreak.methods.base import find
from daybreak.nn.encoder import Encoder

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text()


@pytest.fixture
def file(tmp_path) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    (tmp_path / "mean_colour.py").write_text(code)
    return tmp_path / "mean_colour.py"


def test_the_example_keeps_the_contract(file):
    cls = find(str(file))
    method = cls(Encoder("vit_micro", image_size=(16, 16), patch_size=4, depth=2, pool=cls.pool), cls.Config())
    batch = noise_batch(method)
    method(batch, step_for(batch)).value.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())


def test_the_example_trains_from_the_command(file, textures, tmp_path):
    from daybreak import pretrain

    run = pretrain(textures, method=str(file), images=640, batch_size=64, out=tmp_path / "run",
                   overrides=["encoder.depth=2", "encoder.width=64"])
    assert {r.backbone for r in run.results} == {"trained", "random", "pixels"} and run.report.exists()
