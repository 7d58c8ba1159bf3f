"""patch-prompt-v1: an object segmented by one of its patches, and how alike patches of one and of two objects are.

Nothing is trained. After the protocols named in the abstract of Wu et al. 2023 (MMC, arXiv 2308.11448), whose details
could not be read: all choices below are ours.

An object is a connected region (8 neighbours) of one value of the mask, at least as large as one patch.

- Prompt: the patch with the point farthest from the object's edge (the image's edge is one) among those it covers by half
  or more; or five such patches drawn at random. Of an object that covers none by half, the patch that it covers most.
- Segment: cosines of the prompt with all patches of its image, enlarged to pixels, of at least a threshold: that of a
  grid with which the training images (at most 100, evenly spaced) have the highest mean IoU over their objects.
- Alike: cosines of all pairs of patches that two objects (intra: one, inter: two of different values) cover by more than
  half. Two regions of one value are no pair, since the mask does not say whether they are one object. Every image with
  pairs of both kinds weighs the same.

Everything is measured twice, the second time ("less mean") with the mean over an image's patches subtracted first: in
features with a large common part all cosines are near 1.

O objects of an image, M of all, n images, N = h w patches, H W height and width in pixels, T thresholds, S numbers.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ..data.philox import uniform
from ..errors import Refused
from .bootstrap import errors_of
from .metrics import Number, Ranking
from .patches import PatchTask, coverage, enlarge, mean_of_known, patch_cosines

if TYPE_CHECKING:
    from ..data.masks import Masks

THRESHOLDS = tuple(round(-0.2 + 0.05 * k, 2) for k in range(24))  # to 0.95
DRAWS = 5  # random prompts an object
HALF = 0.5
BINS = 100  # of cosines in [-1, 1]
TUNING = 100  # training images that choose the threshold
SIZES = ((1.0, 4.0), (4.0, 16.0), (16.0, np.inf))  # in patches
ROUNDING = 6  # decimals of a cosine: what differs by less is equal
VARIANTS = {"": False, ", less mean": True}

Measure = Callable[[np.ndarray], list[float]]  # of weights (n,) of the images


class Objects(NamedTuple):
    """The objects of one image."""

    regions: np.ndarray  # (O, H, W) bool
    values: np.ndarray  # (O,) int64, positions in the values of the masks
    covers: np.ndarray  # (O, h, w) in [0, 1]: share of each patch
    centres: np.ndarray  # (O,) int64: the patch with the point farthest from the edge
    sizes: np.ndarray  # (O,) in patches
    known: np.ndarray  # (H, W) bool: not void
    num_small: int  # regions smaller than a patch


class Pairs(NamedTuple):
    """Cosines of an image's pairs of patches: moments (2, 2) mean and mean square, histogram (2, BINS), of intra and inter."""

    moments: np.ndarray
    histogram: np.ndarray  # each kind sums to 1
    auroc: float  # of a pair of one object scoring above one of two


