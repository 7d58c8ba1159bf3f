"""Maps of activations: Grad-CAM, for a class of a head; Eigen-CAM, without a class or a gradient.

B images, D width, C classes, P prefix tokens, N positions, h w rows and columns.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..errors import Refused
from ..nn.encoder import Encoder


class Cam(NamedTuple):
    """A map before any rectifier or scaling, and how much of the features it speaks for."""

    map: Tensor  # (B, h, w) float64
    share: Tensor  # (B,) in [0, 1], of the squared length of all features


def eigen_cam(features: Tensor, *, centred: bool = False) -> Cam:
    """Projection of each position's features on their first right singular vector: M v_1, M = U S V^T (N, D).

    Muhammad and Yeasin 2020 (arXiv 2008.00299). The sign of v_1 is arbitrary: here the larger end of the
    projection is positive. Each image stands by itself.

    Args:
        features: (B, D, h, w), of a ViT or a CNN.
        centred: subtract the mean over positions first, which makes it the first principal component, as some
            implementations do; the maps differ. The features of a ViT share most of their length, so that the
            map that is not centred tells how much of this common part each patch has.
    """
    table = features.flatten(2).transpose(1, 2).double()  # (B, N, D)
    if centred:
        table = table - table.mean(1, keepdim=True)
    _, strength, directions = torch.linalg.svd(table, full_matrices=False)
    projection = (table @ directions[:, 0, :, None])[:, :, 0]  # (B, N)
    low, high = projection.aminmax(dim=1, keepdim=True)
    projection = torch.where(low.abs() > high.abs(), -projection, projection)
    energy = strength.square()  # (B, min(N, D))
    return Cam(projection.unflatten(1, features.shape[-2:]), energy[:, 0] / energy.sum(1).clamp(min=1e-300))


def grad_cam(encoder: Encoder, head: Callable[[Tensor], Tensor], images: Tensor, classes: Tensor) -> Tensor:
    """Where the activations are that speak for a class: ReLU(sum_k a_k A_k), a_k = mean over positions of dy / dA_k.

    Selvaraju et al. 2016 (arXiv 1610.02391); y is the logit, before any softmax. Where the feature is the mean of a map, of a
    CNN or a ViT, A is that map. Where it is the class token, whose last map has no gradient, A is what the first norm of
    the last block gives for the patches: all that the token takes from them there passes through it. Of a mean it would show
    little, since the patches' own residuals go past it; but the map that is averaged is flat where the blocks have spread over
    all patches what speaks for the class. Activations of the prefix are left out.

    Args:
        encoder: in evaluation mode; no gradient is left on its weights.
        head: from pooled vectors (B, D) to logits (B, C).
        images: (B, C, H, W), normalised, on the device of the encoder.
        classes: (B,) int64, the class of each image's map.

    Returns:
        (B, h, w) on the CPU, 0 and above; all 0 where nothing speaks for the class. Each image stands by itself.

    Raises:
        Refused: a ViT with a class token for its feature, whose last block does not begin with a norm.
    """
    shape = encoder.grid(*images.shape[-2:])
    with torch.enable_grad():
        if encoder.pooling == "cls":
            caught: list[Tensor] = []

            def cut(_module: nn.Module, _inputs: tuple, given: Tensor) -> Tensor:
                caught.append(given.detach().clone().requires_grad_())  # of its own: what follows may write into it
                return caught[-1]

            handle = first_norm(encoder).register_forward_hook(cut)
            try:
                logits = head(encoder.pooled(images))
            finally:
                handle.remove()
            (activations,), prefix = caught, encoder.num_prefix  # (B, P + N, D)
        else:
            with torch.no_grad():
                features = encoder.map(images)
            activations, prefix = features.detach().flatten(2).transpose(1, 2).requires_grad_(), 0  # (B, N, D)
            logits = head(activations.mean(1))
        (slope,) = torch.autograd.grad(logits.gather(1, classes[:, None].to(logits.device)).sum(), activations)
    there, slope = (x[:, prefix:].detach().double().cpu() for x in (activations, slope))  # (B, N, D)
    return (there * slope.mean(1, keepdim=True)).sum(2).relu().unflatten(1, shape)


def first_norm(encoder: Encoder) -> nn.Module:
    """The norm that the last block of a ViT begins with."""
    block = encoder.model.blocks[-1]
    if type(block) not in (Block, EvaBlock):
        raise Refused(f"{encoder.name}: its blocks ({type(block).__name__}) do not begin with one norm, whose output Grad-CAM "
                      "weighs; choose a plain ViT, such as vit_mini.")
    return block.norm1
