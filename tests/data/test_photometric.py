"""Photometric operations against torchvision's on single images, and the whole chain against a plain loop."""

import math

import pytest
import torch
from torchvision.transforms import functional as reference

from daybreak.data import photometric
from daybreak.data.philox import Random
from daybreak.data.photometric import augment, blur, brightness, contrast, hue, saturation, solarize, without_colour
from daybreak.data.views import View

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
OPERATIONS = {
    brightness: reference.adjust_brightness,
    contrast: reference.adjust_contrast,
    saturation: reference.adjust_saturation,
    hue: reference.adjust_hue,
}


def make_images(batch=6, channels=3, height=20, width=30, full=255, dtype=torch.uint8):
    images = Random(0, 0, torch.arange(batch))("images", (batch, channels, height, width))
    if channels == 3:  # gray, ties of two channels, and primaries are where hue has its corners
        images[0] = images[0, :1]
        images[1, 1] = images[1, 2]
        images[2, 0] = images[2, 1]
        images[3, 0] = images[3, 2]
        images[4] = images[4].round()
    return (images * full).round().to(dtype)


def test_what_needs_rgb_is_left_out_and_said():
    full = View(size=8, color=(0.4, 0.4, 0.2, 0.1), gray=0.2)
    assert without_colour([full], 3) == without_colour([View(size=8, color=(0.4, 0.4, 0, 0), blur=1.0, solarize=0.2)], 1) == ""
    for channels, count in ((1, "1 channel"), (4, "4 channels")):
        said = without_colour([View(size=8), full], channels)
        assert said == f"colour augmentation off: saturation, hue, grayscale (the images have {count}, not RGB)"
        images = make_images(channels=channels)
        random = Random(0, 0, torch.arange(len(images)))
        plain = View(size=8, color=(0.4, 0.4, 0, 0))
        one, other = (augment(images, v, random, [0] * channels, [1] * channels, view_index=0) for v in (full, plain))
        assert torch.equal(one, other)
    assert "off: hue (" in without_colour([View(size=8, color=(0, 0, 0, 0.1))], 1)


def one(value, batch=1):
    return torch.full((batch, 1, 1, 1), value)


@pytest.mark.parametrize("ours", OPERATIONS, ids=lambda operation: operation.__name__)
def test_colour_operations_equal_torchvisions(ours):
    settings = (-0.5, -0.2, -0.01, 0.0, 0.1, 0.34, 0.5) if ours is hue else (0.0, 0.2, 0.9, 1.0, 1.3, 1.8)
    images = make_images() / 255
    for value in settings:
        found = ours(images.clone(), one(value, len(images)))
        for image, result in zip(images, found, strict=True):
            expected = OPERATIONS[ours](image, value)
            torch.testing.assert_close(result, expected, rtol=0, atol=5e-6 if ours is hue else 5e-7)
        assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.7, 1.9])
def test_blur_equals_torchvisions(sigma):
    images = make_images() / 255
    expected = reference.gaussian_blur(images, 2 * math.ceil(3 * sigma) + 1, sigma)
    found = blur(images.clone(), one(sigma, len(images)), radius=6)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert (found != images).any() == (sigma > 0.1)


def test_blur_keeps_small_and_constant_images():
    for shape in [(1, 3, 1, 1), (1, 3, 2, 5), (1, 1, 3, 1)]:
        flat = torch.full(shape, 0.25)
        torch.testing.assert_close(blur(flat.clone(), one(2.0), radius=6), flat, rtol=0, atol=1e-6)


def test_each_sample_is_blurred_by_its_own_sigma():
    images = make_images() / 255
    sigmas = torch.linspace(0.1, 2.0, 6).view(-1, 1, 1, 1)
    alone = torch.cat([blur(images[i : i + 1].clone(), sigmas[i : i + 1], radius=6) for i in range(6)])
    torch.testing.assert_close(blur(images.clone(), sigmas, radius=6), alone, rtol=0, atol=1e-6)


def test_solarize_equals_torchvisions():
    images = make_images() / 255
    images[0, 0, 0, 0] = 0.5
    torch.testing.assert_close(solarize(images.clone()), reference.solarize(images, 0.5), rtol=0, atol=0)