def patch_prompt_v1(task: PatchTask, seed: int = 0) -> tuple[list[Number], list[str]]:
    """IoU of prompted segments, mean over objects, and the likeness of pairs, with errors over test images.

    mIoU: prompt at the centre, one threshold. Beside it: random prompts; the best threshold of each image, which looks at
    the answer and bounds what a threshold can do; the mean over all thresholds; the mean over the values of the mask of
    their mean; objects of three sizes; the bound of the grid, the object's own share of each patch cut at one half.
    Pairs: mean cosines; overlap, the sum over bins of the smaller of the two shares; AUROC, mean over images; d', the
    difference of the means over the root of the mean variance.

    Raises:
        Refused: no object as large as one patch on either side.
    """
    (train, train_masks, test, test_masks), grid = task, task.grid
    tuning = np.unique(np.linspace(0, len(train) - 1, min(TUNING, len(train))).astype(int))
    curves: dict[str, list[np.ndarray]] = {suffix: [] for suffix in VARIANTS}
    for i in tuning:
        found = find_objects(train_masks.read(i), grid)
        for suffix, less_mean in VARIANTS.items():
            curves[suffix].append(centre_curves(cosines(train[i], less_mean), found, grid))
    chosen = {suffix: best_threshold(np.concatenate(table), train_masks) for suffix, table in curves.items()}
    rows: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {suffix: [] for suffix in VARIANTS}
    pairs: dict[str, list[Pairs | None]] = {suffix: [] for suffix in VARIANTS}
    objects = []
    for i in range(len(test)):
        found = find_objects(test_masks.read(i), grid)
        draws = uniform(seed, "patch prompt", 0, np.array([i]), DRAWS * len(found.values)).reshape(-1, DRAWS)  # (O, DRAWS)
        for suffix, less_mean in VARIANTS.items():
            table = cosines(test[i], less_mean)
            drawn = random_ious(table, found, grid, draws, THRESHOLDS[chosen[suffix]])
            rows[suffix].append((centre_curves(table, found, grid), drawn))
            pairs[suffix].append(measure_pairs(table, found))
        objects.append((i, found.values, found.sizes, bounds(found), found.num_small))
    which = np.concatenate([np.full(len(values), i) for i, values, *_ in objects])
    if not len(which):
        raise Refused(no_object(test_masks))
    values, sizes, bound = (np.concatenate([row[k] for row in objects]) for k in (1, 2, 3))
    names = ["mIoU (bound of the grid)"]
    measures: list[Measure] = [lambda weights: [mean_by(weights[which], bound)]]
    numbers = []
    for suffix in VARIANTS:
        curve, drawn = (np.concatenate([row[k] for row in rows[suffix]]) for k in (0, 1))  # (M, T), (M,)
        for part, measure in (of_objects(which, values, sizes, curve, drawn, chosen[suffix]), of_pairs(pairs[suffix])):
            names += [name + suffix for name in part]
            measures.append(measure)
        numbers.append(Number(f"threshold{suffix}", THRESHOLDS[chosen[suffix]], None))
    return report(names, measures, numbers, len(test), test_masks.images.groups, seed, notes_on(objects, pairs[""]))


def find_objects(mask: np.ndarray, grid: tuple[int, int]) -> Objects:
    """The objects of a mask (H, W) int64 of positions of values, -1 void, on a grid of patches."""
    one = mask.size / (grid[0] * grid[1])  # pixels of a patch
    regions, values, num_small = [], [], 0
    for value in np.unique(mask[mask >= 0]):
        num, place = cv2.connectedComponents((mask == value).astype(np.uint8), connectivity=8)
        areas = np.bincount(place.ravel(), minlength=num)
        large = [k for k in range(1, num) if areas[k] >= one]
        regions += [place == k for k in large]
        values += [value] * len(large)
        num_small += num - 1 - len(large)
    held = np.stack(regions) if regions else np.zeros((0, *mask.shape), bool)
    covers = coverage(held, grid)
    centres = np.array([centre(region, cover) for region, cover in zip(held, covers, strict=True)], np.int64)
    return Objects(held, np.array(values, np.int64), covers, centres, held.sum((1, 2)) / one, mask >= 0, num_small)


def cosines(vectors: Tensor, less_mean: bool) -> Tensor:
    """Cosines (N, N) of the patches of one image (D, h, w), rounded."""
    return patch_cosines(vectors, less_mean=less_mean).round(decimals=ROUNDING)


def candidates(cover: np.ndarray) -> np.ndarray:
    """Patches that may be the prompt of an object with shares (h, w), in row-major order: half covered, or that covered most."""
    half = np.flatnonzero(cover >= HALF)
    return half if len(half) else np.array([cover.argmax()])


