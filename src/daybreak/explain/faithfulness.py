"""Does the feature, or what is read from it, depend on what a map marks? Insertion and deletion.

C channels, H W height and width in pixels, h w rows and columns of a map, N = h w cells, s steps.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from ..data.philox import uniform
from ..data.photometric import blur
from ..nn.encoder import Encoder

STEPS = 16
BLUR = 5.0  # deviation in pixels, over 11 x 11
RADIUS = 5


class Curve(NamedTuple):
    """Scores from the untouched start to the end."""

    scores: Tensor  # (s + 1,)
    area: float  # under the scores over [0, 1]


class Faithfulness(NamedTuple):
    """Deletion falls fast and insertion rises fast for a map that marks what the feature depends on."""

    deletion: Curve  # cells are emptied, the strongest first; a smaller area is better
    insertion: Curve  # cells are restored, the strongest first; a larger area is better


@torch.no_grad()
def faithfulness(encoder: Encoder, image: Tensor, saliency: Tensor, *, steps: int = STEPS,
                 score: Callable[[Tensor], Tensor] | None = None) -> Faithfulness:
    """Insertion and deletion (Petsiuk et al. 2018, arXiv 1806.07421) of a map (h, w) for one image (C, H, W).

    Emptied is 0 of the normalised image, the mean colour of the data; insertion starts from the image under a
    Gaussian blur of 11 x 11 pixels and deviation 5. Areas follow the trapezoid rule.

    What is ours: the paper follows the probability of a class, as ``score`` (b, C, H, W) to (b,) may; without it the cosine
    of the pooled feature with that of the whole image is followed. Whole cells of the map are changed, in ``steps`` steps,
    where the paper changes a row's worth of single pixels; ties stay in row-major order; the blur mirrors at
    the border. Areas can be compared between maps of one backbone, not with published ones or between backbones.
    """
    shown = strongest(saliency, steps, image.shape[1:]).to(image.device)  # (s + 1, 1, H, W)
    blurred = blur(image[None].clone(), torch.full((1, 1, 1, 1), BLUR, device=image.device), RADIUS)
    if score is None:
        whole = encoder.pooled(image[None]).cpu().double()  # (1, D)

        def score(batch: Tensor) -> Tensor:
            return cosine_similarity(encoder.pooled(batch).cpu().double(), whole)

    states = (torch.where(shown, 0.0, image), torch.where(shown, image, blurred))
    scores = [score(batch).cpu().double() for batch in states]
    return Faithfulness(*(Curve(found, area(found)) for found in scores))


def strongest(saliency: Tensor, steps: int, size: Sequence[int]) -> Tensor:
    """True where the strongest t N / s cells (rounded) of a map (h, w) lie, t from 0 to s; (s + 1, 1, H, W)."""
    order = saliency.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))  # 0: the strongest
    cells = interpolate(rank.reshape(1, 1, *saliency.shape).double(), tuple(size), mode="nearest-exact")
    count = (torch.arange(steps + 1) * (len(order) / steps)).round()
    return cells < count[:, None, None, None]


def area(scores: Tensor) -> float:
    """Area under s + 1 scores, evenly spaced over [0, 1], by the trapezoid rule."""
    return float((scores.sum() - (scores[0] + scores[-1]) / 2) / (len(scores) - 1))


def baselines(shape: Sequence[int], index: int) -> dict[str, Tensor]:
    """Maps (h, w) that know nothing of the image: chance, drawn by ``index``, and nearness to the middle."""
    rows, columns = shape
    chance = uniform(0, "random map", 0, np.array([index]), rows * columns).reshape(rows, columns)
    y, x = ((torch.arange(length, dtype=torch.float64) + 0.5) / length - 0.5 for length in shape)
    return {"Random map": torch.from_numpy(chance), "Middle of the picture": -(y[:, None].square() + x.square())}
