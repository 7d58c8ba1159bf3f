"""How many directions features use: measures of collapse that need no labels.

N images, D width.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize


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
