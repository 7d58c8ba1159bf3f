"""Colour, blur, solarisation and normalisation of a whole batch at once, on the batch's own device.

The functions below ``augment`` work in place on float32 images (B, C, H, W) in [0, 1] and return them; their
settings are (B, 1, 1, 1), one a sample.  The operations are those of torchvision.transforms.functional.

B batch, C channels, H W height and width, R radius of a blur.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from .philox import Random
from .views import View

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, rounded as torchvision rounds it
CHUNK_VALUES = 600_000  # 2.4 MB of float32, which stay in a CPU's cache from first to last of many operations
LARGE_IMAGE = 40_000  # values from which images one by one, in place, are faster than a copy of them all

Operation = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def augment(
    images: Tensor,
    view: View,
    random: Random,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    view_index: int,
    out: Tensor | None = None,
) -> Tensor:
    """Return ``images`` after the view's photometric operations, float32 of the same shape (B, C, H, W).

    ``images`` is uint8 or uint16 and is left as it is; its range becomes [0, 1].  In order: colour jitter,
    grayscale, Gaussian blur, solarisation, normalisation by ``mean`` and ``std`` (C numbers each, in units of
    [0, 1]).  Operations whose settings are zero are left out; images that don't have 3 channels keep to
    brightness and contrast.  The draws are those of ``random`` for flat view number ``view_index``: a
    sample's result does not depend on the rest of the batch.  ``out``, float32, is written over and returned where
    its shape and device are those of ``images``: on a CPU fresh memory costs as much as the conversion.
    """
    batch, channels, height, width = images.shape
    fits = out is not None and out.shape == images.shape and out.device == images.device
    output = out if out is not None and fits else torch.empty(images.shape, dtype=torch.float32, device=images.device)
    is_changed = any((*view.color, view.gray, view.blur, view.solarize))
    draws = _draw(view, random, view_index) if is_changed else {}
    full = 65535 if images.dtype == torch.uint16 else 255
    chunk = max(1, CHUNK_VALUES // (channels * height * width)) if images.is_cpu and is_changed else batch
    for start in range(0, batch, chunk):
        rows = slice(start, start + chunk)
        part, unit = output[rows].copy_(images[rows]), full
        if is_changed or not view.normalise:
            part.mul_(1 / full)
            unit = 1
        if is_changed:
            _apply(part, view, {name: values[rows] for name, values in draws.items()})
        if view.normalise:
            for plane, m, s in zip(part.unbind(1), mean, std, strict=True):
                # One pass; a single number goes along to any device, where a tensor of C would first be copied over.
                torch.add(torch.tensor(-m / s), plane, alpha=1 / (unit * s), out=plane)
    return output


def without_colour(views: Sequence[View], channels: int) -> str:
    """Return in a sentence which operations the views ask for and images that are not RGB don't get; empty if none."""
    asked = {"saturation": any(view.color[2] > 0 for view in views), "hue": any(view.color[3] > 0 for view in views),
             "grayscale": any(view.gray > 0 for view in views)}
    names = [name for name, is_asked in asked.items() if is_asked]
    if channels == 3 or not names:
        return ""
    return (f"colour augmentation off: {', '.join(names)} (the images have {channels} channel{'s' * (channels > 1)}, not RGB)")


def _draw(view: View, random: Random, view_index: int) -> dict[str, Tensor]:
    """Each sample's settings, (B, 1, 1, 1); four for "jitter", and its order, (B, 4, 1, 1, 1)."""
    uniform = random("photometric", (len(random.index), 13, 1, 1, 1), view=view_index)
    is_chosen, jitter, gray, blurred, sigma, solarized, order = uniform.split((1, 4, 1, 1, 1, 1, 4), 1)
    is_chosen = is_chosen[:, 0] < view.color_probability
    settings = []
    for number, strength in enumerate(view.color):
        low, high = (-strength, strength) if number == 3 else (max(0.0, 1 - strength), 1 + strength)
        neutral = 0.0 if number == 3 else 1.0
        settings.append(torch.where(is_chosen, low + (high - low) * jitter[:, number], neutral))
    low, high = (value * view.height / 224 for value in view.blur_sigma)
    return {
        "jitter": torch.stack(settings, 1),
        "order": order.argsort(1),
        "is_gray": gray[:, 0] < view.gray,
        "is_blurred": blurred[:, 0] < view.blur,
        "sigma": low + (high - low) * sigma[:, 0],
        "is_solarized": solarized[:, 0] < view.solarize,
    }


def _apply(images: Tensor, view: View, draws: dict[str, Tensor]) -> None:
    is_color = images.shape[1] == 3
    operations = (brightness, contrast, saturation, hue)
    used = [number for number in range(4 if is_color else 2) if view.color[number] > 0]
    if view.color_order == "fixed":
        for number in used:
            operations[number](images, draws["jitter"][:, number])
    else:
        for place in range(4):
            for number in used:
                is_next = draws["order"][:, place] == number
                _where(images, is_next, operations[number], draws["jitter"][:, number])
    if view.gray > 0 and is_color:
        _where(images, draws["is_gray"], saturation, torch.zeros_like(draws["sigma"]))
    if view.blur > 0:
        radius = math.ceil(3 * view.blur_sigma[1] * view.height / 224)
        _where(images, draws["is_blurred"], partial(blur, radius=radius), draws["sigma"])
    if view.solarize > 0:
        _where(images, draws["is_solarized"], lambda part, _: solarize(part), draws["sigma"])


