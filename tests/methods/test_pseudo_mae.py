"""Pseudo-labelled MAE against loops written from the card, against MAE itself, and its folds and teachers."""

import math

import pytest
import torch
from conftest import noise_batch, step_for, tiny_method

from daybreak.data.philox import Random
from daybreak.errors import Refused
from daybreak.nn.masking import fold_masks, random_mask


def softmax(v):
    top = max(v)
    e = [math.exp(x - top) for x in v]
    return [x / sum(e) for x in e]


def cross_entropy(teacher, student, tau_t, tau_s):
    p, q = softmax([x / tau_t for x in teacher]), softmax([x / tau_s for x in student])
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


def normalised(v):
    mean = sum(v) / len(v)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in v) / len(v) + 1e-5)
    return [(x - mean) / deviation for x in v]


@torch.no_grad()
def test_all_losses_and_their_sum_equal_the_loops():
    method = tiny_method("pseudo_mae", folds=4, class_weight=0.5, data_weight=2.0)
    for p in method.reconstructor.parameters():  # the two teachers apart, as after some steps
        p.add_(0.02 * torch.sin(torch.arange(p.numel())).view_as(p))
    batch = noise_batch(method, 2)
    step = step_for(batch)  # far past the warm-up: the temperature is 0.07
    found = method(batch, step)

    (images,) = batch.images
    target = [[normalised(v) for v in image] for image in method.reconstructor["encoder"].tokens(images).patches.tolist()]
    whole = method.labeller["encoder"].tokens(images)
    known_class = method.labeller["head"].classes(whole.prefix[:, 0]).tolist()
    known_data = method.labeller["head"].data(whole.patches).tolist()
    order = step.random("mask", (2, 16)).argsort(1)
    errors, classes, data = [], [], []
    for fold in range(4):
        keep = order[:, 4 * fold : 4 * fold + 4]
        gone = torch.cat([order[:, : 4 * fold], order[:, 4 * fold + 4 :]], 1)
        tokens = method.encoder.tokens(images, keep=keep)
        prediction = method.decoder(tokens, keep, gone, (4, 4)).tolist()
        seen_class, seen_data = method.head.classes(tokens.prefix[:, 0]).tolist(), method.head.data(tokens.patches).tolist()
        for b in range(2):
            classes.append(cross_entropy(known_class[b], seen_class[b], 0.07, 0.1))
            for k, n in enumerate(keep[b].tolist()):
                data.append(cross_entropy(known_data[b][n], seen_data[b][k], 0.07, 0.1))
            for m, n in enumerate(gone[b].tolist()):
                squares = [(x - y) ** 2 for x, y in zip(prediction[b][m], target[b][n], strict=True)]
                errors.append(sum(squares) / len(squares))
    assert (len(classes), len(data), len(errors)) == (8, 32, 96)
    wanted = {"reconstruction": sum(errors) / 96, "class": sum(classes) / 8, "data": sum(data) / 32}
    for name, value in wanted.items():
        assert float(found.numbers[name]) == pytest.approx(value, rel=1e-4), name
    total = wanted["reconstruction"] + 0.5 * wanted["class"] + 2 * wanted["data"]
    assert float(found.value) == pytest.approx(total, rel=1e-4)


