"""What every method of the registry must do, whatever it is."""

import copy
import math

import pytest
import torch
from conftest import noise_batch, step_for, tiny_method

from daybreak.config import Training
from daybreak.errors import Refused
from daybreak.methods import base
from daybreak.report.html import CURVES, HIDDEN

NAMES = base.names()


def one_step(method, batch, progress=0.5):
    step = step_for(batch, progress)
    loss = method(batch, step)
    loss.value.backward()
    method.before_update(step)
    return loss


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_a_finite_fp32_scalar_with_detached_numbers(name):
    method = tiny_method(name)
    loss = method(noise_batch(method), step_for(noise_batch(method)))
    assert loss.value.shape == () and loss.value.dtype == torch.float32 and torch.isfinite(loss.value)
    for value in loss.numbers.values():
        assert value.shape == () and not value.requires_grad and torch.isfinite(value)
    assert not loss.numbers.keys() & {*CURVES, *HIDDEN}, "a curve that the run draws itself"


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_that_learns_gets_a_gradient_and_no_other(name):
    method = tiny_method(name)
    one_step(method, noise_batch(method))
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{key} gets no gradient"
        else:
            assert parameter.grad is None, f"{key} is not to learn and gets a gradient"


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits(name):
    first, second = (one_step(m, noise_batch(m)).value for m in (tiny_method(name), tiny_method(name)))
    other = tiny_method(name, seed=1)
    assert torch.equal(first, second)
    assert not torch.equal(first, one_step(other, noise_batch(other)).value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "channels"), [((16, 16), 1), ((24, 16), 3), ((16, 24), 4)])
def test_odd_sizes_and_channels(name, size, channels):
    method = tiny_method(name, size=size, channels=channels)
    assert torch.isfinite(one_step(method, noise_batch(method)).value)


@pytest.mark.parametrize("name", NAMES)
def test_a_convolutional_encoder_works_or_is_refused_by_name(name):
    if base.find(name).needs_tokens:
        with pytest.raises(Refused, match="ViT"):
            tiny_method(name, size=(32, 32), encoder="convnext_mini")
    else:
        method = tiny_method(name, size=(32, 32), encoder="convnext_mini")
        assert torch.isfinite(one_step(method, noise_batch(method)).value)


@pytest.mark.parametrize("name", NAMES)
def test_encoding_in_micro_batches_changes_nothing(name):
    found = []
    for parts in (1, 4):
        method = tiny_method(name)
        method.encoder.in_parts(parts)
        loss = one_step(method, noise_batch(method))
        found.append((loss.value, {key: p.grad for key, p in method.named_parameters() if p.grad is not None}))
    (whole, first), (parted, second) = found
    assert torch.allclose(whole, parted, atol=1e-6) and first.keys() == second.keys()
    for key, gradient in first.items():  # behind a batch normalisation of few images rounding counts in units of the largest
        assert (gradient - second[key]).abs().max() <= 1e-5 * gradient.abs().max().clamp(min=1), key


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_brings_back_the_same_loss(name):
    method = tiny_method(name)
    batch = noise_batch(method)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    one_step(method, batch)
    optimizer.step()
    method.after_step(step_for(batch))
    other = tiny_method(name, seed=5)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(method(batch, step_for(batch)).value, other(batch, step_for(batch)).value)
    images = batch.images[0]
    assert torch.equal(method.backbone.pooled(images), other.backbone.pooled(images))


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_moves_after_the_step_and_only_then(name):
    if base.find(name).backbone_of != "teacher":
        assert tiny_method(name).backbone is not None
        return
    method = tiny_method(name)
    batch, before = noise_batch(method), copy.deepcopy(method.backbone.state_dict())
    optimizer = torch.optim.SGD(method.parameters(), lr=1.0)
    one_step(method, batch)
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in method.backbone.state_dict().items())
    method.after_step(step_for(batch))
    assert any(not torch.equal(v, before[k]) for k, v in method.backbone.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_declarations(name):
    cls = base.find(name)
    assert cls.name == name and cls.pool in ("cls", "mean") and cls.labels in ("none", "class", "multi", "value")
    assert isinstance(cls.recipe, Training)
    assert "arXiv" in (__import__(cls.__module__, fromlist=["x"]).__doc__ or "")
    assert all(isinstance(v, float) and math.isfinite(v) for v in tiny_method(name).degenerate().values())


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_rows_of_images(name):
    method = tiny_method(name)
    batch = noise_batch(method)
    with torch.no_grad():
        picture = method.picture(batch, step_for(batch))
    if picture is not None:
        rows, shape = (1, (3, 128, 128)) if name == "hydra" else (len(batch.index), (3, 16, 16))  # Hydra's is of its classes
        assert len(picture.rows) == rows
        assert all(len(row) == len(picture.columns) and all(i.shape == shape for i in row) for row in picture.rows)


@pytest.mark.parametrize("name", base.names())
def test_images_are_sorted_by_the_prototypes_there_are(name):
    method, batch = tiny_method(name).eval(), noise_batch(tiny_method(name))
    with torch.no_grad():
        scores = method.assignments(batch.images[0])
    prototypes = getattr(method.config, "prototypes", None)
    assert (scores is None) == (prototypes is None)
    if scores is not None:
        assert scores.shape == (len(batch.index), prototypes) and scores.isfinite().all() and scores.std(0).max() > 0


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(Refused, match="did you mean 'simclr'"):
        base.find("simclrr")
