"""How well a frozen backbone would serve labelled images, told from its vectors without training; higher is better.

Each score orders backbones on one set of images. None is comparable between two sets of images, and TMI not between
widths either.

N images, D width, C classes, Z classes of a backbone's own head, M reference images, K = min(N, D).
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import Refused
from .tasks import not_finite

SCORES = ("TMI", "PED", "LogME", "H-score", "LEEP")
NEIGHBOUR = 3  # of TMI's entropy, within the class
SHORTEST = 1.0  # what TMI takes shorter distances for
CHUNK = 1000
STEPS, TIME_STEP, RADII, KEPT = 6, 0.1, 0.6, 0.5  # of PED: most steps, their length, radii to a ball, least change to go on
ROUNDS, SETTLED, FLOOR = 11, 1e-3, 1e-5  # of LogME's fixed point
CUT = 1e-15  # of the largest eigenvalue: what is smaller is no direction of the H-score


class Score(NamedTuple):
    """A score, or why there is none."""

    name: str  # one of SCORES
    value: float | None
    seconds: float
    note: str = ""  # a sentence; empty if there is nothing to say


def transfer_scores(features: Tensor, labels: Tensor, *, reference: Tensor | None = None,
                    probabilities: Tensor | None = None) -> list[Score]:
    """All scores of vectors with labels, each with the seconds it took; LEEP only with probabilities.

    Args:
        features: (N, D). labels: (N,) int64, any numbers, none of them unknown.
        reference: (M, D), as for ``push_apart``. probabilities: (N, Z), as for ``leep``.

    Raises:
        Refused: what ``check`` refuses. A single score that can't be had is None, and its note says why.
    """
    check(features, labels)

    def told_tmi() -> tuple[float, str]:
        value, short = tmi(features, labels)
        return value, f"{short:.0%} of the distances are shorter than {SHORTEST:g} and count as {SHORTEST:g}." if short else ""

    entries: dict[str, Callable[[], tuple[float, str]]] = {
        "TMI": told_tmi, "PED": lambda: (logme(push_apart(features, labels, reference), labels), ""),
        "LogME": lambda: (logme(features, labels), ""), "H-score": lambda: (h_score(features, labels), "")}
    if probabilities is not None:
        theta = probabilities
        entries["LEEP"] = lambda: (leep(theta, labels), "")
    found = []
    for name, entry in entries.items():
        start = time.perf_counter()
        value: float | None
        try:
            value, note = entry()
        except Refused as error:  # the other scores may be had
            value, note = None, str(error)
        found.append(Score(name, value, time.perf_counter() - start, note))
    return found


def check(features: Tensor, labels: Tensor, num_classes: int | None = None) -> None:
    """Refuse vectors (N, D) and labels (N,) of which no score means anything.

    Args:
        num_classes: that the data name; None takes those that occur.

    Raises:
        Refused: vectors that are not finite or all the same, one class, fewer images than classes.
    """
    present = len(labels.unique())
    if reason := not_finite(features, "images"):
        raise Refused(reason)
    if present < 2:
        raise Refused(f"the {len(labels)} labelled images are of {present} class{'' if present == 1 else 'es'}; 2 or more are "
                      "needed to tell apart.")
    if len(labels) < max(num_classes or 0, present):
        raise Refused(f"{len(labels)} labelled images of {num_classes} classes are fewer than one a class; give more images, or a "
                      "label column of fewer classes.")
    if bool((features == features[0]).all()):
        raise Refused(f"all {len(features)} vectors are the same, so the backbone has collapsed and tells nothing apart.")


def by_class(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vectors in float64 (N, D), class of each from 0 (N,), images a class (C,), class means (C, D)."""
    x = features.double()
    _, place, counts = labels.unique(return_inverse=True, return_counts=True)
    return x, place, counts, class_sums(x, place, len(counts)) / counts[:, None]


def class_sums(rows: Tensor, place: Tensor, num_classes: int) -> Tensor:
    """Sums (C, D) of rows (N, D) over the classes (N,) they are of."""
    return rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, place, rows)


