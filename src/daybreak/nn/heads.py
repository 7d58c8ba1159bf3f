"""Heads on top of an encoder: perceptrons, batch normalisation over all ranks, pixel reconstruction.

B samples, D width, N tokens, C channels.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import Refused, nearest
from .losses import number, sum_over_ranks, world_size


class BatchNorm(nn.Module):
    """Batch normalisation of (B, D) over all ranks, on any device, in fp32.

    torch's SyncBatchNorm refuses the CPU. Evaluation uses running statistics.

    Args:
        dim: width D.
        scale, shift: whether it has a learned gain and offset.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, *, scale: bool = True, shift: bool = True, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(dim)) if scale else None
        self.bias = nn.Parameter(torch.zeros(dim)) if shift else None
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if world_size() == 1 or not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum,
                                self.eps)
        count = sum_over_ranks(number(len(x), x))
        mean = sum_over_ranks(x.sum(0)) / count
        var = sum_over_ranks((x - mean).square().sum(0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1).clamp(min=1), self.momentum)
        x = (x - mean) * (var + self.eps).rsqrt()
        if self.weight is not None:
            x = x * self.weight
        return x if self.bias is None else x + self.bias


def initialise_linear(module: nn.Module, std: float = 0.02) -> None:
    """Truncated normal weights and zero biases, for ``module.apply``: the ViT family's start."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def contrast_head(dim: int, hidden: int, output: int) -> nn.Sequential:
    """(B, dim) to (B, output): three linear layers, each with batch normalisation, the last one's without gain (SiT)."""
    head = nn.Sequential(
        nn.Linear(dim, hidden), BatchNorm(hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), BatchNorm(hidden), nn.GELU(),
        nn.Linear(hidden, output), BatchNorm(output, scale=False, shift=False),
    )
    return head.apply(initialise_linear)


class Reconstruction(nn.Module):
    """Pixels from tokens: ``layers`` of [Linear, GELU], then one transposed convolution a patch (SiT, GMML, MC-SSL)."""

    def __init__(self, dim: int, channels: int, patch: int, *, layers: int = 3):
        super().__init__()
        self.mlp = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(dim, dim), nn.GELU())))
        self.paint = nn.ConvTranspose2d(dim, channels, patch, stride=patch)
        self.apply(initialise_linear)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, D) patch tokens on a (rows, columns) grid to (B, C, rows * patch, columns * patch)."""
        x = self.mlp(patches).transpose(1, 2).unflatten(2, grid)  # (B, D, h, w)
        return self.paint(x)


class ClassHead(nn.Module):
    """A linear layer from the pooled vector to a logit for each of C classes or labels, which it knows by name.

    Args:
        layer: from (B, D) to (B, C).
        kind: "class", one class an image, or "multi", several labels.
        said: where it comes from, in words.
    """

    def __init__(self, layer: nn.Linear, classes: Sequence[str], kind: Literal["class", "multi"], said: str):
        super().__init__()
        self.layer, self.classes, self.kind, self.said = layer, tuple(map(str, classes)), kind, said

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, C) logits of pooled vectors (B, D)."""
        return self.layer(vectors)

    def chances(self, logits: Tensor) -> Tensor:
        """Probabilities (B, C) in [0, 1]; those of one class an image sum to 1."""
        return logits.softmax(1) if self.kind == "class" else logits.sigmoid()

    def place(self, name: str) -> int:
        """Position of a class.

        Raises:
            Refused: no such class.
        """
        if name not in self.classes:
            raise Refused(f"'{name}' is no class of the head ({self.said}); {nearest(name, list(self.classes))}")
        return self.classes.index(name)
