"""MMC-style: repaint hidden blocks, match a momentum teacher token by token and view by view, tell images apart.

Wu, Mo, Awais, Atito, Feng, Kittler, "Masked Momentum Contrastive Learning for Zero-shot Semantic Understanding",
2023, arXiv 2308.11448.

An MMC-style method, not a reproduction: the abstract is all that could be read, and it names the three losses,
masked modelling, momentum self-distillation and global contrast, and what each is for. Inferred from SiT and
MC-SSL of the same group: views, corruption by whole patches, one head with one set of prototypes for class and
patch tokens (what carries meaning from global to local features), every width, weight and temperature. Zero-shot
segmentation is a matter of evaluation and not here. B images, N patches, D encoder width, K prototypes, E
projection width, C channels.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import Count, Positive, Range, Share
from ..nn.heads import Reconstruction, contrast_head
from ..nn.losses import cross_contrast, cross_views, entropy, masked_mean, soft_cross_entropy
from ..nn.masking import Corrupted, corrupt_views
from ..nn.momentum import Teacher
from ..nn.prototypes import Centre, PrototypeHead, temperature_at
from .base import Batch, Encoder, Loss, Method, Picture, Step, Training, View, register, repainting


@dataclass(frozen=True, kw_only=True)
class Config:
    drop: Annotated[float, Range(0.01, 0.9)] = 0.5  # largest share of pixels set to zero
    alien: Annotated[float, Range(0.01, 0.9)] = 0.3  # largest share of pixels taken from another image
    alien_probability: Share = 0.5  # of getting alien blocks instead of zeros
    align: Count | None = None  # pixels; blocks start and end at multiples of it; None: the patch, so whole tokens
    prototypes: Count = 8192
    hidden: Count = 2048  # width of the head of prototypes
    bottleneck: Count = 256
    student_temperature: Annotated[float, Range(0.001, 1)] = 0.1
    teacher_temperature: Annotated[float, Range(0.001, 1)] = 0.04  # at the start
    final_teacher_temperature: Annotated[float, Range(0.001, 1)] = 0.07
    temperature_warmup: Share = 0.04  # share of the budget over which it rises
    momentum: Share = 0.996  # of the teacher, at the start; 1 at the end
    centre_momentum: Share = 0.9
    freeze_prototypes: Share = 0.00125  # share of the budget in which they keep their start
    contrast_hidden: Count = 4096  # width of the head of the contrast
    contrast_output: Count = 256
    contrast_temperature: Annotated[float, Range(0.01, 10)] = 0.2
    reconstruction_weight: Positive = 1.0
    distillation_weight: Positive = 1.0
    contrast_weight: Positive = 1.0
    scale: tuple[float, float] = (0.2, 1.0)  # area of the crop


@register("mmc", config=Config, pool="cls", needs_tokens=True, drop_path=0.1, backbone="teacher",
          training=Training(learning_rate=5e-4, weight_decay=0.04, final_weight_decay=0.4, warmup=0.0125, clip=3.0,
                            clip_mode="per-tensor", batch_size=256),
          # Prototypes keep their start, as in the runs that learned in few steps (tests/test_learns.py).
          small={"method": {"prototypes": 1024, "hidden": 512, "contrast_hidden": 1024, "momentum": 0.99,
                            "freeze_prototypes": 1.0, "final_teacher_temperature": 0.04},
                 "encoder": {"drop_path": 0.0},
                 "training": {"learning_rate": 2e-3, "warmup": 0.1, "batch_size": 128}})
class MMC(Method):
    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        common: dict[str, Any] = dict(size=encoder.image_size, scale=config.scale, flip=0.5, color=(0.4, 0.4, 0.2, 0.1),
                                      color_probability=0.8, gray=0.2)
        self.views = [View(blur=1.0, **common), View(blur=0.1, solarize=0.2, **common)]
        self.head = PrototypeHead(encoder.dim, config.prototypes, hidden=config.hidden, bottleneck=config.bottleneck)
        self.contrast = contrast_head(encoder.dim, config.contrast_hidden, config.contrast_output)
        self.repaint = Reconstruction(encoder.dim, encoder.channels, encoder.patch)
        self.teacher = Teacher(self.taught(), start=config.momentum)
        self.class_centre = Centre(config.prototypes, config.centre_momentum)
        self.patch_centre = Centre(config.prototypes, config.centre_momentum)

    def taught(self) -> dict:
        return {"encoder": self.encoder, "head": self.head, "contrast": self.contrast}

    def assignments(self, images: Tensor) -> Tensor:
        return self.teacher["head"](self.teacher["encoder"].pooled(images)) - self.class_centre.value

    def forward(self, batch: Batch, step: Step) -> Loss:
        config, teacher = self.config, self.teacher
        clean = torch.cat(batch.images)  # (2B, C, H, W)
        corrupted, hidden = self.corrupted(batch, step)  # (2B, C, H, W), (2B, 1, H, W)
        with torch.no_grad():
            tokens = teacher["encoder"].tokens(clean)
            pooled = self.encoder.pool(tokens)
            teacher_class, teacher_patches = teacher["head"](pooled), teacher["head"](tokens.patches)  # (2B, K), (2B, N, K)
            keys = teacher["contrast"](pooled)  # (2B, E)
        tokens = self.encoder.tokens(corrupted)
        pooled = self.encoder.pool(tokens)
        student_class = self.head(pooled).float() / config.student_temperature  # (2B, K)
        student_patches = self.head(tokens.patches).float() / config.student_temperature  # (2B, N, K)
        painted = self.repaint(tokens.patches, self.encoder.grid(*clean.shape[-2:]))  # (2B, C, H, W)

        temperature = temperature_at(step.progress, config.teacher_temperature, config.final_teacher_temperature,
                                     config.temperature_warmup)
        class_labels = self.class_centre.assign(teacher_class, temperature)
        patch_labels = self.patch_centre.assign(teacher_patches, temperature)
        reconstruction = masked_mean((painted.float() - clean).abs(), hidden)
        local = hidden_tokens(student_patches, patch_labels, mostly_hidden(hidden, self.encoder.patch))
        across = cross_views(student_class.chunk(2), class_labels.chunk(2))
        contrast = cross_contrast(self.contrast(pooled), keys, config.contrast_temperature)
        self.class_centre.follow(teacher_class)
        self.patch_centre.follow(teacher_patches)
        loss = (config.reconstruction_weight * reconstruction + config.distillation_weight * 0.5 * (local + across)
                + config.contrast_weight * contrast)
        return Loss(loss, {"reconstruction": reconstruction.detach(), "local": local.detach(), "global": across.detach(),
                           "contrast": contrast.detach(), "assignment_entropy": entropy(class_labels).mean(),
                           "mean_entropy": entropy(class_labels.mean(0)), "patch_entropy": entropy(patch_labels).mean(),
                           "patch_mean_entropy": entropy(patch_labels.mean((0, 1)))})

    def corrupted(self, batch: Batch, step: Step) -> Corrupted:
        """Both views with their blocks hidden, joined: images and masks."""
        c = self.config
        return corrupt_views(batch.images, step.random, drop=c.drop, alien=c.alien, alien_probability=c.alien_probability,
                             align=c.align or self.encoder.patch)

    def before_update(self, step: Step) -> None:
        if step.progress < self.config.freeze_prototypes:
            self.head.prototypes.weight.grad = None

    def after_step(self, step: Step) -> None:
        self.teacher.follow(self.taught(), step.progress)

    def degenerate(self) -> dict[str, float]:
        k = self.config.prototypes
        return {f"local: ln {k}: the labels of patches are uniform": math.log(k),
                f"global: ln {k}: the labels of images are uniform": math.log(k),
                "local: 0: every patch goes to one prototype": 0.0, "global: 0: every image goes to one prototype": 0.0}

    def picture(self, batch: Batch, step: Step) -> Picture:
        corrupted, hidden = self.corrupted(batch, step)
        painted = self.repaint(self.encoder.tokens(corrupted).patches, self.encoder.grid(*corrupted.shape[-2:]))
        return repainting(batch.images[0], corrupted, hidden, painted)


def mostly_hidden(hidden: Tensor, patch: int) -> Tensor:
    """(B, N) bool: the patches of which more than half the pixels of ``hidden`` (B, 1, H, W) are hidden."""
    return F.avg_pool2d(hidden.float(), patch).flatten(1) > 0.5


def hidden_tokens(student: Tensor, labels: Tensor, hidden: Tensor) -> Tensor:
    """Mean of -sum P log p over the hidden tokens of a view, each at its own place; then the mean of the two views.

    Args:
        student: (2B, N, K) logits, already divided by their temperature; the first view's come first.
        labels: (2B, N, K) distributions of the teacher.
        hidden: (2B, N) bool.
    """
    errors = soft_cross_entropy(student, labels)  # (2B, N)
    return torch.stack([masked_mean(e, m) for e, m in zip(errors.chunk(2), hidden.chunk(2), strict=True)]).mean()
