"""ood-v1: telling images of the known kind (ID) from others (OOD) by four scores of frozen vectors; higher is more ID.

h a vector, u = h / |h|, the bank the ID training vectors:

- nearest instance: the cosine with the nearest of the bank. This is our reading of PT-OOD's advice (Miyai et al.
  2023, arXiv 2310.00847) to judge by instances and not by the classifier; its own scorer is not published.
- kNN: minus the distance of u to the k-th nearest of the bank, k = 50 (Sun et al. 2022, arXiv 2204.06507).
- Mahalanobis: max_c -(h - m_c)' S^+ (h - m_c), m_c the class means, S one covariance about them, S^+ its
  pseudo-inverse (Lee et al. 2018, arXiv 1807.03888).
- MSP: the largest probability of the classifier of logistic-v1 (Hendrycks and Gimpel 2016, arXiv 1610.02136), as a
  logarithm, since probabilities near 1 would be equal in rounding.

N bank, n ID test vectors, m OOD vectors, D width, C classes.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .bootstrap import errors_of
from .linear import standardise_by
from .logistic import fit_chosen
from .metrics import Number, Ranking

NEIGHBOURS = 50
CHUNK = 1024


def ood_v1(train: Tensor, train_labels: Tensor, queries: Tensor, outside: Tensor, *, seed: int = 0,
           groups: list[str] | None = None, query_groups: list[str] | None = None,
           outside_groups: list[str] | None = None) -> tuple[list[Number], list[str]]:
    """AUROC and FPR95 of each score with their errors, over resamples of both test sets; and a note, as sentences.

    AUROC is the probability that an ID image scores above an OOD one, half for ties. FPR95 is the share of OOD images
    that score at least the highest threshold which 95 % of the ID images reach; lower is better.

    Args:
        train: (N, D), of at least two classes; its labels (N,) int64.
        queries: (n, D) ID, none of them in ``train``. outside: (m, D) OOD.

    Raises:
        Refused: what ``logistic.fit_chosen`` refuses.
    """
    k = min(NEIGHBOURS, len(train))
    notes = [f"the bank has {len(train)} images, fewer than k = {NEIGHBOURS}; the farthest of all is the k-th."
             ] if k < NEIGHBOURS else []
    both = torch.cat([queries, outside])
    similar = similarities(both, train, k)  # (n + m, k)
    scores = {"nearest instance": similar[:, 0].numpy(), "kNN": similar[:, -1].numpy(),  # the order of -|u - u_k|
              "Mahalanobis": mahalanobis(both, train, train_labels).numpy(), "MSP": msp(both, train, train_labels, groups)}
    inside = np.arange(len(both)) < len(queries)
    rankings = [Ranking(score, inside) for score in scores.values()]

    def measure(*weights: np.ndarray) -> np.ndarray:
        joined = np.concatenate(weights)
        return np.array([number for r in rankings for number in (r.auc(joined), r.false_positives(joined))])

    values = measure(np.ones(len(both)))
    errors = errors_of(measure, (len(queries), query_groups), (len(outside), outside_groups), seed=seed)
    names = [f"{metric} ({name})" for name in scores for metric in ("AUROC", "FPR95")]
    return [Number(name, float(value), error) for name, value, error in zip(names, values, errors, strict=True)], notes


def similarities(vectors: Tensor, bank: Tensor, k: int) -> Tensor:
    """Cosines (n, k) of vectors with their k nearest of the bank, nearest first."""
    unit = normalize(bank.float(), dim=1)
    return torch.cat([(chunk @ unit.T).topk(k, dim=1).values for chunk in normalize(vectors.float(), dim=1).split(CHUNK)])


def mahalanobis(vectors: Tensor, train: Tensor, labels: Tensor) -> Tensor:
    """Minus the squared Mahalanobis distance (n,) float64 of vectors to the nearest class mean of the training set."""
    x = train.double()
    present, place = labels.unique(return_inverse=True)
    counts = torch.bincount(place)[:, None]
    means = x.new_zeros(len(present), x.shape[1]).index_add_(0, place, x) / counts  # (C, D)
    spread = x - means[place]
    inverse = torch.linalg.pinv(spread.T @ spread / len(x), hermitian=True)
    rows = [vectors.double() - mean for mean in means]
    return torch.stack([-((row @ inverse) * row).sum(1) for row in rows]).amax(0)


def msp(vectors: Tensor, train: Tensor, labels: Tensor, groups: list[str] | None) -> np.ndarray:
    """Logarithm of the largest class probability (n,) by the classifier of logistic-v1."""
    x, z = (table.double().numpy() for table in standardise_by(train, train, vectors))
    model, _ = fit_chosen(x, labels.numpy(), groups)
    return model.predict_log_proba(z).max(1)
