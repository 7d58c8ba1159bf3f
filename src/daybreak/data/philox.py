"""Random numbers as a function of (seed, name, epoch, sample, view): no state, so no order of calls matters.

Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), in integer operations
that NumPy and torch both wrap modulo 2**64, so that the two, and every device, give the same bits.

B batch, J counter blocks of four 32-bit words.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and the square root of 3, less 1
ROUNDS = 10


def philox(key: tuple[int, int], counter: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Return four words in [0, 2**32) for each counter, by Philox4x32-10.

    ``key`` is two integers, ``counter`` four integers or int64 arrays (NumPy or torch) that broadcast, all in
    [0, 2**32); the words have the kind and the broadcast shape of the counter.
    """
    key0, key1 = key
    c0, c1, c2, c3 = counter
    for _ in range(ROUNDS):
        # A product that wraps in int64 keeps all its 64 bits; the mask undoes the sign that >> spreads.
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((product1 >> 32) & MASK) ^ (c1 ^ key0), product1 & MASK
        c2, c3 = ((product0 >> 32) & MASK) ^ (c3 ^ key1), product0 & MASK
        key0, key1 = (key0 + KEY_STEPS[0]) & MASK, (key1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def make_key(seed: int, name: str) -> tuple[int, int]:
    """Return the 64-bit key of a seed (any integer >= 0) and a name, as two words.

    Both are hashed together: seeds larger than 32 bits count in full, and 64 bits keep names apart that a
    32-bit hash would confuse.  ValueError for a negative seed.
    """
    if seed < 0:
        raise ValueError(f"the seed is {seed}; it must be 0 or more")
    digest = hashlib.blake2s(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def uniform(seed: int, name: str, epoch: int, index: Any, size: int, view: int = 0) -> Any:
    """Return float32 numbers in [0, 1), shape (B, size), of 24 random bits each.

    ``index`` (B,) int64 holds the samples' positions in the data set, as NumPy array or torch tensor; the
    result is of the same kind, on the same device.  A row depends on its own index only, not on the rest of
    the batch, and the first numbers of a row do not depend on ``size``.
    """
    num_blocks = -(-size // 4)
    is_tensor = isinstance(index, Tensor)
    block = torch.arange(num_blocks, device=index.device) if is_tensor else np.arange(num_blocks)
    words = philox(make_key(seed, name), (block[None, :], index[:, None] & MASK, epoch, view))  # 4 x (B, J)
    if is_tensor:
        return (torch.stack(words, -1).flatten(1)[:, :size] >> 8).to(torch.float32) * 2.0**-24
    stacked = np.stack(words, -1).reshape(len(index), -1)[:, :size]
    return (stacked >> 8).astype(np.float32) * np.float32(2.0**-24)


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return a random order of ``range(n)``, shape (n,) int64: that of 64 random bits each, sorted."""
    high, low, _, _ = philox(make_key(seed, "permutation"), (0, np.arange(n), epoch, 0))
    return np.argsort(high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64), kind="stable")


@dataclass  # not frozen: Fabric, which moves what a module is called with, can't rebuild frozen ones
class Random:
    """The random numbers of one batch: ``random(name, shape)`` is a function of seed, epoch, sample and name.

    ``index`` (B,) int64 holds the samples' positions in the data set.  Draws of one name, view and row length
    are the same each time; another name or view gives independent ones.
    """

    seed: int
    epoch: int
    index: Tensor

    def __call__(self, name: str, shape: tuple[int, ...], *, view: int = 0) -> Tensor:
        """Return uniform float32 numbers in [0, 1) on the index's device.

        ValueError unless ``shape[0]`` is the number of samples.
        """
        if not shape or shape[0] != len(self.index):
            raise ValueError(f"'{name}' has shape {tuple(shape)}; the batch has {len(self.index)} samples")
        size = math.prod(shape[1:])
        return uniform(self.seed, name, self.epoch, self.index, size, view).reshape(shape)

    def normal(self, name: str, shape: tuple[int, ...], *, view: int = 0) -> Tensor:
        """Return standard normal float32 numbers (Box and Muller 1958), as ``__call__`` does uniform ones.

        Logarithm and cosine differ between devices, so the numbers are equal to about 1e-6, not to the bit.
        """
        size = math.prod(shape[1:])
        half = -(-size // 2)
        radius_draw, angle_draw = self(name, (*shape[:1], 2 * half), view=view).split(half, 1)
        radius = (-2 * torch.log1p(-radius_draw)).sqrt()  # 1 - u is never 0, so the logarithm is finite
        angle = 2 * math.pi * angle_draw
        return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :size].reshape(shape)
