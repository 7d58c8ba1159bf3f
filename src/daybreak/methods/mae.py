"""Masked autoencoder (MAE): hide most patches, encode the rest, paint the hidden ones.

He, Chen, Xie, Li, Dollar, Girshick, "Masked Autoencoders Are Scalable Vision Learners", 2021, arXiv 2111.06377.

Differs from the paper: the decoder shrinks with encoders narrower than 384; the target is normalised with the
data's own statistics; only hidden patches are painted, which the loss alone asks for; a share of them may be
left out. B images, N patches, K kept, M painted, P values of a patch (patch * patch * channels).
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from ..config import Count, Range
from ..nn.decoder import Decoder
from ..nn.losses import mean_over_ranks
from ..nn.masking import normalise_patches, patchify, random_mask, unpatchify
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
    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        self.views = [View(size=encoder.image_size, scale=config.scale, flip=0.5)]
        self.decoder = Decoder(encoder, encoder.patch**2 * encoder.channels, width=config.decoder_width,
                               depth=config.decoder_depth)

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
            target = normalise_patches(target)
        tokens = self.encoder.tokens(images, keep=keep)
        return self.decoder(tokens, keep, wanted, grid), target, wanted

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
