"""Label tokens: one learned token a label, which reads an image in the last blocks of a ViT and becomes that label's logit.

B images, T image tokens (prefix and patches), L labels, A heads, D width, S blocks in which labels read, h w rows and
columns of patches.
"""

import math
from typing import Any

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import Refused
from .encoder import Encoder


class LabelTokens(nn.Module):
    """L tokens that read those of a ViT, which never see them (LT-ViT, arXiv 2311.07263).

    In each block from ``first`` on they are queries of its attention, and image and label tokens its keys; then they
    pass its MLP, all with the block's own weights. That equals label tokens in the sequence under a mask that keeps the
    queries of the image from them, and leaves image tokens bit for bit what they are without.

    Args:
        encoder: a plain ViT. It is not held: whoever reads gives it again.
        labels: L.
        first: number of the block, from 1, in which labels begin to read; None: that of the last third.

    Raises:
        Refused: no plain ViT, or no such block.
    """

    def __init__(self, encoder: Encoder, labels: int, first: int | None = None):
        super().__init__()
        if not encoder.is_vit or not all(map(is_plain, encoder.model.blocks)):
            raise Refused(f"label tokens read in the blocks of a plain ViT, and {encoder.name} has others; choose one, such as "
                          "--encoder vit_mini.")
        self.first = encoder.depth - math.ceil(encoder.depth / 3) + 1 if first is None else first
        if not 1 <= self.first <= encoder.depth:
            raise Refused(f"label tokens were to read from block {first} on, and {encoder.name} has blocks 1 to {encoder.depth}.")
        self.tokens = nn.Parameter(torch.empty(labels, encoder.dim))
        self.weight = nn.Parameter(torch.empty(labels, encoder.dim))
        self.bias = nn.Parameter(torch.zeros(labels))
        for parameter in (self.tokens, self.weight):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Logits (B, L) of normalised images (B, C, H, W); that of a label is a function of its own token."""
        labels, _ = self.read(encoder, images)
        return (labels * self.weight).sum(-1) + self.bias

    def maps(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Where the token of each label looks in each block, mean over heads: (B, S, L, h, w), shares that sum to 1 over h w.

        What it takes from prefix and label tokens is left out.
        """
        _, found = self.read(encoder, images)
        rows = torch.stack([weights.float().mean(1) for weights in found], 1)  # (B, S, L, T + L)
        patches = rows[..., encoder.num_prefix : -len(self.tokens)]
        return (patches / patches.sum(-1, keepdim=True)).unflatten(-1, encoder.grid(*images.shape[-2:]))

    def read(self, encoder: Encoder, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Label tokens after the final normalisation (B, L, D), and their attention in each block (B, A, L, T + L)."""
        labels, rows = self.tokens.expand(len(images), -1, -1), list[Tensor]()
        for block, image in zip(encoder.model.blocks[self.first - 1 :], entering(encoder, images, self.first), strict=True):
            found, weights = attend(block, image, labels)
            labels = labels + block.drop_path1(block.ls1(found))
            labels = labels + block.drop_path2(block.ls2(block.mlp(block.norm2(labels))))
            rows.append(weights)
        return encoder.model.norm(labels), rows


class Scores(nn.Module):
    """An encoder with its label tokens, whose ``pooled`` are the logits (B, L): what ``evaluate.features`` can read."""

    def __init__(self, encoder: Encoder, label_tokens: LabelTokens):
        super().__init__()
        self.encoder, self.label_tokens = encoder, label_tokens

    def pooled(self, images: Tensor) -> Tensor:
        return self.label_tokens(self.encoder, images)


def is_plain(block: Any) -> bool:
    """Whether ``attend`` and the lines after it are what the block does with its tokens."""
    gate = getattr(block.attn, "gate", None)  # which older versions of timm don't have
    return type(block) is Block and type(block.attn) is Attention and gate is None


def entering(encoder: Encoder, images: Tensor, first: int) -> list[Tensor]:
    """Image tokens (B, T, D) that each block from number ``first`` (from 1) on reads."""
    before = [n for n in range(first - 2, encoder.depth - 1) if n >= 0]  # blocks, from 0, whose output that is
    found = [torch.cat(level, 1) for level in encoder.levels(images, before)] if before else []
    if first == 1:  # no block gives what the first one reads
        model = encoder.model
        found.insert(0, model.norm_pre(model._pos_embed(model.patch_embed(images))))
    return found


def attend(block: Any, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What the attention of a block gives labels (B, L, D) that read image tokens (B, T, D) and one another.

    Returns:
        That (B, L, D), before the residual, and its weights (B, A, L, T + L), rows of which sum to 1. Fused kernels would
        not give these, and for so few queries save nothing.
    """
    attn, width = block.attn, block.attn.qkv.out_features // 3
    seen = block.norm1(torch.cat([image, labels], 1))  # (B, T + L, D)
    weight, bias = attn.qkv.weight, attn.qkv.bias
    query = F.linear(seen[:, image.shape[1] :], weight[:width], None if bias is None else bias[:width])
    both = F.linear(seen, weight[width:], None if bias is None else bias[width:])
    query, key, value = (x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x in (query, *both.chunk(2, -1)))
    weights = (attn.q_norm(query) * attn.scale @ attn.k_norm(key).transpose(-2, -1)).softmax(-1)  # (B, A, L, T + L)
    found = attn.norm((attn.attn_drop(weights) @ value).transpose(1, 2).flatten(2))
    return attn.proj_drop(attn.proj(found)), weights
