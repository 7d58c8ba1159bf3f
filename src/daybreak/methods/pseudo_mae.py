"""Pseudo-labelled MAE: from few visible patches, predict a teacher's tokens of the rest and the cluster of each token.

Nandam, Atito, Feng, Kittler, Awais, "Pseudo Labelling for Enhanced Masked Autoencoders", 2024, arXiv 2406.17450.

A method in the style of that paper, whose abstract and one summary are all that could be read. From these: a
sparse encoder with a decoder, a target of teacher tokens instead of pixels, cluster labels on class and data tokens,
two teachers, one for the labels and one for the tokens, and the words "multi-fold pseudo labelling". Inferred: both
teachers are moving averages of the encoder with momenta of their own; the target is normalised token by token; data
labels go to the visible tokens; folds are disjoint visible sets of one image; widths, temperatures and weights, which
are MAE's and MC-SSL's. The abstract's discrete tokens are here the labels alone. B images, F folds, N patches, K kept
of them, D encoder width, P pixels of a patch, Q prototypes.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import Count, Positive, Range, Share
from ..errors import Refused
from ..nn.decoder import Decoder
from ..nn.losses import entropy, mean_over_ranks, soft_cross_entropy
from ..nn.masking import fold_masks, normalise_patches, patchify
from ..nn.momentum import Teacher
from ..nn.prototypes import Centre, TokenPrototypeHead, class_token, temperature_at
from .base import Batch, Encoder, Loss, Method, Step, Training, View, register


@dataclass(frozen=True, kw_only=True)
class Config:
    mask_ratio: Annotated[float, Range(0.05, 0.95)] = 0.75  # share of patches hidden
    folds: Count = 4  # disjoint visible sets of each image in a step; the encoder's work grows with them
    target: Literal["tokens", "pixels"] = "tokens"  # of the reconstruction; "pixels": each patch normalised, as in MAE
    decoder_width: Count | None = None  # None: 512, or 64 less than the encoder's width below 384
    decoder_depth: Count | None = None  # None: 8, or 2 for encoders narrower than 384
    prototypes: Count = 8192
    hidden: Count = 2048  # width of the head
    bottleneck: Count = 256
    student_temperature: Annotated[float, Range(0.001, 1)] = 0.1
    teacher_temperature: Annotated[float, Range(0.001, 1)] = 0.04  # at the start
    final_teacher_temperature: Annotated[float, Range(0.001, 1)] = 0.07
    temperature_warmup: Share = 0.04  # share of the budget over which it rises
    labelling_momentum: Share = 0.996  # of the teacher that labels, at the start; 1 at the end
    reconstruction_momentum: Share = 0.9996  # of the teacher whose tokens are predicted, at the start; 1 at the end
    centre_momentum: Share = 0.9
    freeze_prototypes: Share = 0.00125  # share of the budget in which both sets keep their start
    class_weight: Positive = 1.0
    data_weight: Positive = 1.0
    scale: tuple[float, float] = (0.2, 1.0)  # area of the crop


@register("pseudo_mae", config=Config, pool="mean", positions="fixed", init="xavier", needs_tokens=True,
          training=Training(learning_rate=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, warmup=0.05,
                            final_learning_rate=0.0, batch_size=4096),
          small={"method": {"folds": 1, "prototypes": 1024, "hidden": 512, "labelling_momentum": 0.95,
                            "reconstruction_momentum": 0.99, "freeze_prototypes": 0.05},
                 "training": {"learning_rate": 2e-3, "batch_size": 128}})
class PseudoMAE(Method):
    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        if config.target == "tokens" and config.labelling_momentum == config.reconstruction_momentum:
            raise Refused(f"method.labelling_momentum and method.reconstruction_momentum are both {config.labelling_momentum}, "
                          "which makes the two teachers one; the second is meant to be slower, such as 0.9996 to 0.996.")
        self.views = [View(size=encoder.image_size, scale=config.scale, flip=0.5)]
        output = encoder.dim if config.target == "tokens" else encoder.patch**2 * encoder.channels
        self.decoder = Decoder(encoder, output, width=config.decoder_width, depth=config.decoder_depth)
        self.head = TokenPrototypeHead(encoder.dim, config.prototypes, hidden=config.hidden, bottleneck=config.bottleneck)
        self.labeller = Teacher({"encoder": encoder, "head": self.head}, start=config.labelling_momentum)
        self.reconstructor = (Teacher({"encoder": encoder}, start=config.reconstruction_momentum)
                              if config.target == "tokens" else None)
        self.class_centre = Centre(config.prototypes, config.centre_momentum)
        self.data_centre = Centre(config.prototypes, config.centre_momentum)

    def forward(self, batch: Batch, step: Step) -> Loss:
        config = self.config
        (images,) = batch.images  # (B, C, H, W)
        target = self.targets(images)  # (B, N, D or P)
        ratio = config.mask_ratio if step.mask_ratio is None else step.mask_ratio
        masks = fold_masks(step.random("mask", target.shape[:2]), ratio, config.folds)
        keep, gone = torch.cat([m.keep for m in masks]), torch.cat([m.gone for m in masks])  # (F B, K), (F B, N - K)
        with torch.no_grad():  # the labels of an image are paid for once and serve all folds
            whole = self.labeller["encoder"].tokens(images)
            teacher_class = self.labeller["head"].classes(class_token(whole)).repeat(config.folds, 1)  # (F B, Q)
            teacher_data = self.labeller["head"].data(pick(whole.patches, keep))  # (F B, K, Q), in the student's order
        tokens = self.encoder.tokens(images.repeat(config.folds, 1, 1, 1), keep=keep)
        prediction = self.decoder(tokens, keep, gone, self.encoder.grid(*images.shape[-2:]))  # (F B, N - K, D or P)
        student_class = self.head.classes(class_token(tokens)).float() / config.student_temperature  # (F B, Q)
        student_data = self.head.data(tokens.patches).float() / config.student_temperature  # (F B, K, Q)

        temperature = temperature_at(step.progress, config.teacher_temperature, config.final_teacher_temperature,
                                     config.temperature_warmup)
        class_labels = self.class_centre.assign(teacher_class, temperature)
        data_labels = self.data_centre.assign(teacher_data, temperature)
        reconstruction = mean_over_ranks((prediction.float() - pick(target, gone)).square().mean(-1))
        class_loss = mean_over_ranks(soft_cross_entropy(student_class, class_labels))
        data_loss = mean_over_ranks(soft_cross_entropy(student_data, data_labels))
        self.class_centre.follow(teacher_class)
        self.data_centre.follow(teacher_data)
        loss = reconstruction + config.class_weight * class_loss + config.data_weight * data_loss
        return Loss(loss, {"reconstruction": reconstruction.detach(), "class": class_loss.detach(), "data": data_loss.detach(),
                           "target_variance": target.flatten(0, 1).var(0).mean(),  # 0: the tokens to predict are all alike
                           "assignment_entropy": entropy(class_labels).mean(), "mean_entropy": entropy(class_labels.mean(0)),
                           "data_entropy": entropy(data_labels).mean(), "data_mean_entropy": entropy(data_labels.mean((0, 1)))})

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """What is predicted for each patch: (B, N, D) tokens of zero mean and unit variance, or (B, N, P) pixels."""
        if self.reconstructor is None:
            return normalise_patches(patchify(images, self.encoder.patch))
        patches = self.reconstructor["encoder"].tokens(images).patches.float()
        return F.layer_norm(patches, patches.shape[-1:])  # without gain: a constant target would be a way to collapse

    def assignments(self, images: Tensor) -> Tensor:
        whole = self.labeller["encoder"].tokens(images)
        return self.labeller["head"].classes(class_token(whole)) - self.class_centre.value

    def before_update(self, step: Step) -> None:
        if step.progress < self.config.freeze_prototypes:
            self.head.class_prototypes.weight.grad = self.head.data_prototypes.weight.grad = None

    def after_step(self, step: Step) -> None:
        self.labeller.follow({"encoder": self.encoder, "head": self.head}, step.progress)
        if self.reconstructor is not None:
            self.reconstructor.follow({"encoder": self.encoder}, step.progress)

    def degenerate(self) -> dict[str, float]:
        q = self.config.prototypes
        return {f"class: ln {q}: the labels of images are uniform": math.log(q),
                f"data: ln {q}: the labels of tokens are uniform": math.log(q),
                "class: 0: every image goes to one prototype": 0.0, "data: 0: every token goes to one prototype": 0.0,
                "target_variance: 0: the tokens to predict are all alike": 0.0}


def pick(x: Tensor, places: Tensor) -> Tensor:
    """(F B, K, D): of (B, N, D), the patches that ``places`` (F B, K) names for each fold of each image."""
    folds = len(places) // len(x)
    return x.repeat(folds, 1, 1).gather(1, places[:, :, None].expand(-1, -1, x.shape[-1]))
