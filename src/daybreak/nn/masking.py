"""Which parts of an image are hidden, and what is put there. True means hidden, everywhere.

B images, N patches, K kept patches, R candidate rectangles, C channels, H and W pixels.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.philox import Random
from ..errors import Refused

Fill = Literal["zeros", "noise", "noise-zeros"]


class PatchMask(NamedTuple):
    """Random hiding of whole patches."""

    keep: Tensor  # (B, K) int64: the visible patches, in ascending order of their noise
    gone: Tensor  # (B, N - K) int64: the hidden ones, in the same order
    hidden: Tensor  # (B, N) bool


def random_mask(noise: Tensor, ratio: float) -> PatchMask:
    """Keep the ``int(N (1 - ratio))`` patches of smallest noise (at least one); noise is (B, N) in [0, 1)."""
    return fold_masks(noise, ratio, 1)[0]


def fold_masks(noise: Tensor, ratio: float, folds: int) -> list[PatchMask]:
    """Masks whose visible patches are disjoint: one order of the patches, cut into runs of ``int(N (1 - ratio))``.

    The first is that of ``random_mask``. ``noise`` is (B, N) in [0, 1).

    Raises:
        Refused: the folds together would keep more patches than there are.
    """
    num_patches = noise.shape[1]
    kept = max(1, int(num_patches * (1 - ratio)))
    if folds * kept > num_patches:
        raise Refused(f"{folds} folds of {kept} visible patches are more than the {num_patches} patches of an image; hide more "
                      f"of them, or use at most {num_patches // kept} folds.")
    order, everything = noise.argsort(dim=1), torch.ones_like(noise, dtype=torch.bool)
    masks = []
    for start in range(0, folds * kept, kept):
        keep = order[:, start : start + kept]
        gone = torch.cat([order[:, :start], order[:, start + kept :]], dim=1)
        masks.append(PatchMask(keep, gone, everything.scatter(1, keep, False)))
    return masks


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) to (B, N, patch * patch * C), rows first, channels last inside a patch, as MAE lays it out."""
    batch, channels, height, width = images.shape
    x = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of ``patchify`` for a grid of (rows, columns) patches."""
    batch, (rows, columns) = len(patches), grid
    x = patches.reshape(batch, rows, columns, patch, patch, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch, columns * patch)


def normalise_patches(patches: Tensor) -> Tensor:
    """(B, N, P) patches, each to zero mean and unit variance (over P - 1), as MAE's targets are."""
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def num_candidates(share: float) -> int:
    """Rectangles to draw so that their union all but surely covers ``share`` of the pixels.

    A rectangle covers at least 0.0175 of the image on average, its cut at the border counted, so about
    ln(1 / (1 - share)) / 0.0175 of them reach the quota; twice the reference's spread comes on top.
    """
    return 16 + math.ceil(1.8 * math.log(1 / (1 - share)) / 0.0175)


def block_mask(random: Random, name: str, height: int, width: int, share: float, *, align: int = 1) -> Tensor:
    """GMML's block sampler: rectangles at random until a share of the pixels is covered.

    Each image has its own quota, U(min(0.5, share), share) of its pixels. A rectangle has its corner anywhere
    (upper bounds exclusive, as in the reference), sides from ``align`` to 0.3 of the image, and is cut at the
    border; the last one may overshoot; overlaps count once. Corners and sides are multiples of ``align``.
    Drawn for all images at once: a fixed number of candidates, cut where their union reaches the quota.

    Args:
        share: largest share of pixels, in (0, 0.9].
        align: pixels; 1 is the reference's default, the patch size hides whole tokens.

    Returns:
        (B, H, W) bool.

    Source: shared sampler of GMML, SiT and MC-SSL (arXiv 2205.14986).
    """
    batch, device, candidates = len(random.index), random.index.device, num_candidates(share)
    draws = random(name, (batch, 4 * candidates + 1))
    quota = (min(0.5, share) + draws[:, 0] * (share - min(0.5, share))) * (height * width)  # (B,)
    top, left, rows, columns = draws[:, 1:].reshape(batch, 4, candidates).unbind(1)  # (B, R) each

    def place(draw: Tensor, extent: int) -> Tensor:
        return (draw * max(extent - align, 1)).floor().div(align, rounding_mode="floor") * align

    def side(draw: Tensor, extent: int) -> Tensor:
        largest = max(int(0.3 * extent), align + 1)  # small images: the upper bound must stay above the lower
        return (align + (draw * (largest - align)).floor()).div(align, rounding_mode="floor") * align

    top, left = place(top, height), place(left, width)
    bottom, right = top + side(rows, height), left + side(columns, width)
    first = (first_by_slices if device.type == "cpu" else first_by_masks)(top, bottom, left, right, height, width)
    counts = torch.zeros(batch, candidates + 1, device=device)
    counts.scatter_add_(1, first.flatten(1).long(), torch.ones(1, device=device).expand(batch, height * width))
    covered = counts[:, :candidates].cumsum(1)  # (B, R): pixels under the first r + 1 rectangles
    last = (covered < quota[:, None]).sum(1)  # the first rectangle that reaches the quota
    return first <= last[:, None, None]


