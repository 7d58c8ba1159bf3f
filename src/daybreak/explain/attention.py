"""Where a ViT looks: the attention of each head of the last block, and its rollout through all blocks.

B images, A heads, P prefix tokens, N patches, T = P + N tokens, h w rows and columns of patches.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ..errors import Refused
from ..nn.encoder import Encoder, Tokens


class Attention(NamedTuple):
    """Shares of attention, on the CPU: each row of T tokens sums to 1; the patches have what the prefix leaves."""

    heads: Tensor  # (B, A, h, w), of the last block
    rollout: Tensor  # (B, h, w)


class Catch(TorchFunctionMode):
    """While it is entered, keeps the attention (B, A, T, T) of each block, rows the queries, as ``keep`` makes it.

    Fused kernels give no weights. Asked once more with the unit matrix as values they do: softmax(q k^T / s) I,
    from the same queries and keys, after any norm and rotation. Nothing of timm is replaced.
    """

    def __init__(self, keep: Callable[[Tensor], Any]):
        super().__init__()
        self.keep = keep
        self.found: list[Any] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function is scaled_dot_product_attention:
            query, key, _, *rest = args
            unit = torch.eye(key.shape[-2], dtype=key.dtype, device=key.device).expand(*key.shape[:-1], -1)
            self.found.append(self.keep(function(query, key, unit, *rest, **kwargs)))
        elif function is torch.Tensor.softmax and result.ndim == 4 and result.shape[-1] == result.shape[-2]:
            self.found.append(self.keep(result))  # timm without fused kernels
        return result


@torch.no_grad()
def attention(encoder: Encoder, images: Tensor) -> Attention:
    """Attention of the feature by which the backbone is used, in evaluation mode.

    The class token's row is read if that is the feature, else the mean of the patches' rows. Rows are not
    normalised again after the prefix is dropped (Caron et al. 2021, arXiv 2104.14294).

    Args:
        images: (B, C, H, W), normalised, on the device of the encoder.

    Raises:
        Refused: a CNN, or blocks without exactly one attention each.
    """
    if not encoder.is_vit:
        raise Refused(f"{encoder.name} is a CNN and has no attention; its maps are those of Eigen-CAM.")
    grid = encoder.grid(*images.shape[-2:])
    last: list[Tensor] = []

    def keep(weights: Tensor) -> Tensor:  # all heads of the last one only: T x T numbers a head are many
        last[:] = [weights]
        return weights.mean(1).cpu()

    with Catch(keep) as caught:
        encoder.tokens(images)
    if len(caught.found) != encoder.depth:
        raise Refused(f"{encoder.name} has {encoder.depth} blocks and {len(caught.found)} attentions were seen in it; "
                      "maps of attention need one a block; choose a plain ViT, such as vit_mini.")
    batch, heads = last[0].shape[:2]
    rows = read(encoder, last[0].flatten(0, 1).cpu())  # (B A, N)
    return Attention(rows.unflatten(1, grid).unflatten(0, (batch, heads)),
                     read(encoder, rollout(caught.found)).unflatten(1, grid))


def read(encoder: Encoder, rows: Tensor) -> Tensor:
    """What the pooled feature takes of each patch, (B, N), of a matrix (B, T, T), rows the queries.

    Pooling is linear, so the rows are pooled as the tokens are.
    """
    prefix = encoder.num_prefix
    return encoder.pool(Tokens(rows[:, :prefix], rows[:, prefix:]))[:, prefix:]


def rollout(blocks: list[Tensor]) -> Tensor:
    """Attention from the last block's tokens to the input's, (B, T, T): R_l = B_l R_(l-1), R_0 = I.

    B_l is (A_l + I) / 2 for the mean over heads A_l (B, T, T) of block l, whose rows sum to 1; the identity
    stands for the residual. Abnar and Zuidema 2020 (arXiv 2005.00928). Values and MLPs are not looked at.
    """
    unit = torch.eye(blocks[0].shape[-1], dtype=torch.float64)
    found = unit.expand_as(blocks[0])
    for weights in blocks:
        found = (weights.double() + unit) / 2 @ found
    return found.float()
