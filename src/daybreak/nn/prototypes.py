"""Soft assignment to learned prototypes, and the centring that keeps a teacher from collapsing.

B samples, D width, K prototypes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import Tokens
from .heads import initialise_linear
from .losses import number, sum_over_ranks


class Prototypes(nn.Module):
    """Cosines of normalised inputs with K prototypes: weight normalisation whose gain is fixed at 1."""

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) of any length to (..., K) in [-1, 1]."""
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


def perceptron(dim: int, hidden: int, bottleneck: int) -> nn.Sequential:
    """Three layers with GELU to a narrow bottleneck, without batch normalisation (DINO)."""
    layers = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
    return layers.apply(initialise_linear)


class PrototypeHead(nn.Module):
    """DINO's head: a perceptron, then prototypes; (..., D) to (..., K)."""

    def __init__(self, dim: int, count: int, *, hidden: int = 2048, bottleneck: int = 256):
        super().__init__()
        self.mlp = perceptron(dim, hidden, bottleneck)
        self.prototypes = Prototypes(bottleneck, count)

    def forward(self, x: Tensor) -> Tensor:
        return self.prototypes(self.mlp(x))


def class_token(tokens: Tokens) -> Tensor:
    """(B, D): the class token, or the mean of the patches where the encoder has none."""
    return tokens.prefix[:, 0] if tokens.prefix.shape[1] else tokens.patches.mean(1)


class TokenPrototypeHead(nn.Module):
    """One perceptron for class and data tokens, then prototypes of their own for each kind (MC-SSL)."""

    def __init__(self, dim: int, count: int, *, hidden: int = 2048, bottleneck: int = 256):
        super().__init__()
        self.mlp = perceptron(dim, hidden, bottleneck)
        self.class_prototypes = Prototypes(bottleneck, count)
        self.data_prototypes = Prototypes(bottleneck, count)

    def classes(self, tokens: Tensor) -> Tensor:
        """Class tokens (..., D) to logits (..., K)."""
        return self.class_prototypes(self.mlp(tokens))

    def data(self, tokens: Tensor) -> Tensor:
        """Data tokens (..., D) to logits (..., K)."""
        return self.data_prototypes(self.mlp(tokens))


def temperature_at(progress: float, start: float, end: float, warmup: float) -> float:
    """A temperature that goes from ``start`` to ``end`` in a straight line over the first ``warmup`` share of the budget."""
    warm = min(progress / warmup, 1.0) if warmup else 1.0
    return start + warm * (end - start)


class Centre(nn.Module):
    """A running mean of teacher logits, subtracted before the softmax."""

    value: Tensor  # (K,)

    def __init__(self, count: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(count))

    def assign(self, logits: Tensor, temperature: float) -> Tensor:
        """softmax((logits - centre) / temperature) in fp32, without gradient: (..., K)."""
        return F.softmax((logits.detach().float() - self.value) / temperature, dim=-1)

    @torch.no_grad()
    def follow(self, logits: Tensor) -> None:
        """Move towards the mean of (..., K) logits over all devices; after the loss has used the old centre."""
        flat = logits.detach().float().flatten(0, -2)
        count = sum_over_ranks(number(len(flat), flat))
        self.value.lerp_(sum_over_ranks(flat.sum(0)) / count, 1 - self.momentum)
