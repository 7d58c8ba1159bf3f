"""How many directions features use: measures of collapse that need no labels.

N images, D width, n images of which there are q views each.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

FIRST, LAST = 10, 100  # eigenvalues between which alpha-ReQ fits its slope
FLOOR = 1e-6  # of the largest eigenvalue: what is smaller is no direction
ROUNDING = 1e-15  # variance of unit vectors that is none
MOST = 10_000  # vectors among which uniformity takes all pairs
CHUNK = 1000
WITHIN = 1e-4  # added by LiDAR to the variance within an image


def rank_v1(features: Tensor, views: Tensor | None = None) -> dict[str, float]:
    """All the measures of features (N, D), N at least 2; alpha-ReQ is missing where there are too few eigenvalues.

    With views (n, q, D), n and q at least 2, LiDAR of them and alignment of the first two views are among them.
    """
    found = {"rankme": rankme(features), "spread": spread(features), "uniformity": uniformity(features)}
    if views is not None:
        found |= {"LiDAR": lidar(views), "alignment": alignment(views[:, 0], views[:, 1])}
    values = spectrum(normalize(features.double(), dim=1))
    found["effective dimension"] = float((values > max(FLOOR * float(values[0]), ROUNDING)).sum())
    alpha = alpha_req(features)
    return found if alpha is None else found | {"alpha-ReQ": alpha}


def rankme(features: Tensor) -> float:
    """Effective rank: the exponential of the entropy of the singular values, from 1 to min(N, D).

    Features (N, D) are neither centred nor normalised. Values of different N or D can't be compared.
    Garrido et al. 2022 (arXiv 2210.02885), with its 1e-7.
    """
    table = features.double()
    gram = table.T @ table if len(table) > table.shape[1] else table @ table.T  # the smaller of the two
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    if singular.sum() == 0:
        return 1.0
    share = singular / singular.sum() + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def spread(features: Tensor) -> float:
    """Mean deviation of the dimensions of L2-normalised features (N, D), times sqrt(D).

    1 for directions that are uniform on the sphere, 0 if all are the same.
    """
    unit = normalize(features.double(), dim=1)
    return float(unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5)


def spectrum(features: Tensor) -> Tensor:
    """Eigenvalues of the centred covariance (over N - 1) of features (N, D), largest first, min(N - 1, D) of them."""
    table = features.double() - features.double().mean(0)
    gram = table.T @ table if len(table) > table.shape[1] else table @ table.T  # both have the same that are not 0
    count = min(len(table) - 1, table.shape[1])
    return torch.linalg.eigvalsh(gram).flip(0)[:count].clamp(min=0) / (len(table) - 1)


def alpha_req(features: Tensor) -> float | None:
    """The exponent a of lambda_i ~ i^-a for the eigenvalues of the centred covariance of features (N, D).

    A line through log lambda_i over log i, i from 11 to 100 or as many as there are, with weights 1 / i. Near 1 is
    wanted; far above it few directions are used. None if fewer than 10 eigenvalues above 1e-12 of the largest are
    left beyond the tenth. Agrawal et al. 2022 (NeurIPS), after its code.
    """
    eigen = spectrum(features)
    values = eigen[eigen > 1e-12 * eigen[0]][:LAST].numpy()
    if len(values) < FIRST + 10:
        return None
    i = np.arange(FIRST + 1, len(values) + 1)
    slope, _ = np.polyfit(np.log(i), np.log(values[FIRST:]), 1, w=i**-0.5)  # NumPy's weights multiply before the square
    return float(-slope)


def lidar(views: Tensor) -> float:
    """Effective rank of what tells images apart, measured by how much their views differ: from 1 to min(n - 1, D).

    Views (n, q, D), n and q at least 2, are neither centred nor normalised. S_b is the covariance (over n - 1) of the
    images' means, S_w that of views about their image's mean (over n (q - 1)) plus 1e-4 I; LiDAR is the exponential of
    the entropy of the eigenvalues of S_w^(-1/2) S_b S_w^(-1/2). The 1e-4 makes the scale count, and n must exceed D
    for a rank not capped by n. Thilak et al. 2023 (arXiv 2312.04000), with its 1e-8.
    """
    x = views.double()
    mean = x.mean(1)  # (n, D)
    within, between = (x - mean[:, None]).flatten(0, 1), mean - mean.mean(0)
    values, vectors = torch.linalg.eigh(within.T @ within / (len(x) * (x.shape[1] - 1)))
    whitened = between @ (vectors / (values.clamp(min=0) + WITHIN).sqrt())  # (n, D); turned back, its spectrum is the same
    found = spectrum(whitened)  # its mean is 0, so these are the eigenvalues of the product
    if found.sum() == 0:
        return 1.0
    share = found / found.sum() + 1e-8
    return float(torch.exp(-(share * share.log()).sum()))


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean of |u - v|^2 over images, u and v the L2-normalised features (n, D) of two views; from 0, alike, to 4.

    Wang and Isola 2020 (arXiv 2005.10242).
    """
    u, v = (normalize(table.double(), dim=1) for table in (first, second))
    return float((u - v).square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """log of the mean of exp(-2 |u_i - u_j|^2) over the pairs of L2-normalised features (N, D); lower is more uniform.

    0 if all are the same, near -4 for a wide uniform sphere. Of more than 10,000 features, 10,000 at equal steps are
    paired. Wang and Isola 2020 (arXiv 2005.10242).
    """
    if len(features) > MOST:
        features = features[torch.linspace(0, len(features) - 1, MOST, dtype=torch.float64).long()]
    unit = normalize(features.double(), dim=1).float()
    count = len(unit)
    total = sum(float((4 * (chunk @ unit.T) - 4).exp().sum(dtype=torch.float64)) for chunk in unit.split(CHUNK))
    return float(np.log((total - count) / (count * (count - 1))))  # less the pairs of each with itself
