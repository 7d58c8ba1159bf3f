"""Pieces of the loop, and small runs of it: how it stops, and what it says where the loader is the limit."""

import io
import json
import os
import signal
import threading
import time

import pytest
import torch
from conftest import noise_batch, step_for, tiny_method
from lightning.fabric import Fabric
from rich.console import Console

from daybreak.data.images import Images, open_images
from daybreak.methods.base import find
from daybreak.runs import make_method
from daybreak.signals import caught
from daybreak.train.loop import Outcome, Signals, Window, backward, micro_batches, pixel_spread, train
from daybreak.train.plan import choose, make_budget


def test_accumulated_gradients_of_mae_equal_those_of_the_whole_batch():
    fabric = Fabric(accelerator="cpu", devices=1)
    gradients, losses = [], []
    for parts in (1, 2, 4):
        method = tiny_method("mae")
        module = fabric.setup_module(method)
        batch = noise_batch(method, 8)
        loss, _ = backward(module, batch, step_for(batch), fabric, parts)
        losses.append(float(loss))
        gradients.append(torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None]))
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6) and torch.allclose(gradients[0], gradients[2], atol=1e-6)


def test_micro_batches_cover_the_batch_in_order():
    method = tiny_method("dino")
    batch = noise_batch(method, 6)
    parts = list(micro_batches(batch, 3))
    assert [p.index.tolist() for p in parts] == [[0, 1], [2, 3], [4, 5]]
    assert all(torch.equal(torch.cat([p.images[v] for p in parts]), x) for v, x in enumerate(batch.images))
    assert torch.equal(torch.cat([p.boxes for p in parts], dim=1), batch.boxes)


def test_pixels_spread_only_over_images_that_differ_and_are_not_flat():
    random = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 16, 16, generator=random)
    assert 0.9 < pixel_spread(images) < 1.1 and 0.9 < pixel_spread(images[:1]) < 1.1
    assert pixel_spread(images[:1].expand(8, -1, -1, -1)) < 1e-6  # one image
    assert pixel_spread(images[:, :, :1, :1].expand(-1, -1, 16, 16)) < 1e-6  # of one colour each


def test_window_measures_speed_and_waiting_since_the_last_look():
    now = [0.0]
    window = Window(100, clock=lambda: now[0])
    now[0] = 2.0
    assert window.close(300, waited=0.5) == (100.0, 0.25)
    now[0] = 3.0
    assert window.close(350, waited=1.5) == (50.0, 1.0)


def small_run(textures, folder, images=480) -> tuple[Outcome, list[dict], str]:
    """Train MAE for some steps, with one thread that loads: outcome, lines of metrics.jsonl, what was said."""
    data, console = open_images(textures), Console(file=io.StringIO(), width=200)
    tree = {"method": {"name": "mae"}, "encoder": {"width": 64, "depth": 1}, "data": {"threads": 1},
            "watch": {"log_steps": 3, "probes": 0, "on_collapse": "warn"},
            "training": {"images": images, "batch_size": 32, "precision": "32-true"}}
    config, _ = choose(find("mae"), tree, data, "cpu")
    outcome = train(make_method(config, 3), data, config, folder, fabric=Fabric(accelerator="cpu", devices=1), console=console,
                    budget=make_budget(config.training, len(data), time.monotonic), probe=lambda backbone: {})
    metrics = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return outcome, lines, console.file.getvalue()


def test_where_the_disk_is_slow_a_run_says_so_and_writes_its_stages(textures, tmp_path, monkeypatch):
    read = Images.read
    monkeypatch.setattr(Images, "read", lambda self, i: time.sleep(0.01) or read(self, i))
    _, lines, said = small_run(textures, tmp_path)
    stages = [line["seconds_an_image"] for line in lines if line["kind"] == "train"]
    assert len(stages) == 5 and stages[0] and stages[-1]  # there are none of steps that took only what was loaded before
    assert all(0.01 <= s["read"] < 0.5 and s["step"] > 0 and s["augment"] > 0 for s in stages if s)
    advice = [line for line in said.splitlines() if "waiting for images takes" in line]  # how often: see test_advice
    assert advice and all("would give about" in line and "(next: " in line for line in advice)


def test_control_c_ends_a_run_after_its_step_and_leaves_no_thread(textures, tmp_path, monkeypatch):
    cls = find("mae")
    after, handler = cls.after_step, signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(cls, "after_step", lambda self, step: (os.kill(os.getpid(), signal.SIGINT), after(self, step))[1])
    outcome, _, _ = small_run(textures, tmp_path)
    assert outcome.interrupted == signal.SIGINT and outcome.images_seen == 32
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["images-000000000032.pt"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_control_c_ends_at_once():
    signals = Signals()
    with pytest.raises(KeyboardInterrupt), caught(signals.note):
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