def tmi(features: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean over classes of n_c/N times the class's entropy h_c in nats, and the share of distances taken as 1.

    h_c = psi(n_c) - psi(3) + (D / n_c) sum_i log(2 eps_i), eps_i the largest difference of a dimension to the third
    neighbour within the class, at least 1 (Kozachenko and Leonenko). A class of one image has h_c = 0, one of 2 or 3
    is left out of the mean. The floor makes it blind to vectors of small scale, and it grows with D. It costs
    n_c^2 D of a class. Xu and Kang 2023 (arXiv 2308.05986), after its code, which centres first: distances don't see it.

    Args:
        features: (N, D). labels: (N,).

    Raises:
        Refused: no class of 4 images or more.
    """
    x, place, counts, _ = by_class(features, labels)
    if counts.max() <= NEIGHBOUR:
        raise Refused(f"it needs a class of {NEIGHBOUR + 1} images or more; the largest here has {int(counts.max())}.")
    total, kept, short, measured = 0.0, 0, 0, 0
    for number, count in enumerate(counts.tolist()):
        if 1 < count <= NEIGHBOUR:
            continue
        kept += 1
        if count == 1:
            continue
        rows = x[place == number]
        distance = torch.cat([torch.cdist(part, rows, p=torch.inf).kthvalue(NEIGHBOUR + 1, dim=1).values  # the first is itself
                              for part in rows.split(CHUNK)])
        short, measured = short + int((distance < SHORTEST).sum()), measured + count
        psi = torch.special.digamma(torch.tensor([count, NEIGHBOUR], dtype=torch.float64))
        entropy = psi[0] - psi[1] + x.shape[1] * (2 * distance.clamp(min=SHORTEST)).log().mean()
        total += count / len(x) * float(entropy)
    return total / kept, short / measured


def push_apart(features: Tensor, labels: Tensor, reference: Tensor | None = None) -> Tensor:
    """The vectors (N, D) float64 after classes that overlap have pushed each other apart; PED is their LogME.

    Up to 6 times: a class is a ball about its mean whose radius R is the root of its summed variances. Two of them at
    distance d overlap by O = max(0.6 (R_a + R_b) - d, 0), and each class moves away from the other by 0.1^2 O / 2;
    a class moves as one. Before, each dimension is less the reference's mean, over its deviation (at least 1e-3);
    after, back. A step whose summed |moves| are half of the first step's or less is not taken and ends it. Classes of one mean
    have no direction and don't push each other. Li et al. 2023 (arXiv 2308.15074), after its code.

    Args:
        features: (N, D). labels: (N,).
        reference: (M, D) of other images, there ImageNet's validation set; None takes the features themselves.
    """
    x, place, counts, _ = by_class(features, labels)
    base = x if reference is None else reference.double()
    deviation, shift = torch.std_mean(base, dim=0, correction=0)
    scale = deviation.clamp(min=1e-3)
    x, first = (x - shift) / scale, 0.0
    for step in range(STEPS):
        mean = class_sums(x, place, len(counts)) / counts[:, None]
        variance = class_sums((x - mean[place]).square(), place, len(counts)) / counts[:, None]
        radius = variance.sum(1).sqrt()
        distance = torch.cdist(mean, mean, compute_mode="donot_use_mm_for_euclid_dist")
        overlap = (RADII * (radius[:, None] + radius) - distance).clamp(min=0)
        push = torch.where(distance > 0, TIME_STEP**2 / 2 * overlap / distance, 0.0)  # (C, C)
        move = push.sum(1, keepdim=True) * mean - push @ mean  # sum_b push_ab (mean_a - mean_b)
        change = float(move.abs().sum())
        first = change if step == 0 else first
        if change == 0 or (change <= KEPT * first and step > 0):
            break
        x = x + move[place]
    return x * scale + shift


def logme(features: Tensor, labels: Tensor) -> float:
    """Log evidence of an image, of a linear model from vectors to each class against the rest, mean over the classes.

    Targets are 0 and 1, nothing is centred, and there is no bias. alpha, the precision of weights, and beta, that of
    noise, start at 1 and follow the fixed point of the card for up to 11 rounds. You et al. 2021 (arXiv 2110.10545).
    Its code leaves out the D - K directions without data, where log alpha cancels; here they are in, so that the
    evidence is exact for N < D too. The scale of the vectors counts.

    Args:
        features: (N, D). labels: (N,).

    Raises:
        Refused: an evidence that is not finite.
    """
    x, place, counts, _ = by_class(features, labels)
    num, width = x.shape
    left, singular, _ = torch.linalg.svd(x, full_matrices=False)  # (N, K), (K,)
    sigma = singular.square()
    projected = class_sums(left, place, len(counts)).square()  # (C, K): squares of U^T t
    total = 0.0
    for count, square in zip(counts.tolist(), projected, strict=True):
        outside = max(count - float(square.sum()), 0.0)
        alpha, beta = 1.0, 1.0
        for _ in range(ROUNDS):
            tau = alpha / beta
            gamma = float((sigma / (sigma + tau)).sum())
            weights = float((sigma * square / (tau + sigma).square()).sum())
            residual = float((square / (1 + sigma / tau).square()).sum()) + outside
            alpha, beta = gamma / (weights + FLOOR), (num - gamma) / (residual + FLOOR)
            if not (alpha > 0 and beta > 0) or abs(alpha / beta - tau) <= SETTLED * tau:
                break
        if not (alpha > 0 and beta > 0):
            raise Refused(f"there is no evidence: with {num} images and a width of {width} no noise or no weights are left.")
        logs = torch.tensor([alpha, beta, 2 * torch.pi], dtype=torch.float64).log().tolist()
        directions = float((alpha + beta * sigma).log().sum()) + (width - len(sigma)) * logs[0]
        total += (width * logs[0] + num * (logs[1] - logs[2]) - directions - beta * residual - alpha * weights) / (2 * num)
    return total / len(counts)


def h_score(features: Tensor, labels: Tensor) -> float:
    """tr(cov(X)^+ cov(g)), g_i the mean vector of the class of i: variance between classes over all variance.

    From 0 to the smaller of C - 1 and D. It reaches C - 1 whatever the vectors are once N - 1 of them span all
    directions, so N must be well above D. With X - mean = U S V^T it is sum_c |sum of U_i over class c|^2 / n_c over the
    directions whose S^2 is above 1e-15 of the largest. Bao et al. 2019.

    Args:
        features: (N, D). labels: (N,).
    """
    x, place, counts, _ = by_class(features, labels)
    left, singular, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    left = left[:, singular.square() > CUT * singular[0].square()]
    return float((class_sums(left, place, len(counts)).square().sum(1) / counts).sum())


def leep(probabilities: Tensor, labels: Tensor) -> float:
    """Mean log probability of the labels, given by P(y | z) and the backbone's own class probabilities.

    P(y, z) = (1/N) sum over images of class y of theta_iz, and LEEP = (1/N) sum_i log sum_z P(y_i | z) theta_iz; at
    most 0. Nguyen et al. 2020 (arXiv 2002.12462).

    Args:
        probabilities: theta (N, Z) of the classes the backbone was trained on, rows that sum to 1. labels: (N,).

    Raises:
        Refused: probabilities that are none.
    """
    theta, place, counts, _ = by_class(probabilities, labels)
    if not bool((theta >= 0).all()) or not torch.allclose(theta.sum(1), theta.new_ones(()), atol=1e-4):
        raise Refused("it needs the class probabilities of each image, 0 or more with a sum of 1; give them after softmax.")
    joint = class_sums(theta, place, len(counts)) / len(theta)  # (C, Z)
    given = joint / joint.sum(0).clamp(min=torch.finfo(torch.float64).tiny)  # a z that no image has adds nothing
    return float((given[place] * theta).sum(1).log().mean())
