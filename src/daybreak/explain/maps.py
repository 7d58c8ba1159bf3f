"""All that is shown of a few images: maps, colours, cosines, and how far the maps can be believed.

n images, A heads, N patches, L labels, h w rows and columns of patches, H W height and width in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.loader import evaluation_batches
from ..errors import Refused
from ..evaluate.features import unit
from ..evaluate.patches import patch_cosines
from ..evaluate.tasks import not_finite
from ..nn.encoder import Encoder
from ..nn.heads import ClassHead
from ..nn.label_tokens import LabelTokens
from .attention import attention
from .cam import eigen_cam, grad_cam
from .faithfulness import Faithfulness, baselines, faithfulness
from .thumbnails import Thumbnail, class_names, shrink
from .tokens import levels, pca_colours

if TYPE_CHECKING:
    from ..data.images import Images

SIDE = 256  # pixels of a picture in the page
MOST_LABELS = 20  # whose maps are shown of an image, the likeliest first
# Numbers of the maps, as the page has them.
ATTENTION, ROLLOUT = "Attention, mean of the heads", "Attention rollout"
EIGEN, CENTRED = "Eigen-CAM", "Eigen-CAM, centred"
LIKELIEST = "Map of the likeliest label"
GRAD = "Grad-CAM"


@dataclass
class Explained:
    """One image and what the backbone makes of it."""

    picture: Thumbnail  # what the backbone saw: the centred box, at most SIDE pixels
    maps: dict[str, np.ndarray]  # (h, w) each, of any range
    heads: np.ndarray | None  # (A, h, w); None for a CNN
    colours: np.ndarray  # (h, w, 3) uint8
    cosines: np.ndarray | None  # (N, N) uint8 levels; None where they would make the page too large
    labels: dict[str, np.ndarray] = field(default_factory=dict)  # (h, w) each, where label tokens look, by name and probability
    shown_class: str = ""  # that Grad-CAM is of, with its probability


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
    label_scores: list[Score] = field(default_factory=list)  # where the probability of each image's likeliest label is followed
    class_scores: list[Score] = field(default_factory=list)  # where the probability of the class of Grad-CAM is followed
    head: str = ""  # whose classes these are
    target: str | None = None  # the class of all images; None: that which is predicted


@torch.no_grad()
def explain_images(encoder: Encoder, images: "Images", *, size: tuple[int, int], mean: Sequence[float], std: Sequence[float],
                   device: str | torch.device = "cpu", most_cosines: int = 3_000_000, label_tokens: LabelTokens | None = None,
                   label_names: Sequence[str] = (), head: ClassHead | None = None, target: str | None = None) -> Explanation:
    """Explain every one of a few ``images``, seen as evaluation sees them.

    Args:
        encoder: on ``device``, in evaluation mode.
        size: height and width in pixels.
        mean, std: of the data it was trained on, C numbers for pixels in [0, 1].
        most_cosines: of all clickable images together; each takes N (N + 1) / 2, the rest can't be clicked.
        label_tokens: of the encoder, on ``device``, where it has such; label_names: their L names.
        head: on ``device``, for Grad-CAM; without it there is none.
        target: the class it is of; None takes the one that is predicted of each image.

    Raises:
        Refused: features that are not finite; the head has no class of this name, or the encoder no attention or no Grad-CAM.
    """
    place = None if head is None or target is None else head.place(target)
    shift, scale = (torch.tensor(list(numbers), dtype=torch.float32)[:, None, None] for numbers in (mean, std))
    ((_, raw),) = evaluation_batches(images, *size, len(images))  # (n, C, H, W) uint8 or uint16
    normalised = (unit(raw) - shift) / scale
    features = torch.cat([encoder.map(x[None].to(device)).cpu() for x in normalised])  # (n, D, h, w)
    if reason := not_finite(features.flatten(1), "images"):
        raise Refused(f"{images.source.path}: {reason}")
    colours = pca_colours(features)
    cams = {EIGEN: eigen_cam(features), CENTRED: eigen_cam(features, centred=True)}
    patches = features.shape[2] * features.shape[3]
    clickable = most_cosines // (patches * (patches + 1) // 2)
    found: list[Explained] = []
    scores: list[dict[str, Faithfulness]] = []
    label_scores: list[dict[str, Faithfulness]] = []
    class_scores: list[dict[str, Faithfulness]] = []
    for i, (key, label) in enumerate(zip(images.keys, class_names(images), strict=True)):
        image = normalised[i].to(device)  # (C, H, W)
        maps: dict[str, torch.Tensor] = {}
        labels: dict[str, np.ndarray] = {}
        heads, shown_class = None, ""
        if encoder.is_vit:
            seen = attention(encoder, image[None])
            maps, heads = {ATTENTION: seen.heads[0].mean(0), ROLLOUT: seen.rollout[0]}, seen.heads[0].numpy()
        maps |= {name: cam.map[i] for name, cam in cams.items()}
        blind = baselines(features.shape[2:], i)
        if head is not None:
            maps[GRAD], shown_class, chance = class_map(encoder, head, image, place)
            class_scores.append({name: faithfulness(encoder, image, a_map, score=chance) for name, a_map in (maps | blind).items()})
        scores.append({name: faithfulness(encoder, image, a_map) for name, a_map in (maps | blind).items()})
        if label_tokens is not None:
            labels, chance = label_maps(encoder, label_tokens, label_names, image)
            judged = {LIKELIEST: torch.from_numpy(next(iter(labels.values())))} | blind
            label_scores.append({name: faithfulness(encoder, image, a_map, score=chance) for name, a_map in judged.items()})
        picture = Thumbnail(key, label, shrink(raw[i].permute(1, 2, 0).numpy(), SIDE))
        found.append(Explained(picture, {name: a_map.numpy() for name, a_map in maps.items()}, heads, colours.images[i],
                               levels(patch_cosines(features[i])) if i < clickable else None, labels, shown_class))
    notes = []
    if not encoder.is_vit:
        notes.append(f"{encoder.name} is a CNN and has no attention, so the maps of attention are left out.")
    if clickable < len(found):
        notes.append(f"The patches of {clickable} of {len(found)} pictures can be chosen: the cosines of the others would make "
                     "the page too large to mail.")
    first = [row[EIGEN] for row in scores]
    return Explanation(found, averages(scores),
                       emptied=float(np.mean([f.deletion.scores[-1] for f in first])),
                       blurred=float(np.mean([f.insertion.scores[0] for f in first])),
                       variance=colours.share, eigen={name: float(cam.share.mean()) for name, cam in cams.items()}, notes=notes,
                       label_scores=averages(label_scores), class_scores=averages(class_scores),
                       head="" if head is None else head.said, target=target)


def class_map(encoder: Encoder, head: ClassHead, image: torch.Tensor,
              place: int | None) -> tuple[torch.Tensor, str, Callable[[torch.Tensor], torch.Tensor]]:
    """Grad-CAM (h, w) of an image (C, H, W) for the class at ``place`` or the predicted one, its name and probability in
    words, and that probability as a function."""
    chances = head.chances(head(encoder.pooled(image[None])))[0]  # (C,)
    shown = int(chances.argmax()) if place is None else place

    def chance(batch: torch.Tensor) -> torch.Tensor:
        return head.chances(head(encoder.pooled(batch)))[:, shown]

    found = grad_cam(encoder, head, image[None], torch.tensor([shown]))[0]
    return found, f"{head.classes[shown]}: {float(chances[shown]):.2f}", chance


@torch.no_grad()
def label_maps(encoder: Encoder, label_tokens: LabelTokens, names: Sequence[str],
               image: torch.Tensor) -> tuple[dict[str, np.ndarray], Callable[[torch.Tensor], torch.Tensor]]:
    """Where the tokens of the likeliest labels look in an image (C, H, W), and the probability of the very likeliest as a function.

    Maps are (h, w), the likeliest first, means over the blocks in which labels read.
    """
    chances = label_tokens(encoder, image[None])[0].float().sigmoid().cpu()  # (L,)
    maps = label_tokens.maps(encoder, image[None])[0].mean(0).cpu().numpy()  # (L, h, w)
    likeliest = chances.argsort(descending=True, stable=True)[:MOST_LABELS].tolist()

    def chance(batch: torch.Tensor) -> torch.Tensor:
        return label_tokens(encoder, batch)[:, likeliest[0]].float().sigmoid()

    return {f"{names[label]}: {chances[label]:.2f}": maps[label] for label in likeliest}, chance


def averages(rows: list[dict[str, Faithfulness]]) -> list[Score]:
    """The score of each map, of one row of them an image."""
    return [average(name, [row[name] for row in rows]) for name in (rows[0] if rows else ())]


def average(name: str, scores: list[Faithfulness]) -> Score:
    """Mean and standard error over images; the error of one image alone is not a number."""

    def over(areas: list[float]) -> tuple[float, float]:
        error = np.std(areas, ddof=1) / len(areas) ** 0.5 if len(areas) > 1 else np.nan
        return float(np.mean(areas)), float(error)

    return Score(name, over([s.deletion.area for s in scores]), over([s.insertion.area for s in scores]))
