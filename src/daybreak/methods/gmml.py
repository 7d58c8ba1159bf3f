"""GMML: hide groups of connected pixels under noise or another image, and repaint them with one plain transformer.

Atito, Awais, Kittler, "GMML is All you Need", 2022, arXiv 2205.14986. No teacher, no contrast, no mask token, no
decoder blocks: every token is read, corrupted or not, and the loss is the error over corrupted pixels.

Differs from the code: blocks of the same image as a third fill, local crops and the "harsh" colours, which it
defines and never uses, are left out; partners of alien blocks come from cells of 16 samples instead of the whole
batch (so that ranks agree). Inferred from the code's defaults: that noise mixed with alien blocks is what the
paper's numbers used. The settings for small images are ours. B images, V views, N patches, D encoder width, C channels.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..config import Count, Range, Share
from ..nn.heads import Reconstruction
from ..nn.losses import masked_mean
from ..nn.masking import Corrupted, Fill, corrupt_views
from .base import Batch, Encoder, Loss, Method, Picture, Step, Training, View, register, repainting


@dataclass(frozen=True, kw_only=True)
class Config:
    drop: Annotated[float, Range(0.01, 0.9)] = 0.75  # largest share of pixels dropped; at least 0.5 where it is above
    fill: Fill = "noise"  # what stands in dropped blocks; "noise-zeros": either, for each image
    alien: Annotated[float, Range(0.01, 0.9)] = 0.3  # largest share of pixels taken from another image
    alien_probability: Share = 0.5  # of alien blocks instead of dropped ones; the code: 1 / (1 + number of fills)
    align: Count = 1  # pixels; blocks start and end at multiples of it
    views: Count = 2  # of each image in a step; the code takes two to make as many updates as its rivals
    scale: tuple[float, float] = (0.05, 1.0)  # area of the crop


@register("gmml", config=Config, pool="mean", needs_tokens=True, drop_path=0.1,
          training=Training(learning_rate=5e-4, weight_decay=0.04, final_weight_decay=0.4, warmup=0.0125, clip=3.0,
                            clip_mode="per-tensor", batch_size=256),
          small={"method": {"views": 1, "scale": (0.2, 1.0)}, "encoder": {"drop_path": 0.0},
                 "training": {"learning_rate": 2e-3, "warmup": 0.1, "batch_size": 128}})
class GMML(Method):
    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        self.views = [View(size=encoder.image_size, scale=config.scale, flip=0.5, color=(0.1, 0.1, 0.1, 0.01),
                           color_probability=0.3, blur=0.1, count=config.views)]
        self.read = readout(encoder.depth)
        self.repaint = Reconstruction(encoder.dim, encoder.channels, encoder.patch)

    def forward(self, batch: Batch, step: Step) -> Loss:
        clean = torch.cat(batch.images)  # (V B, C, H, W)
        corrupted, hidden = self.corrupted(batch, step)  # (V B, C, H, W), (V B, 1, H, W)
        painted = self.painted(corrupted)  # (V B, C, H, W)
        loss = masked_mean((painted.float() - clean).abs(), hidden)
        return Loss(loss, {"mean_colour": masked_mean(clean.abs(), hidden).detach()})  # what painting nothing at all would cost

    def corrupted(self, batch: Batch, step: Step) -> Corrupted:
        """All views with their blocks hidden, joined: images and masks."""
        c = self.config
        return corrupt_views(batch.images, step.random, drop=c.drop, fill=c.fill, alien=c.alien,
                             alien_probability=c.alien_probability, align=c.align)

    def painted(self, images: Tensor) -> Tensor:
        """(B, C, H, W) from what several blocks say on average, normalised like the encoder's own output."""
        levels = self.encoder.levels(images, self.read)
        tokens = torch.stack([level.patches for level in levels]).mean(0)  # (B, N, D)
        return self.repaint(self.encoder.model.norm(tokens), self.encoder.grid(*images.shape[-2:]))

    def picture(self, batch: Batch, step: Step) -> Picture:
        corrupted, hidden = self.corrupted(batch, step)
        return repainting(batch.images[0], corrupted, hidden, self.painted(corrupted))


def readout(depth: int) -> list[int]:
    """Numbers (from 0) of the blocks at 1/2, 2/3, 5/6 and the end: the 6th, 8th, 10th and 12th of 12.

    >>> readout(12), readout(6), readout(2)
    ([5, 7, 9, 11], [2, 3, 4, 5], [0, 1])
    """
    return sorted({-(-depth * sixths // 6) - 1 for sixths in (3, 4, 5, 6)})