def plain_augment(image, view, draws):
    """The chain for one image (C, H, W) in [0, 1], step by step; ``draws`` are its 13 uniform numbers."""
    is_chosen, *jitter, gray, blurred, sigma, solarized = draws[:9].tolist()
    is_color = len(image) == 3
    order = draws[9:].argsort().tolist() if view.color_order == "random" else range(4)
    for number in order:
        strength = view.color[number]
        if is_chosen >= view.color_probability or strength == 0 or (number > 1 and not is_color):
            continue
        low, high = (-strength, strength) if number == 3 else (max(0.0, 1 - strength), 1 + strength)
        value = low + (high - low) * jitter[number]
        if is_color:
            image = list(OPERATIONS.values())[number](image, value)
        else:
            image = image * value if number == 0 else image.mean() + value * (image - image.mean())
            image = image.clamp(0, 1)
    if gray < view.gray and is_color:
        image = reference.rgb_to_grayscale(image, 3)
    if blurred < view.blur:
        deviation = (
            (view.blur_sigma[0] + (view.blur_sigma[1] - view.blur_sigma[0]) * sigma) * view.height / 224
        )
        image = reference.gaussian_blur(image, 2 * math.ceil(3 * deviation) + 1, deviation)
    return torch.where(image >= 0.5, 1 - image, image) if solarized < view.solarize else image


SETTINGS = {
    "nothing": {},
    "simclr": {"color": (0.8, 0.8, 0.8, 0.2), "color_order": "random", "gray": 0.2, "blur": 0.5},
    "sit": {"color": (0.4, 0.4, 0.2, 0.1), "gray": 0.2, "blur": 0.1, "solarize": 0.2},
    "strong": {
        "color": (1.5, 0.0, 0.8, 0.5),
        "color_probability": 0.5,
        "blur": 1.0,
        "blur_sigma": (1.0, 9.0),
    },
    "two, random": {"color": (0.0, 0.8, 0.0, 0.3), "color_order": "random", "color_probability": 1.0},
}


@pytest.mark.parametrize("channels", [3, 1, 4])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_chain_equals_a_plain_loop(name, channels):
    view = View(size=(32, 40), normalise=False, **SETTINGS[name])
    random = Random(1, 2, torch.arange(100, 160))
    images = make_images(60, channels, 32, 40)
    found = augment(images, view, random, (), (), view_index=3)
    draws = random("photometric", (60, 13), view=3)
    expected = torch.stack([plain_augment(i / 255, view, d) for i, d in zip(images, draws, strict=True)])
    # Solarising has no jump at 0.5 (x and 1 - x meet), so small differences stay small.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_random_orders_are_all_drawn():
    view = View(size=8, color=(0.4, 0.4, 0.4, 0.1), color_order="random")
    order = photometric._draw(view, Random(0, 0, torch.arange(2400)), 0)["order"].flatten(1)
    counts = torch.unique(order, dim=0, return_counts=True)[1]
    assert (
        len(counts) == 24 and counts.min() > 60 and counts.max() < 145
    )  # 100 expected, about four deviations


def test_settings_follow_their_rates_and_ranges():
    view = View(size=112, color=(0.4, 1.5, 0.2, 0.1), gray=0.2, blur=0.5, solarize=0.1)
    draws = photometric._draw(view, Random(0, 0, torch.arange(8000)), 0)
    for name, rate in [("is_gray", 0.2), ("is_blurred", 0.5), ("is_solarized", 0.1)]:
        assert abs(draws[name].double().mean() - rate) < 0.02
    sigma = draws["sigma"]
    assert 0.05 <= sigma.min() < 0.06 and 0.99 < sigma.max() <= 1.0  # half of (0.1, 2), for half of 224 px
    jitter = draws["jitter"].flatten(1)
    is_chosen = (jitter != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
    assert abs(is_chosen.double().mean() - 0.8) < 0.02
    for number, (low, high) in enumerate([(0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1)]):
        values = jitter[is_chosen, number]
        assert low <= values.min() < low + 0.01 * (high - low) + 1e-6
        assert high - 0.01 * (high - low) - 1e-6 < values.max() <= high + 1e-6
        assert abs(values.mean() - (low + high) / 2) < 0.02 * (high - low)


def test_normalisation_and_depth():
    random = Random(0, 0, torch.arange(6))
    view = View(size=20)
    images = make_images()
    before = images.clone()
    found = augment(images, view, random, MEAN, STD, view_index=0)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(found, (images / 255 - mean) / std, rtol=0, atol=1e-6)
    assert found.dtype == torch.float32 and found.is_contiguous() and torch.equal(images, before)
    deep = (images.int() * 257).to(torch.uint16)
    torch.testing.assert_close(augment(deep, view, random, MEAN, STD, view_index=0), found, rtol=0, atol=1e-6)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(last, view, random, MEAN, STD, view_index=0), found)


