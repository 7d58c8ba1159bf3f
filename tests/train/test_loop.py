"""Pieces of the loop that can be checked without a run."""

import pytest
import torch
from conftest import noise_batch, step_for, tiny_method
from lightning.fabric import Fabric

from daybreak.train.loop import Window, backward, micro_batches


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


def test_window_measures_speed_and_waiting_since_the_last_look():
    now = [0.0]
    window = Window(100, clock=lambda: now[0])
    now[0] = 2.0
    assert window.close(300, waited=0.5) == (100.0, 0.25)
    now[0] = 3.0
    assert window.close(350, waited=1.5) == (50.0, 1.0)