def centre(region: np.ndarray, cover: np.ndarray) -> int:
    """The candidate with the point of a region (H, W) bool that lies farthest from its edge."""
    depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    rows, columns = ((np.arange(side) + 0.5) * count // side for side, count in zip(region.shape, cover.shape, strict=True))
    patch = (rows[:, None] * cover.shape[1] + columns).astype(np.int64)  # (H, W): that of each pixel
    allowed = candidates(cover)
    return int(patch.ravel()[np.where(np.isin(patch, allowed), depth, -1).argmax()]) if len(allowed) > 1 else int(allowed[0])


def segment_ious(maps: Tensor, region: np.ndarray, known: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """IoU of a region (H, W) with the known pixels at which maps (K, h, w) are at least a threshold: (K, T), rising ones."""
    inside = torch.from_numpy(region[known])
    large = enlarge(maps, region.shape)[:, torch.from_numpy(known)]  # (K, known pixels)
    level = torch.bucketize(large, torch.tensor(thresholds, dtype=large.dtype), right=True)  # how many thresholds are reached

    def reached(levels: Tensor) -> Tensor:
        """Pixels that reach each threshold, (T,)."""
        return torch.bincount(levels, minlength=len(thresholds) + 1).double().flip(0).cumsum(0).flip(0)[1:]

    area, found = inside.sum(), []
    for one in level:
        taken, both = reached(one), reached(one[inside])
        found.append(both / (taken + area - both))
    return torch.stack(found).numpy()


def centre_curves(table: Tensor, objects: Objects, grid: tuple[int, int]) -> np.ndarray:
    """IoU of each object prompted at its centre, for each threshold, (O, T), from cosines (N, N)."""
    found = [segment_ious(table[prompt].view(1, *grid), region, objects.known, THRESHOLDS)
             for region, prompt in zip(objects.regions, objects.centres, strict=True)]
    return np.concatenate(found) if found else np.zeros((0, len(THRESHOLDS)))


def random_ious(table: Tensor, objects: Objects, grid: tuple[int, int], draws: np.ndarray, threshold: float) -> np.ndarray:
    """Mean IoU over random prompts of each object, (O,); ``draws`` (O, DRAWS) in [0, 1) say which candidates."""
    found = []
    for region, cover, drawn in zip(objects.regions, objects.covers, draws, strict=True):
        allowed = candidates(cover)
        prompts = torch.from_numpy(allowed[(drawn.astype(np.float64) * len(allowed)).astype(np.int64)])
        found.append(segment_ious(table[prompts].view(-1, *grid), region, objects.known, [threshold]).mean())
    return np.array(found)


def bounds(objects: Objects) -> np.ndarray:
    """IoU of each object with its own share of each patch, enlarged and cut at one half, (O,)."""
    return np.array([segment_ious(torch.from_numpy(cover[None]), region, objects.known, [HALF])[0, 0]
                     for region, cover in zip(objects.regions, objects.covers, strict=True)])


def best_threshold(curves: np.ndarray, masks: "Masks") -> int:
    """Position of the threshold with the highest mean IoU over objects, curves (M, T); the lowest if several have it."""
    if not len(curves):
        raise Refused(no_object(masks))
    return int(curves.mean(0).argmax())


def no_object(masks: "Masks") -> str:
    return (f"{masks.images.source.path}: no region of its masks is as large as one patch, so there is nothing to prompt; "
            "use a backbone with smaller patches or of larger images.")


def measure_pairs(table: Tensor, objects: Objects) -> Pairs | None:
    """What the pairs of an image's patches are like, from cosines (N, N); None if it lacks pairs of either kind."""
    owner = np.where((objects.covers > HALF).any(0), objects.covers.argmax(0), -1).ravel() if len(objects.values) else np.array([])
    rows = np.flatnonzero(owner >= 0)
    first, second = (rows[side] for side in np.triu_indices(len(rows), 1))
    if not len(first):
        return None
    same = owner[first] == owner[second]
    apart = objects.values[owner[first]] != objects.values[owner[second]]
    if not same.any() or not apart.any():
        return None
    score = table.numpy()[first, second]
    kinds = [score[same], score[apart]]
    moments = np.array([[kind.mean(), np.square(kind).mean()] for kind in kinds])
    histogram = np.array([np.histogram(kind, BINS, (-1, 1))[0] / len(kind) for kind in kinds])
    judged = same | apart
    return Pairs(moments, histogram, Ranking(score[judged], same[judged]).auc())


def mean_by(weights: np.ndarray, values: np.ndarray) -> float:
    """Weighted mean; NaN without weight."""
    return float(weights @ values / weights.sum()) if weights.any() else float("nan")


def of_objects(which: np.ndarray, values: np.ndarray, sizes: np.ndarray, curve: np.ndarray, drawn: np.ndarray,
               chosen: int) -> tuple[list[str], Measure]:
    """Names, and the function of weights (n,) of the images that gives the numbers of M objects.

    Args:
        which: the image of each object; values, sizes: (M,), as in ``Objects``.
        curve: IoU at each threshold (M, T), of which ``chosen`` counts; drawn: that of random prompts (M,).
    """
    at = curve[:, chosen]
    place = np.unique(which, return_inverse=True)[1]
    sums = np.zeros((place.max() + 1, curve.shape[1]))
    np.add.at(sums, place, curve)
    best = curve[np.arange(len(curve)), sums.argmax(1)[place]]  # the threshold that is best for the object's image
    value = np.unique(values, return_inverse=True)[1]
    inside = [(sizes >= low) & (sizes < high) for low, high in SIZES]

    def measure(weights: np.ndarray) -> list[float]:
        w = weights[which]
        by_value = [np.bincount(value, x) for x in (w * at, w)]
        classes = by_value[0][by_value[1] > 0] / by_value[1][by_value[1] > 0]
        return [mean_by(w, at), mean_by(w, drawn), mean_by(w, best), mean_by(w, curve.mean(1)), mean_of_known(classes),
                *(mean_by(w[some], at[some]) for some in inside)]

    spans = [f"{low:g} to {high:g} patches" if np.isfinite(high) else f"{low:g} patches and more" for low, high in SIZES]
    return ["mIoU", "mIoU (random prompts)", "mIoU (best threshold of each image)", "mIoU (mean over thresholds)",
            "mIoU (mean over classes)", *(f"mIoU ({span})" for span in spans)], measure


def of_pairs(found: list[Pairs | None]) -> tuple[list[str], Measure]:
    """Names, and the function of weights (n,) of the images that gives the numbers of their pairs."""
    which = np.array([i for i, pairs in enumerate(found) if pairs is not None], np.int64)
    if not len(which):
        return [], lambda weights: []
    moments, histograms, auroc = (np.stack([np.asarray(pairs[k]) for pairs in found if pairs is not None]) for k in range(3))

    def measure(weights: np.ndarray) -> list[float]:
        w = weights[which]
        if not w.any():
            return [float("nan")] * 5
        (intra, square), (inter, other) = np.tensordot(w, moments, 1) / w.sum()
        shares = np.tensordot(w, histograms, 1) / w.sum()  # (2, BINS)
        spread = (square - intra**2 + other - inter**2) / 2
        separation = (intra - inter) / spread**0.5 if spread > 10.0 ** (-2 * ROUNDING) else float("nan")
        return [intra, inter, shares.min(0).sum(), mean_by(w, auroc), separation]

    return ["intra-object cosine", "inter-object cosine", "overlap", "AUROC", "d'"], measure


def notes_on(objects: list, pairs: list[Pairs | None]) -> list[str]:
    """What was left out, as sentences."""
    small, large = sum(row[4] for row in objects), sum(len(row[1]) for row in objects)
    notes = [f"{small} of {small + large} regions of the test masks are smaller than a patch; left out."] if small else []
    if lacking := sum(pair is None for pair in pairs):
        notes.append(f"{lacking} of {len(pairs)} test images lack pairs of patches of one or of two objects; left out of both "
                     "cosines, overlap, AUROC and d'.")
    return notes


def report(names: list[str], measures: list[Measure], numbers: list[Number], count: int, groups: list[str] | None, seed: int,
           notes: list[str]) -> tuple[list[Number], list[str]]:
    """Numbers with their errors over ``count`` images; those that can't be are left out, which a sentence says."""
    def measure(weights: np.ndarray) -> np.ndarray:
        return np.array([value for part in measures for value in part(weights)])

    values, errors = measure(np.ones(count)), errors_of(measure, (count, groups), seed=seed)
    lost = [name for name, value in zip(names, values, strict=True) if not np.isfinite(value)]
    if lost:
        notes.append(f"{len(lost)} numbers are not defined here (no such objects, or no difference between cosines): "
                     f"{'; '.join(lost)}.")
    return [Number(name, float(value), error) for name, value, error in zip(names, values, errors, strict=True)
            if np.isfinite(value)] + numbers, notes
