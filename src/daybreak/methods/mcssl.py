"""MC-SSL: repaint corrupted blocks and give every token, not only the image, a pseudo-label of a momentum teacher.

Atito, Awais, Farooq, Feng, Kittler, "MC-SSL0.0: Towards Multi-Concept Self-Supervised Learning", 2021, arXiv
2111.15340. This is the released code with its three losses (reconstruction, data tokens, class token with local
views); the two losses of the 2021 figure are ``class_weight = 0``, ``local_views = 0``, ``error = "l1"``.

Differs from the code: partners of alien blocks come from cells of 16 samples instead of the whole batch (so that
ranks agree); the teacher has no reconstruction head; schedules are shares of the budget. Inferred: that the
published accuracies are those of the three losses. Ours: the backbone is used by the mean of its patches, which the labels
of tokens and the repainting train (the code fine-tunes on class token and mean, joined; the two losses of the figure leave
the class token untrained); the settings for small images. DiCoM (arXiv 2402.15534) is this on views of X-rays, a recipe.
B images, V views (2 global, then local), N patches, D encoder width, K prototypes, C channels.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..config import Count, Positive, Range, Share
from ..nn.heads import Reconstruction
from ..nn.losses import cross_views, entropy, masked_mean, mean_over_ranks, soft_cross_entropy
from ..nn.masking import Corrupted, corrupt_views
from ..nn.momentum import Teacher
from ..nn.presets import local_size
from ..nn.prototypes import Centre, TokenPrototypeHead, class_token, temperature_at
from .base import Batch, Encoder, Loss, Method, Picture, Step, Training, View, register, repainting


@dataclass(frozen=True, kw_only=True)
class Config:
    drop: Annotated[float, Range(0.01, 0.9)] = 0.5  # largest share of pixels set to zero, in global views
    alien: Annotated[float, Range(0.01, 0.9)] = 0.3  # largest share of pixels taken from another image
    alien_probability: Share = 0.5  # of getting alien blocks instead of zeros
    align: Count = 1  # pixels; blocks start and end at multiples of it
    error: Literal["l2", "l1"] = "l2"  # of the reconstruction; the paper writes l1, its code computes l2
    prototypes: Count = 8192
    hidden: Count = 2048  # width of the head
    bottleneck: Count = 256
    student_temperature: Annotated[float, Range(0.001, 1)] = 0.1
    teacher_temperature: Annotated[float, Range(0.001, 1)] = 0.04  # at the start
    final_teacher_temperature: Annotated[float, Range(0.001, 1)] = 0.07
    temperature_warmup: Share = 0.04  # share of the budget over which it rises: 30 of 800 epochs
    momentum: Share = 0.996  # of the teacher, at the start; 1 at the end
    centre_momentum: Share = 0.9
    freeze_class_prototypes: Share = 0.00125  # share of the budget in which they keep their start: 1 of 800 epochs
    freeze_data_prototypes: Share = 0.0
    class_weight: Positive = 1.0
    data_weight: Positive = 1.0
    reconstruction_weight: Positive = 1.0
    local_views: Annotated[int, Range(0)] = 10
    local_size: Count | None = None  # pixels; None: 3/7 of the image in whole patches, as 96 is of 224
    global_scale: tuple[float, float] = (0.25, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.25)
    color: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # strengths: brightness, contrast, saturation, hue
    gray: Share = 0.2  # probability
    solarize: Share = 0.2  # probability, in the second global view
    flip: Share = 0.5  # probability


@register("mcssl", config=Config, pool="mean", needs_tokens=True, drop_path=0.1, backbone="teacher",
          training=Training(learning_rate=5e-4, weight_decay=0.04, final_weight_decay=0.4, warmup=0.0125, clip=3.0,
                            clip_mode="per-tensor", batch_size=512),
          # Prototypes keep their start, as in the runs that learned in few steps (tests/test_learns.py).
          small={"method": {"prototypes": 1024, "hidden": 512, "local_views": 4, "momentum": 0.95, "freeze_class_prototypes": 1.0,
                            "freeze_data_prototypes": 1.0, "final_teacher_temperature": 0.04},
                 "encoder": {"drop_path": 0.0},
                 "training": {"learning_rate": 2e-3, "warmup": 0.1, "batch_size": 128}})
class MCSSL(Method):
    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        jitter: dict[str, Any] = dict(flip=config.flip, color=config.color, color_probability=0.8, gray=config.gray)
        size, scale = encoder.image_size, config.global_scale
        self.views = [View(size=size, scale=scale, blur=1.0, **jitter),
                      View(size=size, scale=scale, blur=0.1, solarize=config.solarize, **jitter)]
        if config.local_views:
            local = (config.local_size,) * 2 if config.local_size else local_size(size, encoder.stride)
            encoder.grid(*local)  # refuses a size that the patch does not divide
            sigma = (0.1 * 7 / 3, 2.0 * 7 / 3)  # of a view as large as the global ones: 0.1 to 2 px at 96 px, as the code has it
            self.views.append(View(size=local, scale=config.local_scale, blur=0.5, blur_sigma=sigma,
                                   count=config.local_views, **jitter))
        self.head = TokenPrototypeHead(encoder.dim, config.prototypes, hidden=config.hidden, bottleneck=config.bottleneck)
        self.repaint = Reconstruction(encoder.dim, encoder.channels, encoder.patch, layers=2)
        self.teacher = Teacher(self.taught(), start=config.momentum)
        self.class_centre = Centre(config.prototypes, config.centre_momentum)
        self.data_centre = Centre(config.prototypes, config.centre_momentum)

    def taught(self) -> dict:
        return {"encoder": self.encoder, "head": self.head}

    def assignments(self, images: Tensor) -> Tensor:
        return self.teacher["head"].classes(class_token(self.teacher["encoder"].tokens(images))) - self.class_centre.value

    def forward(self, batch: Batch, step: Step) -> Loss:
        config, head, teacher = self.config, self.head, self.teacher
        clean, local = torch.cat(batch.images[:2]), batch.images[2:]  # (2B, C, H, W), V - 2 times (B, C, h, w)
        corrupted, hidden = self.corrupted(batch, step)  # (2B, C, H, W), (2B, 1, H, W)
        with torch.no_grad():
            tokens = teacher["encoder"].tokens(clean)
            teacher_class = teacher["head"].classes(class_token(tokens))  # (2B, K)
            teacher_data = teacher["head"].data(tokens.patches)  # (2B, N, K)
        tokens = self.encoder.tokens(corrupted)
        first = [class_token(tokens)] + ([class_token(self.encoder.tokens(torch.cat(local)))] if local else [])
        student_class = head.classes(torch.cat(first)).float() / config.student_temperature  # (V B, K)
        student_data = head.data(tokens.patches).float() / config.student_temperature  # (2B, N, K)
        painted = self.repaint(tokens.patches, self.encoder.grid(*clean.shape[-2:]))  # (2B, C, H, W)

        temperature = temperature_at(step.progress, config.teacher_temperature, config.final_teacher_temperature,
                                     config.temperature_warmup)
        class_labels = self.class_centre.assign(teacher_class, temperature)
        data_labels = self.data_centre.assign(teacher_data, temperature)
        class_loss = cross_views(student_class.chunk(len(batch.images)), class_labels.chunk(2))
        data_loss = mean_over_ranks(soft_cross_entropy(student_data, data_labels))  # all tokens, each at its own place
        error = painted.float() - clean
        reconstruction = masked_mean(error.abs() if config.error == "l1" else error.square(), hidden)
        self.class_centre.follow(teacher_class)
        self.data_centre.follow(teacher_data)
        loss = (config.class_weight * class_loss + config.data_weight * data_loss
                + config.reconstruction_weight * reconstruction)
        return Loss(loss, {"class": class_loss.detach(), "data": data_loss.detach(), "reconstruction": reconstruction.detach(),
                           "assignment_entropy": entropy(class_labels).mean(), "mean_entropy": entropy(class_labels.mean(0)),
                           "data_entropy": entropy(data_labels).mean(), "data_mean_entropy": entropy(data_labels.mean((0, 1)))})

    def corrupted(self, batch: Batch, step: Step) -> Corrupted:
        """Both global views with their blocks hidden, joined: images and masks. Local views stay clean."""
        c = self.config
        return corrupt_views(batch.images[:2], step.random, drop=c.drop, alien=c.alien, alien_probability=c.alien_probability,
                             align=c.align)

    def before_update(self, step: Step) -> None:
        if step.progress < self.config.freeze_class_prototypes:
            self.head.class_prototypes.weight.grad = None
        if step.progress < self.config.freeze_data_prototypes:
            self.head.data_prototypes.weight.grad = None

    def after_step(self, step: Step) -> None:
        self.teacher.follow(self.taught(), step.progress)

    def degenerate(self) -> dict[str, float]:
        k = self.config.prototypes
        return {f"class: ln {k}: the labels of images are uniform": math.log(k),
                f"data: ln {k}: the labels of tokens are uniform": math.log(k),
                "class: 0: every image goes to one prototype": 0.0, "data: 0: every token goes to one prototype": 0.0}

    def picture(self, batch: Batch, step: Step) -> Picture:
        corrupted, hidden = self.corrupted(batch, step)
        painted = self.repaint(self.encoder.tokens(corrupted).patches, self.encoder.grid(*corrupted.shape[-2:]))
        return repainting(batch.images[0], corrupted, hidden, painted)