def first_by_masks(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, height: int, width: int) -> Tensor:
    """Number of the first rectangle over each pixel, R where there is none: (B, H, W) int16.

    Args:
        top, bottom, left, right: (B, R), whole numbers of pixels; the last row and column are not in the rectangle, and may
            lie beyond the image.
    """
    (batch, candidates), device = top.shape, top.device
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    first = torch.full((batch, height, width), candidates, dtype=torch.int16, device=device)
    for r in reversed(range(candidates)):  # the earliest rectangle over a pixel is painted last
        in_rows = (y >= top[:, r, None]) & (y < bottom[:, r, None])  # (B, H)
        in_columns = (x >= left[:, r, None]) & (x < right[:, r, None])  # (B, W)
        first.masked_fill_(in_rows[:, :, None] & in_columns[:, None, :], r)
    return first


def first_by_slices(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, height: int, width: int) -> Tensor:
    """As ``first_by_masks``, image by image: on a CPU a rectangle costs its own pixels there, not all of them."""
    batch, candidates = top.shape
    first = np.full((batch, height, width), candidates, np.int16)
    corners = torch.stack([top, bottom, left, right], -1).long().tolist()  # B x R x 4
    for image, rectangles in zip(first, corners, strict=True):
        for r in range(candidates - 1, -1, -1):
            a, b, c, d = rectangles[r]
            image[a:b, c:d] = r
    return torch.from_numpy(first)


def partners(random: Random, name: str, cell: int = 16) -> Tensor:
    """(B,) indices of a random other sample of the same cell of the batch (it may be the sample itself).

    Cells of fixed size never straddle ranks, so the draw is the same for any number of them.
    """
    batch = len(random.index)
    here = torch.arange(batch, device=random.index.device)
    start = here // cell * cell
    length = (batch - start).clamp(max=cell)
    return start + (random(name, (batch, 1))[:, 0] * length).long()


class Corrupted(NamedTuple):
    images: Tensor  # (B, C, H, W)
    hidden: Tensor  # (B, 1, H, W) bool


def corrupt(images: Tensor, random: Random, name: str, *, drop: float, alien: float, alien_probability: float,
            align: int = 1, fill: Fill = "zeros") -> Corrupted:
    """Group-masked corruption of normalised images: blocks dropped, or blocks of another image, never both.

    Args:
        drop: largest share of pixels dropped.
        alien: largest share of pixels taken from the same place of another image of the batch.
        alien_probability: share of images that get alien blocks instead of dropped ones.
        fill: what stands in dropped blocks: "zeros", the mean colour of the data, since images come normalised;
            "noise", standard normal for each pixel and channel; "noise-zeros", either of them for a whole image.
    """
    batch, _, height, width = images.shape
    zeroed = block_mask(random, f"{name}/drop", height, width, drop, align=align)
    replaced = block_mask(random, f"{name}/alien", height, width, alien, align=align)
    is_alien = random(f"{name}/which", (batch, 1))[:, :, None] < alien_probability  # (B, 1, 1)
    hidden = torch.where(is_alien, replaced, zeroed)[:, None]  # (B, 1, H, W)
    other = images[partners(random, f"{name}/partner")] * is_alien[:, None]
    if fill != "zeros":
        noise = random.normal(f"{name}/noise", tuple(images.shape)).to(images.dtype)
        if fill == "noise-zeros":
            noise = noise * (random(f"{name}/fill", (batch, 1))[:, :, None, None] < 0.5)
        other = torch.where(is_alien[:, None], other, noise)
    return Corrupted(torch.where(hidden, other, images), hidden)


def corrupt_views(views: list[Tensor], random: Random, **settings: Any) -> Corrupted:
    """``corrupt`` with the same settings and other blocks for each view; the views are joined to (V B, ...)."""
    found = [corrupt(images, random, f"view{i}", **settings) for i, images in enumerate(views)]
    return Corrupted(torch.cat([f.images for f in found]), torch.cat([f.hidden for f in found]))
