"""Equations that methods share, right on one process and on many.

B anchors of this rank, M anchors of all ranks, K classes or prototypes, D width. Every function computes in
fp32 whatever the precision of the run, and returns this rank's share so that the mean of the gradients over
ranks (what DDP computes) is the gradient of the loss on the joined batch.
"""

import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def fp32(function: Callable) -> Callable:
    """Run with autocast off and floating tensors in fp32: a softmax of cosines over a small temperature needs it."""

    @functools.wraps(function)
    def inner(*args, **kwargs):
        device = next(a for a in args if isinstance(a, Tensor)).device.type
        with torch.autocast(device, enabled=False):
            return function(*(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args), **kwargs)

    return inner


class _Gather(torch.autograd.Function):
    """Concatenate over ranks, in rank order; the backward pass sums over ranks and returns one's own rows."""

    @staticmethod
    def forward(ctx, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = x.new_zeros((max(sizes), *x.shape[1:]))
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        start = sum(ctx.sizes[: rank()])
        return gradient[start : start + ctx.sizes[rank()]], None


class _Sum(torch.autograd.Function):
    """Sum over ranks; so is its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def sizes_over_ranks(x: Tensor) -> list[int]:
    """Number of rows of ``x`` on each rank."""
    if world_size() == 1:
        return [len(x)]
    mine = torch.tensor([len(x)], device=x.device)
    all_sizes = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(all_sizes, mine)
    return [int(s) for s in all_sizes]


def number(value: float, like: Tensor) -> Tensor:
    """A 0-d fp32 tensor on the device of ``like``, made there: a copy from the host would wait for the device."""
    return torch.full((), float(value), device=like.device)


def gather(x: Tensor) -> Tensor:
    """(B, ...) of every rank, joined in rank order to (M, ...); gradients flow back to every rank."""
    return x if world_size() == 1 else _Gather.apply(x.contiguous(), sizes_over_ranks(x))


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of ``x`` over ranks, with gradient."""
    return x if world_size() == 1 else _Sum.apply(x)


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of (B,) values over all ranks' items, as this rank's share: the average over ranks is the joined mean."""
    count = sum_over_ranks(number(values.numel(), values))
    return values.sum() * world_size() / count


@fp32
def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask`` (bool, broadcastable) is True; the count is summed over ranks."""
    mask = mask.expand_as(values)
    count = sum_over_ranks(mask.sum().float()).clamp(min=1)
    return (values * mask).sum() * world_size() / count


@fp32
def known_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of logits (B, L), mean over the labels (B, L) of 0 and 1 that are known, not NaN; ln 2 of logits 0."""
    errors = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return masked_mean(errors, ~labels.isnan())


@fp32
def nt_xent(one: Tensor, two: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss: each view picks its partner among all other views of all ranks.

    Args:
        one, two: (B, D) projections of the two views; normalised here.
        temperature: divides the cosines.

    Returns:
        Mean over the 2M anchors, as in the paper (its code gives twice that); ln(2M - 1) for uniform logits.
    """
    one, two = F.normalize(one, dim=-1), F.normalize(two, dim=-1)
    keys = torch.cat([gather(one), gather(two)])  # (2M, D)
    total = len(keys) // 2
    start = sum(sizes_over_ranks(one)[: rank()])
    own = torch.arange(len(one), device=one.device) + start
    losses = []
    for anchors, self_index, partner in ((one, own, own + total), (two, own + total, own)):
        logits = anchors @ keys.T / temperature  # (B, 2M)
        logits = logits.scatter(1, self_index[:, None], float("-inf"))
        losses.append(F.cross_entropy(logits, partner, reduction="none"))
    return mean_over_ranks(torch.cat(losses))


@fp32
def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of (B, D) queries against the (M, D) keys of all ranks, the own key being right.

    Both are normalised here. ln M for uniform logits.
    """
    queries, keys = F.normalize(queries, dim=-1), gather(F.normalize(keys, dim=-1))
    own = torch.arange(len(queries), device=queries.device) + sum(sizes_over_ranks(queries)[: rank()])
    return mean_over_ranks(F.cross_entropy(queries @ keys.T / temperature, own, reduction="none"))


def cross_contrast(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Each view's student (2B, D) picks the teacher's other view among all; the sum of both, times 2 tau (MoCo v3, SiT)."""
    (s1, s2), (t1, t2) = student.chunk(2), teacher.chunk(2)
    return 2 * temperature * (info_nce(s1, t2, temperature) + info_nce(s2, t1, temperature))


@fp32
def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_k targets log softmax(logits) for (..., K) logits and distributions: shape (...)."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(-1)


def cross_views(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """Mean over the pairs of a teacher view and another student view of the mean of -sum P log p (DINO).

    Args:
        student: V logits (B, K), already divided by their temperature; the teacher's views come first.
        teacher: 2 distributions (B, K).
    """
    pairs = [soft_cross_entropy(s, t) for i, t in enumerate(teacher) for v, s in enumerate(student) if v != i]
    return torch.stack([mean_over_ranks(p) for p in pairs]).mean()


@fp32
def entropy(distribution: Tensor) -> Tensor:
    """Entropy in nats of (..., K) distributions: shape (...)."""
    return torch.special.entr(distribution).sum(-1)
