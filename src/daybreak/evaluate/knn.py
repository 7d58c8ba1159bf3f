"""knn-v1: each query is labelled by a weighted vote of its nearest images in the bank.

Wu et al. 2018 (arXiv 1805.01978), as DINO (arXiv 2104.14294) evaluates with it.

N bank, n queries, D width, C classes, k neighbours.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .linear import standardise_by
from .metrics import Scores, score

K = 20
CHUNK = 1024  # queries at a time, so that the table of similarities stays small


def knn_v1(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, num_classes: int, *,
           k: int = K, temperature: float = 0.07, standardise: bool = False) -> Scores:
    """Classify queries by cosine similarity with the bank.

    A class's score is the sum of exp(similarity / temperature) over those of the k nearest that belong to it.
    Ties go to the smaller class. Nothing is random.

    Args:
        bank: (N, D); its labels (N,) int64 in [0, num_classes).
        queries: (n, D), none of them in the bank; their labels (n,) int64 in [0, num_classes).
        k: neighbours; all of the bank if it is smaller.
        standardise: whether each dimension is first given the bank's mean 0 and deviation 1.
    """
    if standardise:
        bank, queries = standardise_by(bank, bank, queries)
    bank, k = normalize(bank.float(), dim=1), min(k, len(bank))
    votes = torch.cat([vote(chunk, bank, bank_labels, num_classes, k, temperature)
                       for chunk in normalize(queries.float(), dim=1).split(CHUNK)])
    return score(votes, query_labels, k=k, temperature=temperature)


def nearest_others(features: Tensor, k: int = K) -> Tensor:
    """Positions (N, k) int64 of the k nearest others of each of the features (N, D) by cosine; all others if there are fewer."""
    unit, k, found = normalize(features.float(), dim=1), min(k, len(features) - 1), []
    for start in range(0, len(unit), CHUNK):
        similarity = unit[start : start + CHUNK] @ unit.T
        rows = torch.arange(len(similarity))
        similarity[rows, rows + start] = -torch.inf  # not itself
        found.append(similarity.topk(k, dim=1).indices)
    return torch.cat(found)


def neighbours_kept(before: Tensor, now: Tensor) -> float:
    """Mean share of the neighbours ``before`` (N, k) that are among those of ``now`` (N, k), both from ``nearest_others``."""
    return float((before[:, :, None] == now[:, None, :]).any(2).float().mean())


def vote(queries: Tensor, bank: Tensor, bank_labels: Tensor, num_classes: int, k: int,
         temperature: float) -> Tensor:
    """Class scores (n, C) of unit vectors (n, D), rows summing to 1."""
    similarity, nearest = (queries @ bank.T).topk(k, dim=1)  # (n, k) both
    weight = (similarity / temperature).softmax(1)  # exp(s / T) over its sum: same order, nothing overflows
    return weight.new_zeros(len(queries), num_classes).scatter_add_(1, bank_labels[nearest], weight)
