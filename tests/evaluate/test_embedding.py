"""Vectors through a file: nothing finished is computed again, nothing half written is believed."""

import io
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from daybreak import looking
from daybreak.data.images import open_images
from daybreak.errors import Failed, Refused
from daybreak.evaluate import embedding
from daybreak.evaluate.embedding import features_through
from daybreak.evaluate.features import features
from daybreak.export.backbone import load, write_backbone
from daybreak.nn.encoder import Encoder

KILLED = """
import os, signal, sys
from pathlib import Path
from daybreak.data.images import open_images
from daybreak.evaluate import embedding
from daybreak.export.backbone import load

embedding.CHUNK, calls, features = 128, [], embedding.features
def counted(*given, **named):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return features(*given, **named)
embedding.features = counted
backbone = load(sys.argv[1])
embedding.features_through(Path(sys.argv[3]), backbone.encoder, open_images(sys.argv[2], channels=3), size=backbone.size,
                           mean=backbone.mean, std=backbone.std)
"""  # what embed does up to the kill, without the import of all the other verbs, which takes seconds


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    encoder = Encoder("vit_micro", image_size=(16, 16), patch_size=4, width=64, depth=1, heads=1)
    return write_backbone(encoder, tmp_path_factory.mktemp("run") / "backbone", mean=(0.5,) * 3, std=(0.25,) * 3, info={})


@pytest.fixture
def counted(monkeypatch):
    """Images of which vectors are computed, chunk by chunk of 128."""
    counts = []

    def count(encoder, images, **how):
        counts.append(len(images))
        return features(encoder, images, **how)

    monkeypatch.setattr(embedding, "CHUNK", 128)
    monkeypatch.setattr(embedding, "features", count)
    return counts


def test_after_a_kill_the_file_is_that_of_an_undisturbed_run(run, textures, tmp_path, counted):
    looking.embed(run, textures, out=tmp_path / "whole.parquet")
    assert counted == [128] * 4 + [88] and [p.name for p in tmp_path.iterdir()] == ["whole.parquet"]
    out, kept = tmp_path / "killed.parquet", tmp_path / ".killed.parquet.vectors"
    ended = subprocess.run([sys.executable, "-c", KILLED, run, textures, kept], capture_output=True, timeout=120)
    assert ended.returncode == -9 and kept.exists(), ended.stderr
    counted.clear()
    looking.embed(run, textures, out=out)
    assert counted == [128, 128, 88]  # two of five chunks were done
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes() and pq.read_table(out).num_rows == 600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.parquet", "whole.parquet"]


def through(path, run, images, said=None):
    backbone = load(run)
    return features_through(path, backbone.encoder, images, size=backbone.size, mean=backbone.mean, std=backbone.std, threads=1,
                            say=said.append if said is not None else None)


def test_what_is_damaged_or_of_others_is_computed_again(run, textures, tmp_path, counted):
    images, path, said = open_images(textures), tmp_path / "vectors", []
    whole = through(path, run, images)
    backbone = load(run)
    torch.testing.assert_close(whole, features(backbone.encoder, images, size=backbone.size, mean=backbone.mean, std=backbone.std))
    data = bytearray(path.read_bytes())
    data[-88 * 256 - 4 - 100] ^= 1  # in the last whole chunk
    path.write_bytes(data)
    counted.clear()
    assert torch.equal(through(path, run, images, said), whole) and counted == [128, 88]
    assert "going on after 384 of 600 vectors" in said[0]
    path.write_bytes(path.read_bytes()[:-1])  # cut short
    counted.clear()
    assert torch.equal(through(path, run, images, said), whole) and counted == [88]
    counted.clear()
    assert torch.equal(through(path, run, images), whole) and not counted
    some = images.subset(np.arange(200))
    assert torch.equal(through(path, run, some, said), whole[:200]) and counted == [128, 72]
    assert "other weights, data or device; begun anew" in said[-1]


def test_vectors_that_are_not_finite_are_said_and_a_folder_is_no_file(run, textures, tmp_path):
    with pytest.raises(Refused, match="a folder; expected the name of a Parquet file"):
        looking.embed(run, textures, out=tmp_path)
    encoder = load(run).encoder
    torch.nn.init.constant_(encoder.model.norm.bias, torch.nan)
    broken = write_backbone(encoder, tmp_path / "broken", mean=(0.5,) * 3, std=(0.25,) * 3, info={})
    console = Console(record=True, file=io.StringIO(), width=400)
    looking.embed(broken, textures / "dots", out=tmp_path / "v.parquet", console=console)
    assert "note: 120 of 120 vectors of the images are not finite" in console.export_text()


def test_an_interruption_says_how_to_go_on(run, textures, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(embedding, "features", interrupted)
    with pytest.raises(Failed, match="the same command goes on"):
        looking.embed(run, textures, out=tmp_path / "v.parquet")
