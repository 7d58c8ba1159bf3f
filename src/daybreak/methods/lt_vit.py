"""LT-ViT: learn several labels an image, each by a token of its own whose attention to the patches is the label's map.

Marikkar, Atito, Awais, Mahdi, "LT-ViT: A Vision Transformer for multi-label Chest X-ray classification", 2023, arXiv
2311.07263. It is supervised: it needs labels, several an image (columns of 0 and 1, unknown ones left out) or one class an
image, each class then being a label; its numbers stand beside those of other methods that saw labels. The paper starts from
pretrained weights: ``--init RUN``.

Only the abstract could be read. From it: a random token for each label, attention over image and label tokens together, at
several depths (the scales), maps without Grad-CAM. Inferred: that image tokens never read label tokens, that a block serves
both with one set of weights, the last third of the blocks, one weight vector a label, and the whole recipe. Differs from
common practice for X-rays: no rotation of the views, and one learning rate for all layers. B images, L labels, S blocks in
which labels read, h w rows and columns of patches.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import Count, Positive, Share
from ..errors import Refused
from ..nn.label_tokens import LabelTokens
from ..nn.losses import known_bce, masked_mean
from .base import Batch, Encoder, Loss, Method, Picture, Step, Training, View, register

SHOWN = 6  # labels in the picture


@dataclass(frozen=True, kw_only=True)
class Config:
    classes: Count | None = None  # labels; None: as many as the data have
    first_block: Count | None = None  # number, from 1, of the block in which label tokens begin to read; None: of the last third
    jitter: Positive = 0.2  # strength of brightness and contrast
    flip: Share = 0.5  # probability; 0 keeps left and right apart, where that is a finding
    scale: tuple[float, float] = (0.5, 1.0)  # area of the crop


@register("lt_vit", config=Config, pool="cls", labels="multi", needs_tokens=True, drop_path=0.1,
          training=Training(learning_rate=1e-4, weight_decay=0.05, warmup=0.1, batch_size=256),
          small={"encoder": {"drop_path": 0.0}, "training": {"learning_rate": 1e-3, "batch_size": 128}})
class LTViT(Method):
    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        if config.classes is None:
            raise Refused("method.classes is not set; lt_vit learns from labels and must know how many there are.")
        self.views = [View(size=encoder.image_size, scale=config.scale, flip=config.flip,
                           color=(config.jitter, config.jitter, 0.0, 0.0))]
        self.label_tokens = LabelTokens(encoder, config.classes, config.first_block)

    def forward(self, batch: Batch, step: Step) -> Loss:
        (images,) = batch.images  # (B, C, H, W)
        labels = self.several(batch)  # (B, L) of 0, 1 and NaN
        logits = self.label_tokens(self.encoder, images)  # (B, L)
        scores, known = logits.detach().float().sigmoid(), ~labels.isnan()
        return Loss(known_bce(logits, labels), {
            "positives": masked_mean(labels.nan_to_num(), known), "mean_score": masked_mean(scores, known),
            "score_spread": scores.std(0, correction=0).mean()})

    def several(self, batch: Batch) -> Tensor:
        """Labels (B, L) float32 of 0, 1 and NaN, unknown; where each image has a class, a label for each class."""
        labels, classes = batch.labels, self.config.classes
        assert labels is not None
        if labels.ndim == 2:
            return labels
        return F.one_hot(labels.clamp(min=0), classes).float().masked_fill((labels < 0)[:, None], torch.nan)

    def degenerate(self) -> dict[str, float]:
        return {"ln 2: every score is one half": math.log(2), "score_spread: 0: all images get the same scores": 0.0}

    def picture(self, batch: Batch, step: Step) -> Picture:
        (images,) = batch.images
        maps = self.label_tokens.maps(self.encoder, images).mean(1)[:, :SHOWN]  # (B, l, h, w)
        shares = F.interpolate(maps / maps.amax((2, 3), keepdim=True), images.shape[2:], mode="bilinear")  # (B, l, H, W)
        rows = [[image, *(image * share for share in its)] for image, its in zip(images, shares, strict=True)]
        return Picture("Where the token of each label looks, mean over the blocks in which it reads: the rest fades to the mean "
                       "colour.", ["view", *(f"label {i + 1}" for i in range(maps.shape[1]))], rows)
