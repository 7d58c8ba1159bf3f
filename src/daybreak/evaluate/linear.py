"""linear-v1: softmax regression on frozen vectors, thirteen learning rates side by side.

The heads share each step's vectors, so that all of them cost one matrix product. After DINOv2's linear
evaluation (arXiv 2304.07193), whose grid of rates has the same steps; here vectors are standardised, so rates
are larger, and one tenth of the training set, not the test set, chooses among them.

N training vectors, n queries, D width, C classes, R rates.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..data.philox import permutation
from .metrics import Scores, score

RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
BATCH = 512
STEPS = 1000  # or
EPOCHS = 10  # passes over the training set, whichever is more
MOMENTUM = 0.9
HELD_OUT = 0.1
ONE_THREAD = 100_000  # weights


def linear_v1(train: Tensor, train_labels: Tensor, queries: Tensor, query_labels: Tensor, num_classes: int, *,
              seed: int = 0, groups: list[str] | None = None) -> Scores:
    """Train a linear classifier and apply it to queries.

    Vectors are standardised by the training set. Heads start at zero and are trained on nine tenths of it by
    SGD with momentum, the rate falling to 0 by a cosine; the one that is best on the last tenth (the smallest
    rate, if several are) is applied to the queries.

    Args:
        train: (N, D), N at least 2; its labels (N,) int64 in [0, num_classes).
        queries: (n, D); labels (n,) int64 in [0, num_classes).
        seed: of the order of the training vectors. The tenth that is held out is always the same.
        groups: of the training vectors; none stands on both sides of the held-out tenth.
    """
    train, queries = standardise_by(train, train, queries)
    held = torch.from_numpy(held_out(len(train), groups))
    with few_threads(train.shape[1] * len(RATES) * num_classes):
        weight, bias = train_heads(train[~held], train_labels[~held], num_classes, seed)
    guess = (train[held] @ weight + bias).view(-1, len(RATES), num_classes).argmax(2)  # (H, R)
    best = int((guess == train_labels[held, None]).float().mean(0).argmax())
    chosen = slice(best * num_classes, (best + 1) * num_classes)
    logits = queries @ weight[:, chosen] + bias[chosen]  # (n, C)
    return score(logits.softmax(1), query_labels, learning_rate=RATES[best])


def train_heads(train: Tensor, labels: Tensor, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights (D, R * C) and biases (R * C,) of all heads after training; what diverged is set to 0.

    ``labels`` (N,) int64 are classes, (N, C) float32 shares of them whose rows sum to 1.
    """
    width = len(RATES) * num_classes
    weight, bias = train.new_zeros(train.shape[1], width), train.new_zeros(width)
    weight_speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    rates = train.new_tensor(RATES).repeat_interleave(num_classes)  # (R * C,)
    target = (torch.nn.functional.one_hot(labels, num_classes) if labels.ndim == 1 else labels).to(train.dtype)  # (N, C)
    batch = min(BATCH, len(train))
    steps = max(STEPS, EPOCHS * len(train) // batch)
    order = np.empty(0, dtype=np.int64)
    for step in range(steps):
        if len(order) < batch:
            order = permutation(seed, step, len(train))
        rows, order = torch.from_numpy(order[:batch]), order[batch:]
        x = train[rows]  # (B, D)
        # The gradient of the cross-entropy by the logits, all heads at once: softmax less the target.
        logits = torch.addmm(bias, x, weight).view(batch, len(RATES), num_classes)
        slope = (logits - logits.amax(2, keepdim=True)).exp_()  # faster than softmax over a few classes
        slope.div_(slope.sum(2, keepdim=True)).sub_(target[rows, None]).div_(batch)
        rate = rates * 0.5 * (1 + math.cos(math.pi * step / steps))
        weight_speed.mul_(MOMENTUM).addmm_(x.T, slope.flatten(1))
        bias_speed.mul_(MOMENTUM).add_(slope.flatten(1).sum(0))
        weight.addcmul_(weight_speed, rate, value=-1)
        bias.addcmul_(bias_speed, rate, value=-1)
    return weight.nan_to_num_(0, 0, 0), bias.nan_to_num_(0, 0, 0)


@contextmanager
def few_threads(num_weights: int) -> Iterator[None]:
    """One thread for a small problem: its steps are so short that threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if num_weights < ONE_THREAD else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def held_out(count: int, groups: list[str] | None = None) -> np.ndarray:
    """Which of ``count`` vectors choose the rate: a fixed tenth, (count,) bool, at least one in and one out.

    With groups, whole groups are taken until a tenth is reached; a single group is divided all the same.
    """
    whose = np.arange(count) if groups is None or len(set(groups)) < 2 else np.array(groups)
    group = np.unique(whose, return_inverse=True)[1]
    sizes = np.bincount(group)
    order = permutation(0, 0, len(sizes))
    enough = np.searchsorted(np.cumsum(sizes[order]), HELD_OUT * count) + 1
    taken = np.zeros(len(sizes), dtype=bool)
    taken[order[: min(enough, len(sizes) - 1)]] = True
    return taken[group]


def standardise_by(reference: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
    """Give each dimension the reference's mean 0 and deviation 1; a constant one becomes 0 or close to it."""
    shift, scale = standards(reference)
    return tuple((table.float() - shift) / scale for table in tables)


def standards(reference: Tensor) -> tuple[Tensor, Tensor]:
    """What is taken off each dimension of vectors (N, D), and what it is divided by, (D,) each; never 0."""
    deviation, mean = torch.std_mean(reference.double(), dim=0, correction=0)
    return mean.float(), (deviation + 1e-6 * (1 + mean.abs())).float()
