"""retrieval-v1: the bank sorted by cosine similarity to each query; an image of the query's class is a hit.

N bank, n queries, D width.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .bootstrap import errors_of
from .metrics import Number

RANKS = (1, 5, 10)
CHUNK = 256  # queries at a time, so that the sorted table stays small


def retrieval_v1(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, *, seed: int = 0,
                 query_groups: list[str] | None = None) -> tuple[list[Number], list[str]]:
    """Recall@k and mAP with their errors; and what was left out, as sentences.

    Recall@k is the share of queries with a hit among the k nearest. AP = (1/P) sum_j j / r_j, where r_j is the rank
    (from 1) of the j-th of P hits in the whole bank; mAP is the mean over the queries. A query of a class that the
    bank lacks counts as 0 in both. Among equally similar images the earlier in the bank comes first.

    Args:
        bank: (N, D); its labels (N,) int64.
        queries: (n, D), none of them in the bank; labels (n,) int64.
    """
    unit = normalize(bank.float(), dim=1)
    ranks = [k for k in RANKS if k <= len(bank)]
    rows = []
    for chunk, truth in zip(normalize(queries.float(), dim=1).split(CHUNK), query_labels.split(CHUNK), strict=True):
        order = (chunk @ unit.T).sort(dim=1, descending=True, stable=True).indices  # (B, N)
        hit = (bank_labels[order] == truth[:, None]).double()
        found = hit.cumsum(1)
        precision = found / torch.arange(1, len(bank) + 1)
        average = (precision * hit).sum(1) / hit.sum(1).clamp(min=1)
        rows.append(torch.stack([*((found[:, k - 1] > 0).double() for k in ranks), average], 1))
    table = torch.cat(rows).numpy()  # (n, S)
    errors = errors_of(lambda w: w @ table / w.sum(), (len(table), query_groups), seed=seed)
    names = [*(f"recall@{k}" for k in ranks), "mAP"]
    notes = [f"recall@{k} is left out: the bank has {len(bank)} images." for k in RANKS if k > len(bank)]
    return [Number(name, float(value), error) for name, value, error in zip(names, np.mean(table, 0), errors, strict=True)], notes
