"""segment-v1: a linear classifier of single patches, its logits enlarged to the image; mean IoU.

After the linear segmentation head of DINOv2 (arXiv 2304.07193): one 1 x 1 convolution on standardised patch vectors of
the last block. Here vectors are computed once, from whole images, and trained as in linear-v1: thirteen learning rates
side by side, the best on a fixed tenth of the training images. A patch's target is the share of its known pixels that
each class has, so its loss is the mean cross-entropy over those pixels if a patch's logits hold for all of it; logits
are bilinear between patches in the test alone, where every known pixel of the image counts.

n images, C classes, h w rows and columns of patches, D width, R rates, S numbers.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..errors import Refused
from .bootstrap import errors_of
from .linear import RATES, few_threads, held_out, standardise_by, train_heads
from .metrics import Number
from .patches import PatchTask, coverage, enlarge, mean_of_known, ratio
from .tasks import few

if TYPE_CHECKING:
    from ..data.masks import Masks

KNOWN = 0.5  # share of a patch whose class is known, from which it is trained on


def segment_v1(task: PatchTask, seed: int = 0) -> tuple[list[Number], list[str]]:
    """IoU over the whole test set, of each class and their mean; pixel accuracy; Dice of each image; the bound of the grid.

    IoU of a class is TP / (TP + FP + FN) with pixels counted over all images; a class that neither masks nor predictions
    hold is left out of the mean. Dice is 2 TP / (2 TP + FP + FN), averaged over the classes of an image, then over images.
    The bound is the mean IoU of each patch's commonest class, enlarged as the logits are. Errors are over test images.

    Raises:
        Refused: fewer than two training images, no class in both sets, or no patch that is trained on.
    """
    (train, train_masks, test, test_masks), grid = task, task.grid
    if len(train) < 2:
        raise Refused(f"{len(train)} training image; 2 are needed, of which one chooses the learning rate.")
    missing = [str(value) for value in test_masks.values if value not in train_masks.values]
    if len(missing) == len(test_masks.values):
        raise Refused(f"no class of the test masks ({few(missing)}) is in the training masks "
                      f"({few(list(map(str, train_masks.values)))}); number the classes of both alike.")
    classes = tuple(sorted({*train_masks.values, *test_masks.values}))
    table, shares = by_patch(train), by_patch(patch_shares(train_masks, classes, grid))  # (n h w, D), (n h w, C)
    known = shares.sum(1) >= KNOWN
    shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-9)
    held = torch.from_numpy(held_out(len(train), train_masks.images.groups)).repeat_interleave(grid[0] * grid[1])
    fit, choose = known & ~held, known & held
    if not fit.any() or not choose.any():
        raise Refused(f"of the patches of the {len(train)} training images {int(fit.sum())} to train on and {int(choose.sum())} "
                      f"to choose by are known by half or more; give more images, or check the void values.")
    table, queries = standardise_by(table[known], table, by_patch(test))
    with few_threads(table.shape[1] * len(RATES) * len(classes)):
        heads = train_heads(table[fit], shares[fit].float(), len(classes), seed)
    weight, bias = best_head(*heads, table[choose], shares[choose])
    logits = (queries @ weight + bias).unflatten(0, (len(test), *grid)).movedim(3, 1)  # (n, C, h, w)
    truth = patch_shares(test_masks, classes, grid)
    best = one_hot(truth.argmax(1), len(classes)).movedim(3, 1) * (truth.sum(1, keepdim=True) > 0)
    counts, bound = (count(maps, test_masks, classes) for maps in (logits, best.float()))  # (n, 3, C) both
    notes = [f"{len(missing)} of {len(test_masks.values)} classes of the test masks are not in the training masks; their pixels "
             f"count as errors: {', '.join(missing)}."] if missing else []
    return numbers(counts, bound, classes, test_masks.images.groups, seed), notes


def by_patch(maps: Tensor) -> Tensor:
    """Maps (n, K, h, w) as rows (n h w, K)."""
    return maps.movedim(1, -1).flatten(0, 2)


def patch_shares(masks: "Masks", classes: tuple[int, ...], grid: tuple[int, int]) -> Tensor:
    """Share of each patch that is of each class, (n, C, h, w) float32; what is missing to 1 is void."""
    each = np.arange(len(classes))[:, None, None]
    return torch.stack([torch.from_numpy(coverage(masks.read(i, classes) == each, grid)).float() for i in range(len(masks))])


def best_head(weight: Tensor, bias: Tensor, vectors: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (D, C) and bias (C,) of the rate with the highest mean IoU over patches, the smallest if several have it.

    Args:
        weight, bias: of all R heads, as ``train_heads`` gives them.
        vectors: (M, D); shares (M, C), of which a patch counts for each class in part.
    """
    num_classes, scores = shares.shape[1], []
    for rate in range(len(RATES)):
        columns = slice(rate * num_classes, (rate + 1) * num_classes)
        guess = one_hot((vectors @ weight[:, columns] + bias[columns]).argmax(1), num_classes).to(shares.dtype)
        scores.append(mean_of_known(iou(torch.stack([(guess * shares).sum(0), guess.sum(0), shares.sum(0)]).numpy())))
    best = int(np.argmax(scores))
    columns = slice(best * num_classes, (best + 1) * num_classes)
    return weight[:, columns], bias[columns]


def count(maps: Tensor, masks: "Masks", classes: tuple[int, ...]) -> np.ndarray:
    """Known pixels of each image that are of a class in prediction and mask, in the prediction, in the mask: (n, 3, C).

    The prediction is the class with the highest of the enlarged maps (n, C, h, w), the first if several are.
    """
    found = []
    for i, small in enumerate(maps):
        truth = masks.read(i, classes)
        known = truth >= 0
        guess, truth = enlarge(small, truth.shape).argmax(0).numpy()[known], truth[known]
        found.append([np.bincount(values, minlength=len(classes)) for values in (truth[guess == truth], guess, truth)])
    return np.array(found, np.float64)


def iou(counts: np.ndarray) -> np.ndarray:
    """TP / (TP + FP + FN) of each class, (C,), of counts (3, C); NaN where a class is nowhere."""
    both, predicted, true = counts
    return ratio(both, predicted + true - both)


def numbers(counts: np.ndarray, bound: np.ndarray, classes: tuple[int, ...], groups: list[str] | None, seed: int) -> list[Number]:
    """The numbers of counts (n, 3, C) of the prediction and of its bound; those of classes that are nowhere are left out."""
    dice = np.array([mean_of_known(ratio(2 * both, predicted + true)) for both, predicted, true in counts])  # (n,)
    has = ~np.isnan(dice)  # an image may be void all over

    def measure(weights: np.ndarray) -> np.ndarray:
        total, most = np.tensordot(weights, counts, 1), np.tensordot(weights, bound, 1)  # (3, C) both
        each = iou(total)
        with np.errstate(invalid="ignore"):
            whole = [total[0].sum() / total[2].sum(), weights[has] @ dice[has] / weights[has].sum()]
        return np.array([mean_of_known(each), *whole, mean_of_known(iou(most)), *each])

    names = ["mIoU", "pixel accuracy", "Dice (mean over images)", "mIoU (bound of the grid)"]
    names += [f"IoU (class {value})" for value in classes]
    values = measure(np.ones(len(counts)))
    errors = errors_of(measure, (len(counts), groups), seed=seed)
    return [Number(name, float(value), error) for name, value, error in zip(names, values, errors, strict=True)
            if np.isfinite(value)]
