"""SiT's losses against loops written from the card, and where its gradients go."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import noise_batch, step_for, tiny_method

from daybreak.nn.masking import corrupt


def unit(v):
    norm = math.sqrt(sum(x * x for x in v))
    return [x / norm for x in v]


def loop_contrast(queries, keys, tau):
    """2 tau times the cross-entropy of each query against all keys, its own index being right, mean over the batch."""
    total = 0.0
    for i, q in enumerate(queries):
        scores = [sum(a * b for a, b in zip(unit(q), unit(k), strict=True)) / tau for k in keys]
        total += math.log(sum(math.exp(s) for s in scores)) - scores[i]
    return 2 * tau * total / len(queries)


def loop_reconstruction(painted, clean, hidden):
    total, count = 0.0, 0
    for image, truth, mask in zip(painted.tolist(), clean.tolist(), hidden.tolist(), strict=True):
        for channel, true_channel in zip(image, truth, strict=True):
            for row, true_row, mask_row in zip(channel, true_channel, mask[0], strict=True):
                for value, true_value, is_hidden in zip(row, true_row, mask_row, strict=True):
                    total += abs(value - true_value) * is_hidden
                    count += is_hidden
    return total / count


def test_both_losses_and_their_sum_equal_the_loops():
    method = tiny_method("sit", reconstruction_weight=3.0)
    batch = noise_batch(method, 4)
    step = step_for(batch)
    with torch.no_grad():
        found = method(batch, step)
        corrupted, hidden = method.corrupted(batch, step)
        tokens = method.encoder.tokens(corrupted)
        s = method.head(method.encoder.pool(tokens)).tolist()
        t = method.teacher["head"](method.encoder.pool(method.teacher["encoder"].tokens(torch.cat(batch.images)))).tolist()
        painted = method.repaint(tokens.patches, (4, 4))
    contrast = loop_contrast(s[:4], t[4:], 0.2) + loop_contrast(s[4:], t[:4], 0.2)
    reconstruction = loop_reconstruction(painted, torch.cat(batch.images), hidden)
    assert float(found.numbers["contrast"]) == pytest.approx(contrast, rel=1e-4)
    assert float(found.numbers["reconstruction"]) == pytest.approx(reconstruction, rel=1e-4)
    assert float(found.value) == pytest.approx(contrast + 3.0 * reconstruction, rel=1e-4)


def test_an_image_gets_zeros_or_another_image_never_both():
    method = tiny_method("sit")
    batch = noise_batch(method, 64)
    images = batch.images[0]
    found = corrupt(images, step_for(batch).random, "x", drop=0.5, alien=0.3, alien_probability=0.5)
    hidden = found.hidden.expand_as(images)
    assert torch.equal(found.images[~hidden], images[~hidden])
    num_alien = 0
    for i in range(64):
        inside = found.images[i][hidden[i]]
        share = found.hidden[i].float().mean().item()
        if (inside == 0).all():
            assert share >= 0.5
        else:
            cell = i // 16 * 16
            sources = [j for j in range(cell, cell + 16) if torch.equal(inside, images[j][hidden[i]])]
            assert len(sources) == 1 and 0.3 <= share < 0.5
            num_alien += 1
    assert 16 <= num_alien <= 48


def test_the_teacher_sees_clean_views_and_the_student_never_does():
    method = tiny_method("sit")
    batch = noise_batch(method, 4)
    seen = {}
    for name, encoder in (("student", method.encoder), ("teacher", method.teacher["encoder"])):
        original = encoder.tokens
        encoder.tokens = lambda x, keep=None, name=name, original=original: (seen.__setitem__(name, x), original(x, keep))[1]
    method(batch, step_for(batch))
    clean = torch.cat(batch.images)
    assert torch.equal(seen["teacher"], clean)
    assert not torch.equal(seen["student"], clean)


def test_clean_pixels_do_not_count():
    method = tiny_method("sit")
    batch = noise_batch(method, 4)
    step = step_for(batch)
    _, hidden = method.corrupted(batch, step)
    before = method(batch, step).numbers["reconstruction"]
    repaint = method.repaint.forward
    method.repaint.forward = lambda *a: repaint(*a) + 100.0 * ~hidden
    assert torch.equal(before, method(batch, step).numbers["reconstruction"])


def test_the_contrast_of_images_that_are_all_alike_is_the_degenerate_one():
    method = tiny_method("sit")
    method.batch_size = 8
    batch = noise_batch(method, 8)
    flat = replace(batch, images=[torch.zeros_like(x) for x in batch.images])
    contrast = float(method(flat, step_for(flat)).numbers["contrast"])
    ((reading, value),) = method.degenerate().items()
    assert reading == "contrast: 0.8 ln 8: no view is told from another" and contrast == pytest.approx(value, abs=1e-5)
    assert abs(float(method(batch, step_for(batch)).numbers["contrast"]) - value) > 1e-3
