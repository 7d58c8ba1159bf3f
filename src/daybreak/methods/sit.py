"""SiT: repaint the corrupted blocks of an image and recognise it among others, with one plain transformer.

Atito, Awais, Kittler, "SiT: Self-supervised vIsion Transformer", 2021, arXiv 2104.03602. This is version C of
the authors' code (December 2022): group-masked corruption, momentum teacher, reconstruction and contrast.

Differs from the code: partners of alien blocks come from cells of 16 samples instead of the whole batch (so
that ranks agree); the teacher has no reconstruction head, which the code averages and never uses; schedules
are shares of the budget. B images, N patches, D encoder width, E projection width, C channels.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch.nn import functional as F

from ..config import Count, Positive, Range, Share
from ..nn.heads import Reconstruction, contrast_head
from ..nn.losses import cross_contrast, masked_mean
from ..nn.masking import Corrupted, corrupt_views
from ..nn.momentum import Teacher
from .base import Batch, Encoder, Loss, Method, Picture, Step, Training, View, register, repainting


@dataclass(frozen=True, kw_only=True)
class Config:
    drop: Annotated[float, Range(0.01, 0.9)] = 0.5  # largest share of pixels set to zero
    alien: Annotated[float, Range(0.01, 0.9)] = 0.3  # largest share of pixels taken from another image
    alien_probability: Share = 0.5  # of getting alien blocks instead of zeros
    align: Count = 1  # pixels; blocks start and end at multiples of it
    temperature: Annotated[float, Range(0.01, 10)] = 0.2
    reconstruction_weight: Positive = 1.0  # 1 on ImageNet, about 5 on small data sets
    hidden: Count = 4096  # width of the class head
    output: Count = 256  # width of the projection
    momentum: Share = 0.996  # of the teacher, at the start; 1 at the end
    scale: tuple[float, float] = (0.2, 1.0)  # area of the crop


@register("sit", config=Config, pool="cls", needs_tokens=True, drop_path=0.1, backbone="teacher",
          training=Training(learning_rate=5e-4, weight_decay=0.04, final_weight_decay=0.1, warmup=0.1, clip=3.0,
                            clip_mode="per-tensor", batch_size=256),
          small={"method": {"reconstruction_weight": 5.0, "hidden": 1024, "momentum": 0.95},
                 "encoder": {"drop_path": 0.0}, "training": {"learning_rate": 2e-3, "batch_size": 128}})
class SiT(Method):
    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        common: dict[str, Any] = dict(size=encoder.image_size, scale=config.scale, flip=0.5, color=(0.4, 0.4, 0.2, 0.1),
                      color_probability=0.8, gray=0.2)
        self.views = [View(blur=1.0, **common), View(blur=0.1, solarize=0.2, **common)]
        self.head = contrast_head(encoder.dim, config.hidden, config.output)
        self.repaint = Reconstruction(encoder.dim, encoder.channels, encoder.patch)
        self.teacher = Teacher(self.taught(), start=config.momentum)

    def taught(self) -> dict:
        return {"encoder": self.encoder, "head": self.head}

    def forward(self, batch: Batch, step: Step) -> Loss:
        config, clean = self.config, torch.cat(batch.images)  # (2B, C, H, W)
        corrupted, hidden = self.corrupted(batch, step)  # (2B, C, H, W), (2B, 1, H, W)
        with torch.no_grad():
            tokens = self.teacher["encoder"].tokens(clean)
            keys = self.teacher["head"](self.encoder.pool(tokens))  # (2B, E)
        tokens = self.encoder.tokens(corrupted)
        queries = self.head(self.encoder.pool(tokens))  # (2B, E)
        painted = self.repaint(tokens.patches, self.encoder.grid(*clean.shape[-2:]))  # (2B, C, H, W)

        contrast = cross_contrast(queries, keys, config.temperature)
        reconstruction = masked_mean((painted.float() - clean).abs(), hidden)
        loss = contrast + config.reconstruction_weight * reconstruction
        other = torch.cat(keys.chunk(2)[::-1])  # (2B, E): the teacher's other view
        cosine = F.cosine_similarity(queries.detach().float(), other.float()).mean()
        return Loss(loss, {"contrast": contrast.detach(), "reconstruction": reconstruction.detach(), "agreement": cosine})

    def corrupted(self, batch: Batch, step: Step) -> Corrupted:
        """Both views with their blocks hidden, joined: images and masks."""
        c = self.config
        return corrupt_views(batch.images, step.random, drop=c.drop, alien=c.alien, alien_probability=c.alien_probability,
                             align=c.align)

    def after_step(self, step: Step) -> None:
        self.teacher.follow(self.taught(), step.progress)

    def degenerate(self) -> dict[str, float]:
        weight = 4 * self.config.temperature  # twice the temperature, and two cross-entropies
        return {f"contrast: {weight:g} ln {self.batch_size}: no view is told from another": weight * math.log(self.batch_size)}

    def picture(self, batch: Batch, step: Step) -> Picture:
        corrupted, hidden = self.corrupted(batch, step)
        painted = self.repaint(self.encoder.tokens(corrupted).patches, self.encoder.grid(*corrupted.shape[-2:]))
        return repainting(batch.images[0], corrupted, hidden, painted)
