"""DeVAE: a VAE whose code is read through ever narrower bottlenecks at once, so that its axes become the factors.

Wu, Mo, Zhang, Awais, Atito, Feng, Wang, Yang, "Variational autoencoder with decremental information bottleneck for
disentanglement", 2023, arXiv 2303.12959. Space 0, with the smallest beta, is the one that is kept: its mean is the code.
The others are reached from it by scaling each dimension by itself, share its decoder, and pull its axes straight.

Differs from the code: any encoder of ours may stand below the code (``conv_vae`` is the paper's); the encoder reads
normalised pixels, the decoder paints them in [0, 1]; the decoder follows the image size, of which 64 x 64 is the paper's.
Inferred: Glorot's start of the weights. K = 2 with betas 1 and 40 is what the authors name for dSprites; of other images
nothing is known, and betas weigh against a sum over pixels: a quarter of the pixels asks for a quarter of them.
B images, K spaces, d dimensions, C channels, H W height and width.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Count, Positive
from ..errors import Refused
from ..nn.conv_vae import initialise_glorot
from ..nn.latent import Latent, kl_to_prior
from ..nn.losses import fp32, mean_over_ranks
from .base import Batch, Encoder, Loss, Method, Picture, Step, Training, View, register

TRAVERSED = (-2, -1, 0, 1, 2)  # values that the picture gives a dimension; the prior's deviation is 1


@dataclass(frozen=True, kw_only=True)
class Config:
    betas: tuple[float, ...] = (1.0, 40.0)  # weight of the bottleneck of each space, rising; one alone is a beta-VAE
    latents: Count = 10  # dimensions of the code
    scale: Positive = 1.0  # weight of each space's loss relative to that of the one before
    reconstruction: Literal["bernoulli", "squared"] | None = None  # None: bernoulli for grey images, squared for colour


@register("devae", config=Config, pool="mean", exact_accumulation=True,
          training=Training(optimizer="adam", learning_rate=1e-4, learning_rate_rule="fixed", final_learning_rate=1e-4, warmup=0.0,
                            weight_decay=0.0, batch_size=256, precision="32-true"))
class DeVAE(Method):
    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        if not config.betas or list(config.betas) != sorted(config.betas) or config.betas[0] < 0:
            raise Refused(f"method.betas = {list(config.betas)}: expected rising weights from 0 up, such as [1, 40]; space 0, with "
                          "the first of them, is the one that is kept.")
        whole = View(size=encoder.image_size, flip=0.0, resize="centre")
        painted = View(size=encoder.image_size, flip=0.0, resize="centre", normalise=False, same_box_as=0)
        self.views = [whole, painted]
        size, narrower = config.latents, len(config.betas) - 1
        self.latent = Latent(encoder.dim, size)
        self.stretch = nn.ParameterList(torch.zeros(size) for _ in range(narrower))  # a_k: log of what the mean is multiplied by
        self.widen = nn.ParameterList(torch.zeros(size) for _ in range(narrower))  # b_k: added to the log-variance
        self.space = nn.Embedding(len(config.betas), size)  # v_k, standard normal: how noisy the code is that comes with it
        self.decoder = Decoder(2 * size, encoder.channels, encoder.image_size)
        self.kind = config.reconstruction or ("bernoulli" if encoder.channels == 1 else "squared")

    def forward(self, batch: Batch, step: Step) -> Loss:
        images, target = batch.images  # (B, C, H, W) normalised, and in [0, 1]
        mean, logvar = self.latent(self.encoder.pooled(images))  # (B, d) each, of space 0
        value = mean.new_zeros(())
        numbers = {"unused": (-kl_to_prior(mean, logvar).detach().mean(0)).exp().mean()}  # 1 where the posterior is the prior
        for k, beta in enumerate(self.config.betas):
            if k > 0:  # one dimension of a space is one of the next: axes can't mix, and the sign can't turn
                mean, logvar = mean * self.stretch[k - 1].exp(), logvar + self.widen[k - 1]
            noise = step.random.normal("code", tuple(mean.shape), view=k)
            logits = self.paint(mean + (logvar / 2).exp() * noise, k)  # (B, C, H, W)
            error = mean_over_ranks(pixel_error(logits, target, self.kind))  # R_k
            kl = mean_over_ranks(kl_to_prior(mean, logvar).sum(1))
            value = value + self.config.scale**k * (error + beta * kl)
            numbers |= {f"R_{k}": error.detach(), f"KL_{k}": kl.detach()}
        return Loss(value, numbers | {"pixel_error": numbers["R_0"] / target[0].numel()})

    def paint(self, code: Tensor, space: int) -> Tensor:
        """Logits (B, C, H, W) of a code (B, d) of one of the spaces."""
        return self.decoder(torch.cat([code, self.space.weight[space].expand_as(code)], 1))

    def degenerate(self) -> dict[str, float]:
        found = {"unused: 1: the code says nothing of the image, and all are painted as their mean": 1.0}
        if self.kind == "bernoulli":
            found["pixel_error: ln 2: every pixel is painted as an even chance"] = math.log(2)
        return found

    def picture(self, batch: Batch, step: Step) -> Picture:
        images, target = batch.images
        mean, logvar = self.latent(self.encoder.pooled(images))
        order = kl_to_prior(mean, logvar).mean(0).argsort(descending=True)  # (d,)
        moved = order[torch.arange(len(images), device=order.device) % len(order)][:, None]  # (B, 1)
        columns = [target, self.paint(mean, 0).sigmoid()]
        columns += [self.paint(mean.scatter(1, moved, float(value)), 0).sigmoid() for value in TRAVERSED]
        return Picture("The image, what its code is painted as, and the code with one dimension at -2 to 2: another dimension in "
                       "each row, the most informative first.", ["image", "painted", *(f"{value:+d}" for value in TRAVERSED)],
                       [list(row) for row in zip(*columns, strict=True)], normalised=False)


class Decoder(nn.Module):
    """(B, inputs) to logits (B, channels, H, W): a map of a 16th of the image, rounded up, doubled four times and cut to it."""

    def __init__(self, inputs: int, channels: int, size: tuple[int, int]):
        super().__init__()
        self.size = size
        first = (math.ceil(size[0] / 16), math.ceil(size[1] / 16))  # 4 x 4 of 64 pixels
        double = [nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in ((64, 64), (64, 32), (32, 32), (32, channels))]
        self.layers = nn.Sequential(
            nn.Linear(inputs, 256), nn.ReLU(), nn.Unflatten(1, (256, 1, 1)), nn.ConvTranspose2d(256, 64, first),
            *(part for layer in double for part in (nn.ReLU(), layer)))
        self.apply(initialise_glorot)

    def forward(self, code: Tensor) -> Tensor:
        return self.layers(code)[:, :, : self.size[0], : self.size[1]]


@fp32
def pixel_error(logits: Tensor, target: Tensor, kind: str) -> Tensor:
    """(B,) sum over the pixels of each image, of logits and targets in [0, 1], (B, C, H, W) each.

    Args:
        kind: "bernoulli", cross-entropy in nats, or "squared", the squared error of sigmoid(logits).

    Raises:
        Refused: images of another size than the decoder paints.
    """
    if logits.shape != target.shape:
        raise Refused(f"devae paints {logits.shape[2]} x {logits.shape[3]} pixels and was given {target.shape[2]} x "
                      f"{target.shape[3]}; its decoder has one size, so leave training.scheme = 'constant'.")
    if kind == "bernoulli":
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum((1, 2, 3))
    return (logits.sigmoid() - target).square().sum((1, 2, 3))
