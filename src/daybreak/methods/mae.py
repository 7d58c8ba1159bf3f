"""Masked autoencoder (MAE): hide most patches, encode the rest, paint the hidden ones.

He, Chen, Xie, Li, Dollar, Girshick, "Masked Autoencoders Are Scalable Vision Learners", 2021, arXiv 2111.06377.

Differs from the paper: the decoder shrinks with encoders narrower than 384; the target is normalised with the
data's own statistics; only hidden patches are painted, which the loss alone asks for; a share of them may be
left out. B images, N patches, K kept, M painted, D encoder width, E decoder width, P values of a patch
(patch * patch * channels).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..config import Count, Range
from ..nn.encoder import Tokens, initialise_xavier, sincos_positions
from ..nn.losses import mean_over_ranks
from ..nn.masking import patchify, random_mask, unpatchify
from .base import Batch, Encoder, Loss, Method, Picture, Step, Training, View, register


@dataclass(frozen=True, kw_only=True)
class Config:
    mask_ratio: Annotated[float, Range(0.05, 0.95)] = 0.75  # share of patches hidden
    norm_pix: bool = True  # each target patch to zero mean and unit variance; better features, paler pictures
    decoder_width: Count | None = None  # None: 512, or 64 less than the encoder's width below 384
    decoder_depth: Count | None = None  # None: 8, or 2 for encoders narrower than 384
    decode_share: Annotated[float, Range(0.05, 1)] = 1.0  # of the hidden patches, painted in a step; less is faster
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
        prediction, target, _ = self.reconstruct(images, step, self.config.decode_share)
        error = (prediction.float() - target).square().mean(-1)  # (B, M)
        return Loss(mean_over_ranks(error), {})

    def reconstruct(self, images: Tensor, step: Step, share: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction and target (B, M, P) of a random share of the hidden patches, and their positions (B, M)."""
        grid = self.encoder.grid(*images.shape[-2:])
        noise = step.random("mask", (len(images), grid[0] * grid[1]))  # (B, N)
        ratio = self.config.mask_ratio if step.mask_ratio is None else step.mask_ratio
        keep, gone, _ = random_mask(noise, ratio)
        wanted = gone[:, : max(1, round(share * gone.shape[1]))]  # (B, M), in the order of their noise: a random part
        target = patchify(images, self.encoder.patch)  # (B, N, P)
        target = target.gather(1, wanted[:, :, None].expand(-1, -1, target.shape[-1]))
        if self.config.norm_pix:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        tokens = self.encoder.tokens(images, keep=keep)
        return self.decode(tokens, keep, wanted, grid), target, wanted

    def decode(self, tokens: Tokens, keep: Tensor, wanted: Tensor, grid: tuple[int, int]) -> Tensor:
        """Encoded visible tokens (B, K, D), and mask tokens where patches are wanted (B, M), to their pixels (B, M, P)."""
        prefix, seen = (self.embed(x) for x in tokens)  # (B, prefix, E), (B, K, E)
        usual = grid == self.encoder.grid(*self.encoder.image_size)
        positions = (self.decoder_positions if usual else sincos_positions(seen.shape[-1], *grid)).to(seen)  # (N, E)
        hidden = self.mask_token.to(seen) + positions[wanted]  # (B, M, E)
        x = self.blocks(torch.cat([prefix, seen + positions[keep], hidden], dim=1))
        return self.paint(self.norm(x[:, -wanted.shape[1] :]))

    def degenerate(self) -> dict[str, float]:
        pixels = self.encoder.patch**2 * self.encoder.channels
        found = {"0: the images are flat, there is nothing to paint": 0.0}
        if self.config.norm_pix:
            found[f"1 - 1/{pixels}: every hidden patch is painted in its mean"] = 1 - 1 / pixels
        return found

    def picture(self, batch: Batch, step: Step) -> Picture:
        (images,) = batch.images
        prediction, _, wanted = self.reconstruct(images, step)
        truth = patchify(images, self.encoder.patch)
        places = wanted[:, :, None].expand(-1, -1, truth.shape[-1])
        caption = "Hidden patches painted from the visible ones."
        if self.config.norm_pix:
            true = truth.gather(1, places)
            prediction = prediction * (true.var(-1, keepdim=True) + 1e-6).sqrt() + true.mean(-1, keepdim=True)
            caption += " The target is normalised patch by patch; its true mean and contrast are put back here."
        grid = self.encoder.grid(*images.shape[-2:])
        seen = unpatchify(truth.scatter(1, places, 0.0), self.encoder.patch, grid)
        painted = unpatchify(truth.scatter(1, places, prediction.to(truth)), self.encoder.patch, grid)
        return Picture(caption, ["image", "visible", "painted"], [list(r) for r in zip(images, seen, painted, strict=True)])
