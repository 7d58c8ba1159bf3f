"""DINO: the student's view of an image must be sorted into the same prototypes as the teacher's.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised Vision
Transformers", 2021, arXiv 2104.14294.

Differs from the paper: schedules are shares of the budget where the code counts epochs. B images, V views
(2 global, then local), D encoder width, K prototypes.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..config import Count, Range, Share
from ..nn.losses import cross_views, entropy
from ..nn.momentum import Teacher
from ..nn.presets import local_size
from ..nn.prototypes import Centre, PrototypeHead, temperature_at
from .base import Batch, Encoder, Loss, Method, Step, Training, View, register


@dataclass(frozen=True, kw_only=True)
class Config:
    prototypes: Count = 65536
    hidden: Count = 2048  # width of the head
    bottleneck: Count = 256
    student_temperature: Annotated[float, Range(0.001, 1)] = 0.1
    teacher_temperature: Annotated[float, Range(0.001, 1)] = 0.04  # at the start
    final_teacher_temperature: Annotated[float, Range(0.001, 1)] = 0.04  # the best runs end at 0.07
    temperature_warmup: Share = 0.3  # share of the budget over which it rises
    momentum: Share = 0.996  # of the teacher, at the start; 1 at the end
    centre_momentum: Share = 0.9
    freeze_prototypes: Share = 0.01  # share of the budget in which the last layer keeps its start
    local_views: Annotated[int, Range(0)] = 8
    local_size: Count | None = None  # pixels; None: 3/7 of the image in whole patches, as 96 is of 224
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)


@register("dino", config=Config, pool="cls", drop_path=0.1, backbone="teacher",
          training=Training(learning_rate=5e-4, weight_decay=0.04, final_weight_decay=0.4, warmup=0.1, clip=3.0,
                            clip_mode="per-tensor", batch_size=1024),
          # Prototypes keep their start, as in the runs that learned in few steps (tests/test_learns.py, recipes).
          small={"method": {"prototypes": 1024, "hidden": 512, "local_views": 4, "momentum": 0.99, "freeze_prototypes": 1.0},
                 "encoder": {"drop_path": 0.0},
                 "training": {"learning_rate": 5e-4, "learning_rate_rule": "fixed", "batch_size": 64}})
class DINO(Method):
    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        jitter: dict[str, Any] = dict(flip=0.5, color=(0.4, 0.4, 0.2, 0.1), color_probability=0.8, gray=0.2)
        size, scale = encoder.image_size, config.global_scale
        self.views = [View(size=size, scale=scale, blur=1.0, **jitter),
                      View(size=size, scale=scale, blur=0.1, solarize=0.2, **jitter)]
        if config.local_views:
            local = (config.local_size,) * 2 if config.local_size else local_size(size, encoder.stride)
            encoder.grid(*local)  # refuses a size that the patch does not divide
            sigma = (0.1 * 7 / 3, 2.0 * 7 / 3)  # of a view as large as the global ones: 0.1 to 2 px at 96 px, as the code has it
            self.views.append(View(size=local, scale=config.local_scale, blur=0.5, blur_sigma=sigma,
                                   count=config.local_views, **jitter))
        self.head = PrototypeHead(encoder.dim, config.prototypes, hidden=config.hidden, bottleneck=config.bottleneck)
        self.teacher = Teacher(self.taught(), start=config.momentum)
        self.centre = Centre(config.prototypes, config.centre_momentum)

    def taught(self) -> dict:
        return {"encoder": self.encoder, "head": self.head}

    def assignments(self, images: Tensor) -> Tensor:
        return self.teacher["head"](self.teacher["encoder"].pooled(images)) - self.centre.value

    def forward(self, batch: Batch, step: Step) -> Loss:
        config = self.config
        two, many = batch.images[:2], batch.images[2:]
        with torch.no_grad():
            teacher = self.teacher["head"](self.teacher["encoder"].pooled(torch.cat(two)))  # (2B, K)
        features = [self.encoder.pooled(torch.cat(two))] + ([self.encoder.pooled(torch.cat(many))] if many else [])
        student = self.head(torch.cat(features)).float() / config.student_temperature  # (V B, K)
        temperature = temperature_at(step.progress, config.teacher_temperature, config.final_teacher_temperature,
                                     config.temperature_warmup)
        targets = self.centre.assign(teacher, temperature)  # (2B, K)
        loss = cross_views(student.chunk(len(batch.images)), targets.chunk(2))
        self.centre.follow(teacher)
        return Loss(loss, {"assignment_entropy": entropy(targets).mean(), "mean_entropy": entropy(targets.mean(0))})

    def before_update(self, step: Step) -> None:
        if step.progress < self.config.freeze_prototypes:
            self.head.prototypes.weight.grad = None

    def after_step(self, step: Step) -> None:
        self.teacher.follow(self.taught(), step.progress)

    def degenerate(self) -> dict[str, float]:
        k = self.config.prototypes
        return {f"ln {k}: the output is uniform": math.log(k), "0: every image goes to one prototype": 0.0}
