"""All that is shown of a few images: maps, colours, cosines, and how far the maps can be believed.

n images, A heads, N patches, h w rows and columns of patches, H W height and width in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.loader import evaluation_batches
from ..evaluate.features import unit
from ..evaluate.patches import patch_cosines
from ..nn.encoder import Encoder
from .attention import attention
from .cam import eigen_cam
from .faithfulness import Faithfulness, baselines, faithfulness
from .thumbnails import Thumbnail, class_names, shrink
from .tokens import levels, pca_colours

if TYPE_CHECKING:
    from ..data.images import Images

SIDE = 256  # pixels of a picture in the page
# Numbers of the maps, as the page has them.
ATTENTION, ROLLOUT = "Attention, mean of the heads", "Attention rollout"
EIGEN, CENTRED = "Eigen-CAM", "Eigen-CAM, centred"


@dataclass
class Explained:
    """One image and what the backbone makes of it."""

    picture: Thumbnail  # what the backbone saw: the centred box, at most SIDE pixels
    maps: dict[str, np.ndarray]  # (h, w) each, of any range
    heads: np.ndarray | None  # (A, h, w); None for a CNN
    colours: np.ndarray  # (h, w, 3) uint8
    cosines: np.ndarray | None  # (N, N) uint8 levels; None where they would make the page too large


@dataclass
class Score:
    """Areas of a map under deletion and insertion, means over the images with their standard errors."""

    name: str
    deletion: tuple[float, float]
    insertion: tuple[float, float]


@dataclass
class Explanation:
    """The images, the scores of their maps and what both rest on."""

    images: list[Explained]
    scores: list[Score]
    emptied: float  # cosine of the emptied image with the whole one, mean over the images
    blurred: float
    variance: float  # share of the colours' three components
    eigen: dict[str, float]  # mean share of the squared length that Eigen-CAM's direction holds
    notes: list[str]


@torch.no_grad()
def explain_images(encoder: Encoder, images: "Images", *, size: tuple[int, int], mean: Sequence[float], std: Sequence[float],
                   device: str | torch.device = "cpu", most_cosines: int = 3_000_000) -> Explanation:
    """Explain every one of a few ``images``, seen as evaluation sees them.

    Args:
        encoder: on ``device``, in evaluation mode.
        size: height and width in pixels.
        mean, std: of the data it was trained on, C numbers for pixels in [0, 1].
        most_cosines: of all clickable images together; each takes N (N + 1) / 2, the rest can't be clicked.
    """
    shift, scale = (torch.tensor(list(numbers), dtype=torch.float32)[:, None, None] for numbers in (mean, std))
    ((_, raw),) = evaluation_batches(images, *size, len(images))  # (n, C, H, W) uint8 or uint16
    normalised = (unit(raw) - shift) / scale
    features = torch.cat([encoder.map(x[None].to(device)).cpu() for x in normalised])  # (n, D, h, w)
    colours = pca_colours(features)
    cams = {EIGEN: eigen_cam(features), CENTRED: eigen_cam(features, centred=True)}
    patches = features.shape[2] * features.shape[3]
    clickable = most_cosines // (patches * (patches + 1) // 2)
    found: list[Explained] = []
    scores: list[dict[str, Faithfulness]] = []
    for i, (key, label) in enumerate(zip(images.keys, class_names(images), strict=True)):
        maps: dict[str, torch.Tensor] = {}
        heads = None
        if encoder.is_vit:
            seen = attention(encoder, normalised[i : i + 1].to(device))
            maps, heads = {ATTENTION: seen.heads[0].mean(0), ROLLOUT: seen.rollout[0]}, seen.heads[0].numpy()
        maps |= {name: cam.map[i] for name, cam in cams.items()}
        judged = maps | baselines(features.shape[2:], i)
        scores.append({name: faithfulness(encoder, normalised[i].to(device), a_map) for name, a_map in judged.items()})
        picture = Thumbnail(key, label, shrink(raw[i].permute(1, 2, 0).numpy(), SIDE))
        found.append(Explained(picture, {name: a_map.numpy() for name, a_map in maps.items()}, heads, colours.images[i],
                               levels(patch_cosines(features[i])) if i < clickable else None))
    notes = []
    if not encoder.is_vit:
        notes.append(f"{encoder.name} is a CNN and has no attention, so the maps of attention are left out.")
    if clickable < len(found):
        notes.append(f"The patches of {clickable} of {len(found)} pictures can be chosen: the cosines of the others would make "
                     "the page too large to mail.")
    first = [row[EIGEN] for row in scores]
    return Explanation(found, [average(name, [row[name] for row in scores]) for name in scores[0]],
                       emptied=float(np.mean([f.deletion.scores[-1] for f in first])),
                       blurred=float(np.mean([f.insertion.scores[0] for f in first])),
                       variance=colours.share, eigen={name: float(cam.share.mean()) for name, cam in cams.items()}, notes=notes)


def average(name: str, scores: list[Faithfulness]) -> Score:
    """Mean and standard error over images; the error of one image alone is not a number."""

    def over(areas: list[float]) -> tuple[float, float]:
        error = np.std(areas, ddof=1) / len(areas) ** 0.5 if len(areas) > 1 else np.nan
        return float(np.mean(areas)), float(error)

    return Score(name, over([s.deletion.area for s in scores]), over([s.insertion.area for s in scores]))
