"""GMML's loss against a loop written from the card, its corruption against the reference's statistics, its read-out."""

import pytest
import torch
from conftest import noise_batch, step_for, tiny_method

from daybreak.data.philox import Random
from daybreak.methods.base import find
from daybreak.methods.gmml import readout
from daybreak.nn.masking import corrupt


def loop_error(painted, clean, hidden):
    """Sum of m |xhat - x| over sum of m, both views pooled, every channel counted."""
    total, count = 0.0, 0
    for image, truth, mask in zip(painted.tolist(), clean.tolist(), hidden.tolist(), strict=True):
        for channel, true_channel in zip(image, truth, strict=True):
            for row, true_row, mask_row in zip(channel, true_channel, mask[0], strict=True):
                for value, true_value, is_hidden in zip(row, true_row, mask_row, strict=True):
                    total += abs(value - true_value) * is_hidden
                    count += is_hidden
    return total / count


def test_loss_equals_the_loop():
    method = tiny_method("gmml")
    batch = noise_batch(method, 4)
    step = step_for(batch)
    with torch.no_grad():
        found = method(batch, step)
        corrupted, hidden = method.corrupted(batch, step)
        painted, clean = method.painted(corrupted), torch.cat(batch.images)
    assert len(clean) == 8 and hidden.any() and not hidden.all()
    assert float(found.value) == pytest.approx(loop_error(painted, clean, hidden), rel=1e-4)
    assert float(found.numbers["mean_colour"]) == pytest.approx(loop_error(torch.zeros_like(clean), clean, hidden), rel=1e-4)


def settings():
    config = find("gmml").Config()
    return dict(drop=config.drop, alien=config.alien, alien_probability=config.alien_probability)


# share of pixels, of 16-px tokens wholly hidden and of tokens touched at 224 px, as the card gives them for the defaults
@pytest.mark.parametrize(("align", "pixels", "whole", "touched"), [(1, 0.63, 0.35, 0.86), (16, 0.64, 0.64, 0.64)])
def test_dropped_images_have_the_statistics_of_the_reference(align, pixels, whole, touched):
    random = Random(0, 0, torch.arange(64))
    known = settings() | {"alien_probability": 0.0}
    hidden = corrupt(torch.ones(64, 1, 224, 224), random, "x", align=align, **known).hidden.float()
    tokens = torch.nn.functional.avg_pool2d(hidden, 16)
    assert hidden.mean().item() == pytest.approx(pixels, abs=0.02)
    assert (tokens == 1).float().mean().item() == pytest.approx(whole, abs=0.03)
    assert (tokens > 0).float().mean().item() == pytest.approx(touched, abs=0.03)


@pytest.mark.parametrize("fill", ["zeros", "noise", "noise-zeros"])
def test_an_image_is_dropped_or_gets_another_never_both(fill):
    images = 5 + torch.arange(64.0)[:, None, None, None].expand(64, 3, 32, 32)  # each image of one value: its name
    found = corrupt(images, Random(0, 0, torch.arange(64)), "x", fill=fill, **settings())
    kinds = {"alien": 0, "zeros": 0, "noise": 0}
    for i in range(64):
        inside = found.images[i][found.hidden[i].expand(3, -1, -1)]
        share = found.hidden[i].float().mean().item()
        assert torch.equal(found.images[i][~found.hidden[i].expand(3, -1, -1)].unique(), images[i].unique())
        if inside.min() >= 5:  # one other image of the same cell of 16
            assert len(inside.unique()) == 1 and int(inside[0] - 5) // 16 == i // 16 and share >= 0.3
            kinds["alien"] += 1
        elif (inside == 0).all():
            assert share >= 0.5
            kinds["zeros"] += 1
        else:
            assert share >= 0.5 and abs(inside.mean()) < 0.15 and inside.std().item() == pytest.approx(1, abs=0.1)
            kinds["noise"] += 1
    assert 20 <= kinds["alien"] <= 44
    assert (kinds["zeros"] > 0) == (fill != "noise") and (kinds["noise"] > 0) == (fill != "zeros")


def test_aligned_blocks_hide_whole_tokens():
    method = tiny_method("gmml", align=4)
    hidden = method.corrupted(batch := noise_batch(method, 8), step_for(batch)).hidden.float()
    assert set(torch.nn.functional.avg_pool2d(hidden, 4).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(("depth", "blocks"), [(12, [6, 8, 10, 12]), (6, [3, 4, 5, 6]), (2, [1, 2]), (1, [1])])
def test_blocks_that_are_read(depth, blocks):
    assert readout(depth) == [b - 1 for b in blocks]


def test_the_readout_is_the_normalised_mean_of_the_blocks():
    method = tiny_method("gmml")
    images, outputs = torch.randn(2, 3, 16, 16), []
    for block in method.encoder.model.blocks:
        block.register_forward_hook(lambda _, __, out: outputs.append(out))
    painted = method.painted(images)
    mean = (outputs[0] + outputs[1])[:, 1:] / 2  # without the class token
    assert torch.allclose(painted, method.repaint(method.encoder.model.norm(mean), (4, 4)), atol=1e-5)


def test_clean_pixels_do_not_count():
    method = tiny_method("gmml")
    batch = noise_batch(method, 4)
    step = step_for(batch)
    before, hidden, painted = method(batch, step).value, method.corrupted(batch, step).hidden, method.painted
    method.painted = lambda images: painted(images) + 100.0 * ~hidden
    assert torch.equal(before, method(batch, step).value)
