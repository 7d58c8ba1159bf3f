"""A class head for a backbone that has none: the regression of logistic-v1, or of multilabel-v1, as one linear layer.

N labelled images, D width, C classes or labels.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import Refused
from ..nn.heads import ClassHead
from . import logistic, multilabel
from .linear import standards
from .tasks import not_finite

if TYPE_CHECKING:
    from ..data.sources import Labels


def fit_head(vectors: Tensor, labels: "Labels | None", *, groups: list[str] | None = None, where: str) -> ClassHead:
    """Fit a head as logistic-v1 (one class an image) or multilabel-v1 (several labels) does; nothing is random.

    The vectors are standardised for the fit, and the layer takes them as they are. Classes without an image and labels of
    one value only have no logit. Of two classes, whose regression has one vector of weights, each gets half of it.

    Args:
        vectors: pooled, (N, D). labels: of the same images.
        groups: of the images; none stands on both sides of the tenth that chooses the penalty.
        where: the data, as a sentence names them.

    Raises:
        Refused: no labels, numbers for labels, fewer than two classes, or vectors that are not finite.
    """
    if labels is None or labels.kind == "value":
        seen = "no labels" if labels is None else "numbers for labels"
        raise Refused(f"{where}: has {seen}, and a class head needs classes; give class folders or a label column (--label).")
    if reason := not_finite(vectors, "labelled images"):
        raise Refused(f"{where}: {reason}")
    values = np.asarray(labels.values)
    several = labels.kind == "multi"
    rows = np.flatnonzero(~np.isnan(values).all(1) if several else values >= 0)
    kept = [values[rows] == value for value in (0, 1)] if several else []
    present = np.flatnonzero(kept[0].any(0) & kept[1].any(0)) if several else np.unique(values[rows])
    if len(rows) < 2 or len(present) < (1 if several else 2):
        needed = "a label of both values" if several else "two classes"
        raise Refused(f"{where}: {len(rows)} labelled images of {len(present)} classes; a class head needs {needed}.")
    shift, scale = (x.double().numpy() for x in standards(vectors[rows]))
    x = (vectors[rows].double().numpy() - shift) / scale
    whose = None if groups is None else [groups[i] for i in rows]
    if several:
        columns, bias = multilabel.fit_chosen(x, values[rows][:, present].astype(float), whose)
        weight = columns.T
    else:
        model, _ = logistic.fit_chosen(x, values[rows], whose)
        weight, bias = model.coef_, model.intercept_
        if len(present) == 2:
            weight, bias = (np.concatenate([-one, one]) / 2 for one in (weight, bias))
    layer = nn.Linear(vectors.shape[1], len(present))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight / scale))
        layer.bias.copy_(torch.from_numpy(bias - (weight / scale) @ shift))
    name = "multilabel-v1" if several else "logistic-v1"
    return ClassHead(layer.requires_grad_(False), [labels.classes[i] for i in present], labels.kind,
                     f"{name} on {len(rows):,} images of {where}")
