"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) of a whole batch on its own device, by torchvision's operations.

After the form in which ViTs are fine-tuned ("rand-m9-mstd0.5-inc1" in the recipes of MAE and DeiT): two operations an
image, each left out with probability 0.5, stronger with the magnitude in all of them.

B batch, C channels, H W height and width, M magnitude in [0, 10].
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from .philox import Random

NUM_OPERATIONS = 2  # an image
PROBABILITY = 0.5  # of each
DEVIATION = 0.5  # of the magnitude; half of the images have so much more and half so much less, which batches well
FULL = 10.0  # the largest magnitude

# Takes images (B, C, H, W) in [0, 1], a strength in [0, 1] or, where it is signed, in [-1, 1], and C numbers to fill with.
Operation = Callable[[Tensor, float, list[float]], Tensor]


def move(images: Tensor, fill: list[float], *, angle: float = 0.0, right: float = 0.0, down: float = 0.0,
         shear: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Turn by degrees, shift by shares of the size and shear by slopes; what comes in from outside is ``fill``."""
    height, width = images.shape[2:]
    return functional.affine(images, angle=angle, translate=[right * width, down * height], scale=1.0,
                             shear=[math.degrees(math.atan(slope)) for slope in shear],
                             interpolation=InterpolationMode.BILINEAR, fill=fill)


def solarize_add(images: Tensor, amount: float) -> Tensor:
    """Add to values below one half."""
    return torch.where(images < 0.5, (images + amount).clamp(max=1.0), images)


UNSIGNED: Mapping[str, Operation] = {
    "autocontrast": lambda x, m, fill: functional.autocontrast(x),
    "equalize": lambda x, m, fill: functional.equalize(x),
    "invert": lambda x, m, fill: functional.invert(x),
    "posterize": lambda x, m, fill: functional.posterize(x, max(1, 4 - int(4 * m))),
    "solarize": lambda x, m, fill: functional.solarize(x, 1 - m),
    "solarize add": lambda x, m, fill: solarize_add(x, 110 / 255 * m),
}
SIGNED: Mapping[str, Operation] = {
    "rotate": lambda x, m, fill: move(x, fill, angle=30 * m),
    "shear x": lambda x, m, fill: move(x, fill, shear=(0.3 * m, 0.0)),
    "shear y": lambda x, m, fill: move(x, fill, shear=(0.0, 0.3 * m)),
    "translate x": lambda x, m, fill: move(x, fill, right=0.45 * m),
    "translate y": lambda x, m, fill: move(x, fill, down=0.45 * m),
    "brightness": lambda x, m, fill: functional.adjust_brightness(x, 1 + 0.9 * m),
    "contrast": lambda x, m, fill: functional.adjust_contrast(x, 1 + 0.9 * m),
    "sharpness": lambda x, m, fill: functional.adjust_sharpness(x, 1 + 0.9 * m),
    "saturation": lambda x, m, fill: functional.adjust_saturation(x, 1 + 0.9 * m),
}
OF_COLOUR = ("saturation",)  # of RGB only
OF_GREY_OR_RGB = ("autocontrast", "brightness", "contrast", "sharpness")  # torchvision refuses other numbers of channels


def operations_for(channels: int) -> dict[str, Operation]:
    """The operations for images of so many channels, by name: all 15 for RGB, 14 for grey, else 10."""
    left_out = () if channels == 3 else OF_COLOUR if channels == 1 else (*OF_COLOUR, *OF_GREY_OR_RGB)
    return {name: operation for name, operation in {**UNSIGNED, **SIGNED}.items() if name not in left_out}


@torch.no_grad()
def rand_augment(images: Tensor, random: Random, magnitude: float, fill: Sequence[float]) -> Tensor:
    """Return ``images`` (B, C, H, W), float32 in [0, 1], after two random operations each; what was given may be changed.

    A sample's result depends on the draws for its own index alone.

    Args:
        random: of the batch; its index on the CPU, so that the device is never waited for.
        magnitude: in [0, 10]; 0 leaves the images as they are.
        fill: C numbers in [0, 1] for what a movement brings in.
    """
    if magnitude == 0:
        return images
    table = operations_for(images.shape[1])
    names = list(table)
    signed = torch.tensor([name in SIGNED for name in names])
    draws = random("randaugment", (len(images), NUM_OPERATIONS, 4))  # (B, 2, 4): which, whether, stronger, sign
    which = (draws[..., 0] * len(names)).long()
    codes = 4 * which + 2 * (draws[..., 2] < 0.5) + ((draws[..., 3] < 0.5) & signed[which])
    codes = codes.masked_fill(draws[..., 1] >= PROBABILITY, -1)
    for turn in range(NUM_OPERATIONS):
        for code in codes[:, turn].unique().tolist():
            if code < 0:
                continue
            number, is_stronger, is_negative = code // 4, code // 2 % 2, code % 2
            rows = (codes[:, turn] == code).nonzero()[:, 0].to(images.device, non_blocking=True)
            strength = min(max(magnitude + (DEVIATION if is_stronger else -DEVIATION), 0.0), FULL) / FULL
            images[rows] = table[names[number]](images[rows], -strength if is_negative else strength, list(fill))
    return images
