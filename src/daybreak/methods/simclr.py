"""SimCLR: two views of an image must find each other among all others.

Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", 2020,
arXiv 2002.05709.

Differs from the paper: AdamW, which suits ViTs (for the paper's ResNet: ``training.optimizer = "lars"``); views
are normalised; colour operations in a fixed order. B images, D encoder width, E projection width.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Count, Range, Share
from ..nn.heads import BatchNorm, initialise_linear
from ..nn.losses import nt_xent
from .base import Batch, Encoder, Loss, Method, Step, Training, View, register


@dataclass(frozen=True, kw_only=True)
class Config:
    temperature: Annotated[float, Range(0.01, 10)] = 0.1
    hidden: Count = 2048  # width of the middle layer of the head
    output: Count = 128  # width of the projection
    strength: Annotated[float, Range(0, 1)] = 1.0  # of the colour jitter: 1 ImageNet, 0.5 CIFAR-10
    blur: Share = 0.5  # probability
    scale: tuple[float, float] = (0.08, 1.0)  # area of the crop


@register("simclr", config=Config, pool="mean",
          training=Training(learning_rate=5e-4, weight_decay=0.05, warmup=0.1, final_learning_rate=0.0, batch_size=512),
          small={"method": {"temperature": 0.5, "strength": 0.5, "blur": 0.0},
                 "training": {"learning_rate": 2e-3, "batch_size": 256}})
class SimCLR(Method):
    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        s = config.strength
        self.views = [View(size=encoder.image_size, scale=config.scale, flip=0.5, color=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s),
                           color_probability=0.8, gray=0.2, blur=config.blur, count=2)]
        self.head = nn.Sequential(
            nn.Linear(encoder.dim, config.hidden, bias=False), BatchNorm(config.hidden), nn.ReLU(),
            nn.Linear(config.hidden, config.output, bias=False), BatchNorm(config.output, shift=False),
        )
        self.head.apply(initialise_linear)

    def forward(self, batch: Batch, step: Step) -> Loss:
        features = self.encoder.pooled(torch.cat(batch.images))  # (2B, D)
        one, two = self.head(features).chunk(2)  # (B, E) each
        loss = nt_xent(one, two, self.config.temperature)
        return Loss(loss, {"agreement": agreement(one, two)})

    def degenerate(self) -> dict[str, float]:
        others = 2 * self.batch_size - 1
        return {f"ln {others}: no view is told from another": math.log(others)}


def agreement(one: Tensor, two: Tensor) -> Tensor:
    """Mean cosine of the two views of an image, detached."""
    return F.cosine_similarity(one.detach().float(), two.detach().float()).mean()
