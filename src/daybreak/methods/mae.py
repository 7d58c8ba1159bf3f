"""Masked autoencoder (MAE): hide most patches, encode the rest, paint the hidden ones.

He, Chen, Xie, Li, Dollar, Girshick, "Masked Autoencoders Are Scalable Vision Learners", 2021, arXiv 2111.06377.

Differs from the paper: the decoder shrinks with encoders narrower than 384; the target is normalised with the
data's own statistics. B images, N patches, K kept, D encoder width, E decoder width, P pixels of a patch
(patch * patch * channels).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..config import Count, Range
from ..nn.encoder import Tokens, initialise_xavier, sincos_positions
from ..nn.losses import masked_mean
from ..nn.masking import patchify, random_mask, unpatchify
from .base import Batch, Encoder, Loss, Method, Picture, Step, Training, View, register


@dataclass(frozen=True, kw_only=True)
class Config:
    mask_ratio: Annotated[float, Range(0.05, 0.95)] = 0.75  # share of patches hidden
    norm_pix: bool = True  # each target patch to zero mean and unit variance; better features, paler pictures
    decoder_width: Count | None = None  # None: 512, or 64 less than the encoder's width below 384
    decoder_depth: Count | None = None  # None: 8, or 2 for encoders narrower than 384
    scale: tuple[float, float] = (0.2, 1.0)  # area of the crop


@register("mae", config=Config, pool="mean", positions="fixed", init="xavier", needs_tokens=True, exact_accumulation=True,
          training=Training(learning_rate=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, warmup=0.05,
                            final_learning_rate=0.0, batch_size=4096),
          small={"training": {"learning_rate": 2e-3, "batch_size": 128}})
class MAE(Method):
    decoder_positions: Tensor  # (N, E)

    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        self.views = [View(size=encoder.image_size, scale=config.scale, flip=0.5)]
        narrow = encoder.dim < 384
        width = config.decoder_width or (max(64, encoder.dim - 64) if narrow else 512)
        depth = config.decoder_depth or (2 if narrow else 8)
        self.embed = nn.Linear(encoder.dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.blocks = nn.Sequential(*(Block(width, num_heads=max(1, width // 32), qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        grid = encoder.grid(*encoder.image_size)
        self.register_buffer("decoder_positions", sincos_positions(width, *grid), persistent=False)  # (N, E)
        self.paint = nn.Linear(width, encoder.patch**2 * encoder.channels)
        for part in (self.embed, self.blocks, self.paint):
            part.apply(initialise_xavier)

    def forward(self, batch: Batch, step: Step) -> Loss:
        (images,) = batch.images  # (B, C, H, W)
        prediction, target, hidden = self.reconstruct(images, step)
        error = (prediction.float() - target).square().mean(-1)  # (B, N)
        return Loss(masked_mean(error, hidden), {})

    def reconstruct(self, images: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction and target (B, N, P) and the hidden patches (B, N)."""
        grid = self.encoder.grid(*images.shape[-2:])
        target = patchify(images, self.encoder.patch)  # (B, N, P)
        if self.config.norm_pix:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        noise = step.random("mask", target.shape[:2])  # (B, N)
        keep, hidden = random_mask(noise, self.config.mask_ratio)
        tokens = self.encoder.tokens(images, keep=keep)
        return self.decode(tokens, keep, grid), target, hidden

    def decode(self, tokens: Tokens, keep: Tensor, grid: tuple[int, int]) -> Tensor:
        """Encoded visible tokens and mask tokens everywhere else, to pixels (B, N, P)."""
        num_prefix = tokens.prefix.shape[1]
        x = self.embed(torch.cat([tokens.prefix, tokens.patches], dim=1))  # (B, prefix + K, E)
        everywhere = self.mask_token.to(x.dtype).expand(len(x), grid[0] * grid[1], -1)
        patches = everywhere.scatter(1, keep[:, :, None].expand(-1, -1, x.shape[-1]), x[:, num_prefix:])
        usual = grid == self.encoder.grid(*self.encoder.image_size)
        positions = self.decoder_positions if usual else sincos_positions(x.shape[-1], *grid)
        patches = patches + positions.to(x)  # (B, N, E)
        x = self.norm(self.blocks(torch.cat([x[:, :num_prefix], patches], dim=1)))
        return self.paint(x[:, num_prefix:])

    def degenerate(self) -> dict[str, float]:
        pixels = self.encoder.patch**2 * self.encoder.channels
        found = {"0: the images are flat, there is nothing to paint": 0.0}
        if self.config.norm_pix:
            found[f"1 - 1/{pixels}: every hidden patch is painted in its mean"] = 1 - 1 / pixels
        return found

    def picture(self, batch: Batch, step: Step) -> Picture:
        (images,) = batch.images
        prediction, _, hidden = self.reconstruct(images, step)
        truth = patchify(images, self.encoder.patch)
        caption = "Hidden patches painted from the visible ones."
        if self.config.norm_pix:
            prediction = prediction * (truth.var(-1, keepdim=True) + 1e-6).sqrt() + truth.mean(-1, keepdim=True)
            caption += " The target is normalised patch by patch; its true mean and contrast are put back here."
        grid = self.encoder.grid(*images.shape[-2:])

        def draw(patches: Tensor) -> Tensor:
            return unpatchify(patches, self.encoder.patch, grid)

        seen = draw(truth * ~hidden[:, :, None])
        painted = draw(torch.where(hidden[:, :, None], prediction.to(truth), truth))
        return Picture(caption, ["image", "visible", "painted"], [list(r) for r in zip(images, seen, painted, strict=True)])
