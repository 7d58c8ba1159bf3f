"""A checkpoint is whole or not there."""

import pytest
import torch

from daybreak.errors import Failed, Refused
from daybreak.train import checkpoint


def test_the_last_two_and_the_best_are_kept(tmp_path):
    for images in (10, 20, 30, 40):
        checkpoint.save(tmp_path, {"images_seen": images, "w": torch.tensor([images])}, images, best=images == 20)
    assert [p.name for p in checkpoint.every(tmp_path)] == ["images-000000000030.pt", "images-000000000040.pt"]
    assert checkpoint.load_last(tmp_path)["images_seen"] == 40
    assert torch.load(tmp_path / "best.pt", weights_only=True)["images_seen"] == 20


def test_a_crash_in_the_middle_of_a_save_leaves_the_former_whole(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, {"images_seen": 1}, 1)

    def half(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Failed, match="No space left.*the former checkpoint is whole.*--resume"):
        checkpoint.save(tmp_path, {"images_seen": 2}, 2)
    assert checkpoint.load_last(tmp_path)["images_seen"] == 1
    assert not list(tmp_path.glob("*.part"))


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(Refused, match="nothing to resume"):
        checkpoint.load_last(tmp_path)
