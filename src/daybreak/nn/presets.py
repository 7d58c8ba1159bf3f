"""Small encoders by name, each a timm model with a few arguments changed; the patch follows the image size.

D width, H W height and width in pixels.
"""

import math
from collections.abc import Mapping
from typing import Any

import timm

from ..errors import Refused, nearest
from . import conv_vae  # noqa: F401 (so that timm knows the name)

# Name to timm model and the arguments that differ; the heads are 64 wide, as in every ViT of the first paper.
PRESETS: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "vit_micro": ("vit_tiny_patch16_224", {"embed_dim": 128, "depth": 6, "num_heads": 2}),  # 1.2 M parameters
    "vit_mini": ("vit_tiny_patch16_224", {"embed_dim": 192, "depth": 6, "num_heads": 3}),  # 2.7 M
    "vit_small": ("vit_small_patch16_224", {}),  # 21 M
    "convnext_mini": ("convnext_atto", {}),  # 3.4 M, a CNN without batch normalisation
}


def patch_for(image_size: tuple[int, int]) -> int:
    """Side of a patch in pixels: 4 up to 40 px (the shorter side counts), 8 up to 128 px, else 16."""
    side = min(image_size)
    return 4 if side <= 40 else 8 if side <= 128 else 16


def local_size(size: tuple[int, ...], patch: int) -> tuple[int, int]:
    """Height and width in pixels of a local view: 3/7 of the global one, as 96 is of 224, rounded up to whole patches."""
    height, width = (math.ceil(s * 3 / 7 / patch) * patch for s in size)
    return height, width


def resolve(name: str, image_size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
    """The timm model behind a name, and the arguments of timm that the name changes.

    Args:
        name: a preset, or a model of timm, whose own arguments are kept.
        image_size: height and width in pixels; it chooses the patch of a preset.

    Raises:
        Refused: neither a preset nor a model of timm.

    >>> resolve("vit_micro", (32, 32))
    ('vit_tiny_patch16_224', {'embed_dim': 128, 'depth': 6, 'num_heads': 2, 'patch_size': 4})
    """
    if name in PRESETS:
        timm_name, arguments = PRESETS[name]
        patch = patch_for(image_size)
        if timm_name.startswith("convnext"):  # three halvings follow its stem: total strides of 8, 16 and 32
            return timm_name, {"patch_size": 1} if patch == 4 else {"output_stride": 16} if patch == 8 else {}
        return timm_name, {**arguments, "patch_size": patch}
    if not timm.is_model(name):
        known = [*PRESETS, *timm.list_models()]
        close = nearest(name, known)
        presets = ", ".join(PRESETS)
        hint = close if close.startswith("did") else f"choose one of {presets} or any ViT or CNN of timm."
        raise Refused(f"unknown encoder '{name}'; {hint}")
    return name, {}
