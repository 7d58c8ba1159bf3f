"""The latent code of an image: a normal distribution of each of a few dimensions, read from an encoder's feature.

B images, D encoder width, d dimensions of the code, C channels.
"""

import torch
from torch import Tensor, nn

from .encoder import Encoder
from .losses import fp32


class Latent(nn.Module):
    """Features (B, D) to mean and log-variance, (B, d) each, float32 whatever the precision of the run."""

    def __init__(self, dim: int, size: int):
        super().__init__()
        self.size = size
        self.linear = nn.Linear(dim, 2 * size)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            mean, logvar = self.linear(features.float()).chunk(2, -1)
        return mean, logvar


class Means(nn.Module):
    """An encoder and its latent code as what evaluation takes: ``pooled`` gives the mean (B, d) of images (B, C, H, W)."""

    def __init__(self, encoder: Encoder, latent: Latent):
        super().__init__()
        self.encoder, self.latent = encoder, latent

    def pooled(self, images: Tensor) -> Tensor:
        return self.latent(self.encoder.pooled(images))[0]


@fp32
def kl_to_prior(mean: Tensor, logvar: Tensor) -> Tensor:
    """Kullback-Leibler divergence in nats of N(mean, exp(logvar)) from N(0, 1), element by element."""
    return 0.5 * (mean.square() + logvar.exp() - logvar - 1)