def test_with_pixels_for_a_target_and_no_labels_it_is_mae_to_the_bit():
    ours = tiny_method("pseudo_mae", target="pixels", folds=1, class_weight=0.0, data_weight=0.0)
    theirs = tiny_method("mae")
    batch = noise_batch(theirs, 4)
    losses = [m(batch, step_for(batch)).value for m in (ours, theirs)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    gradients = dict(theirs.named_parameters())
    shared = [k for k, p in ours.named_parameters() if k in gradients and p.requires_grad]
    assert {k.split(".")[0] for k in shared} == {"encoder", "decoder"}
    assert all(torch.equal(ours.get_parameter(k).grad, gradients[k].grad) for k in shared)


@torch.no_grad()
def test_with_nothing_hidden_and_equal_temperatures_the_data_loss_is_the_entropy_of_the_labels(monkeypatch):
    method = tiny_method("pseudo_mae", folds=1, mask_ratio=0.05, teacher_temperature=0.1, final_teacher_temperature=0.1)
    monkeypatch.setattr("daybreak.methods.pseudo_mae.fold_masks", lambda noise, *_: [everything(noise)])
    batch = noise_batch(method, 3)
    found = float(method(batch, step_for(batch)).numbers["data"])
    tokens = method.head.data(method.encoder.tokens(batch.images[0]).patches).flatten(0, 1).tolist()
    assert found == pytest.approx(sum(cross_entropy(t, t, 0.1, 0.1) for t in tokens) / len(tokens), rel=1e-4)


def everything(noise):
    """All patches but the last in a shuffled order, and that one; so visible tokens come out in an order of their own."""
    order = noise.argsort(1)
    return type(random_mask(noise, 0.5))(order, order[:, -1:], torch.zeros_like(noise, dtype=torch.bool))


@torch.no_grad()
def test_pseudo_labels_start_near_ln_k_and_uniform_ones_are_there_exactly():
    method = tiny_method("pseudo_mae", prototypes=512, bottleneck=256)
    batch = noise_batch(method, 4)
    numbers = method(batch, step_for(batch)).numbers
    assert float(numbers["class"]) == pytest.approx(math.log(512), rel=0.15)
    assert float(numbers["data"]) == pytest.approx(math.log(512), rel=0.15)
    for head in (method.head, method.labeller["head"]):
        torch.nn.init.zeros_(head.mlp[-1].weight)
    method.class_centre.value.zero_(), method.data_centre.value.zero_()
    found = method(batch, step_for(batch)).numbers
    assert float(found["class"]) == pytest.approx(math.log(512), rel=1e-5)
    assert float(found["data"]) == pytest.approx(math.log(512), rel=1e-5)
    readings = method.degenerate()
    assert readings["class: ln 512: the labels of images are uniform"] == pytest.approx(float(found["class"]), rel=1e-5)
    assert readings["data: ln 512: the labels of tokens are uniform"] == pytest.approx(float(found["data"]), rel=1e-5)


def test_folds_see_each_patch_once_and_the_first_is_mae_s_mask():
    noise = Random(0, 0, torch.arange(5))("mask", (5, 16))
    masks = fold_masks(noise, 0.75, 4)
    assert torch.equal(torch.cat([m.keep for m in masks], 1).sort(1).values, torch.arange(16).expand(5, 16))
    assert torch.equal(torch.stack([~m.hidden for m in masks]).sum(0), torch.ones(5, 16, dtype=torch.long))
    for mask in masks:
        assert torch.equal(torch.cat([mask.keep, mask.gone], 1).sort(1).values, torch.arange(16).expand(5, 16))
        assert not mask.hidden.gather(1, mask.keep).any() and mask.hidden.gather(1, mask.gone).all()
    assert all(torch.equal(a, b) for a, b in zip(masks[0], random_mask(noise, 0.75), strict=True))
    with pytest.raises(Refused, match="4 folds of 8 visible patches are more than the 16 .* at most 2 folds"):
        fold_masks(noise, 0.5, 4)


def test_the_teachers_part_and_neither_learns():
    method = tiny_method("pseudo_mae")
    batch = noise_batch(method, 4)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1.0)
    pairs = list(zip(method.labeller["encoder"].parameters(), method.reconstructor["encoder"].parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs) and not any(p.requires_grad for pair in pairs for p in pair)
    for _ in range(2):
        method(batch, step_for(batch)).value.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step_for(batch))
    student = list(method.encoder.parameters())
    far = [sum(float((t - s).abs().sum()) for t, s in zip(side, student, strict=True)) for side in zip(*pairs, strict=True)]
    assert 0 < far[0] < far[1]  # the labelling teacher follows faster than the one whose tokens are predicted
    with pytest.raises(Refused, match="which makes the two teachers one"):
        tiny_method("pseudo_mae", labelling_momentum=0.99, reconstruction_momentum=0.99)


def test_target_tokens_have_zero_mean_and_unit_variance():
    method = tiny_method("pseudo_mae")
    target = method.targets(noise_batch(method, 3).images[0])
    assert target.shape == (3, 16, 64) and not target.requires_grad
    assert torch.allclose(target.mean(-1), torch.zeros(3, 16), atol=1e-5)
    assert torch.allclose(target.var(-1, correction=0), torch.ones(3, 16), atol=1e-3)