def _where(images: Tensor, chosen: Tensor, operation: Operation, setting: Tensor) -> None:
    """Replace the chosen samples, (B, 1, 1, 1) bool, by ``operation(samples, setting)``."""
    # Only a CPU picks rows without waiting: elsewhere their number would have to come back from the device.
    (_where_by_rows if images.is_cpu else _where_by_mask)(images, chosen, operation, setting)


def _where_by_rows(images: Tensor, chosen: Tensor, operation: Operation, setting: Tensor) -> None:
    rows = chosen.flatten().nonzero().flatten()
    if images[0].numel() >= LARGE_IMAGE:
        for row in rows.tolist():
            operation(images[row : row + 1], setting[row : row + 1])
    elif len(rows):
        images[rows] = operation(images[rows], setting[rows])


def _where_by_mask(images: Tensor, chosen: Tensor, operation: Operation, setting: Tensor) -> None:
    images.copy_(torch.where(chosen, operation(images.clone(), setting), images))


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by ``factor`` >= 0."""
    return images.mul_(factor).clamp_(max=1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance to the image's mean gray by ``factor`` >= 0; without 3 channels, to its mean."""
    mean = images.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
    gray = _luma(mean) if images.shape[1] == 3 else mean.mean(1, keepdim=True)
    return images.mul_(factor).add_((1 - factor) * gray).clamp_(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance to the pixel's gray by ``factor`` >= 0; 0 gives grayscale."""
    gray = _luma(images).mul_(1 - factor)
    return images.mul_(factor).add_(gray).clamp_(0, 1)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by ``turn``, in [-0.5, 0.5] of the colour circle; value and saturation (HSV) stay."""
    red, green, blue = images.unbind(1)  # each (B, H, W)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # The way round the circle from red, times chroma: 1 to yellow, 2 to green, 3 to cyan; by symmetry it is
    # the same on the blue side, and there it counts as negative.  This avoids slow comparisons.
    position = (green + blue).sub_(red).add_(high).sub_(low, alpha=2)
    position = torch.copysign(position, torch.sub(green, blue, out=high), out=position)
    chroma6 = chroma * 6
    position.div_(torch.clamp(chroma6, min=1e-12, out=high)).add_(turn[:, 0] + 1).frac_()  # in [0, 1)
    # A channel is high within 1/6 of its place on the circle, low beyond 1/3, and a straight line between.
    # Red's place is at both ends, hence the other sign.
    distance = (position - 1 / 2).abs_().clamp_(1 / 6, 1 / 3)
    torch.addcmul(torch.sub(low, chroma, out=high), chroma6, distance, out=red)
    base = low.add_(chroma, alpha=2)
    torch.sub(position, 1 / 3, out=distance).abs_().clamp_(1 / 6, 1 / 3)
    torch.addcmul(base, chroma6, distance, value=-1, out=green)
    torch.sub(position, 2 / 3, out=distance).abs_().clamp_(1 / 6, 1 / 3)
    torch.addcmul(base, chroma6, distance, value=-1, out=blue)
    return images.clamp_(0, 1)  # rounding may leave the range by 1e-7


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur by a Gaussian of deviation ``sigma`` pixels, cut at ceil(3 sigma) and ``radius``; edges mirror."""
    height, width = images.shape[2:]
    radius = min(radius, height - 1, width - 1)
    if images.is_cpu:  # weights beyond a sample's own radius are 0: here they needn't be added
        radius = min(radius, math.ceil(3 * sigma.max().item()))
    offsets = torch.arange(radius + 1, device=images.device).view(-1, 1, 1, 1, 1)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2) * (offsets <= torch.ceil(3 * sigma))
    weights /= 2 * weights.sum(0) - weights[0]  # (R + 1, B, 1, 1, 1)
    for axis, length in ((2, height), (3, width)):
        padding = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        padded = functional.pad(images, padding, mode="reflect")
        torch.mul(padded.narrow(axis, radius, length), weights[0], out=images)
        pair = torch.empty_like(images)
        for offset in range(1, radius + 1):
            before = padded.narrow(axis, radius - offset, length)
            after = padded.narrow(axis, radius + offset, length)
            images.add_(torch.add(before, after, out=pair).mul_(weights[offset]))
    return images


def solarize(images: Tensor) -> Tensor:
    """Invert values of at least 0.5: the smaller of x and 1 - x."""
    return torch.minimum(images, 1 - images, out=images)


def _luma(images: Tensor) -> Tensor:
    """Gray (B, 1, H, W) of RGB images."""
    red, green, blue = images.split(1, 1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