def test_memory_is_used_again_where_it_fits():
    random, view, images = Random(0, 0, torch.arange(6)), View(size=20), make_images()
    expected = augment(images, view, random, MEAN, STD, view_index=0)
    room = torch.full_like(expected, torch.nan)
    found = augment(images, view, random, MEAN, STD, view_index=0, out=room)
    assert found is room and torch.equal(found, expected)
    other = augment(images, view, random, MEAN, STD, view_index=0, out=room[:5])
    assert other is not room and torch.equal(other, expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_sample_does_not_depend_on_its_batch(name, monkeypatch):
    view = View(size=(32, 40), **SETTINGS[name])
    images = make_images(40, 3, 32, 40)
    index = torch.arange(40)
    whole = augment(images, view, Random(0, 0, index), MEAN, STD, view_index=0)
    rows = torch.tensor([31, 4, 17])
    some = augment(images[rows], view, Random(0, 0, index[rows]), MEAN, STD, view_index=0)
    torch.testing.assert_close(some, whole[rows], rtol=0, atol=5e-6)  # in units of the deviation, here 0.2
    monkeypatch.setattr(photometric, "CHUNK_VALUES", 7 * 3 * 32 * 40)
    monkeypatch.setattr(photometric, "LARGE_IMAGE", 0)
    chunked = augment(images, view, Random(0, 0, index), MEAN, STD, view_index=0)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=5e-6)


def test_views_and_epochs_differ():
    view = View(size=20, color=(0.4, 0.4, 0.2, 0.1), color_probability=1.0)
    images = make_images()[1:]
    index = torch.arange(5)
    results = [
        augment(images, view, Random(0, epoch, index), MEAN, STD, view_index=number).flatten(1)
        for epoch, number in [(0, 0), (0, 1), (1, 0)]
    ]
    for one_result, other in [(0, 1), (0, 2), (1, 2)]:
        assert ((results[one_result] - results[other]).abs().mean(1) > 0.01).all()


@pytest.mark.parametrize("large_image", [0, 10**9])
def test_rows_and_masks_choose_alike(large_image, monkeypatch):
    # CPUs pick rows, one by one if they are large; other devices compute all and mask.
    monkeypatch.setattr(photometric, "LARGE_IMAGE", large_image)
    images = make_images() / 255
    chosen = torch.tensor([True, False, True, True, False, False]).view(-1, 1, 1, 1)
    by_rows, by_mask = images.clone(), images.clone()
    photometric._where_by_rows(by_rows, chosen, brightness, one(0.5, 6))
    photometric._where_by_mask(by_mask, chosen, brightness, one(0.5, 6))
    assert torch.equal(by_rows, by_mask)
    assert torch.equal(by_rows, torch.where(chosen, images * 0.5, images))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SETTINGS)
def test_a_gpu_gives_the_same(name):
    view = View(size=(32, 40), **SETTINGS[name])
    images, index = make_images(40, 3, 32, 40), torch.arange(40)
    here = augment(images, view, Random(0, 0, index), MEAN, STD, view_index=0)
    there = augment(images.cuda(), view, Random(0, 0, index.cuda()), MEAN, STD, view_index=0)
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=2e-5)
