"""retrieval-v1 by hand, against scikit-learn's average precision, and its ties."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn.functional import normalize

from daybreak.evaluate.bootstrap import standard_error
from daybreak.evaluate.retrieval import retrieval_v1


def angle(*degrees: float) -> torch.Tensor:
    turn = torch.tensor(degrees).deg2rad()
    return torch.stack([turn.cos(), turn.sin()], 1) * torch.arange(1, len(degrees) + 1)[:, None]  # lengths don't count


def values(found) -> dict[str, float]:
    return {number.metric: number.value for number in found[0]}


def test_by_hand():
    """Hits at ranks 2 and 4 of five: AP = (1/2 + 2/4) / 2; a class that is not there: 0."""
    bank, labels = angle(1, 2, 3, 4, 5), torch.tensor([0, 1, 0, 1, 0])
    found = retrieval_v1(bank, labels, angle(0, 0), torch.tensor([1, 7]))
    assert values(found) == {"recall@1": 0, "recall@5": 0.5, "mAP": 0.25}
    assert found[1] == ["recall@10 is left out: the bank has 5 images."]
    perfect = retrieval_v1(bank, torch.tensor([1, 1, 0, 0, 0]), angle(0), torch.tensor([1]))
    assert values(perfect) == {"recall@1": 1, "recall@5": 1, "mAP": 1}


def test_equals_scikit_learn_query_by_query():
    random = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(50, 6, generator=random), torch.randn(600, 6, generator=random)  # more than one chunk
    labels, truth = torch.arange(50) % 3, torch.arange(600) % 3
    groups = [str(i // 5) for i in range(600)]
    similar = (normalize(queries, dim=1) @ normalize(bank, dim=1).T).numpy()
    ap = [average_precision_score(labels.numpy() == t, row) for t, row in zip(truth.numpy(), similar, strict=True)]
    first = [labels.numpy()[row.argmax()] == t for t, row in zip(truth.numpy(), similar, strict=True)]
    numbers = {n.metric: n for n in retrieval_v1(bank, labels, queries, truth, seed=2, query_groups=groups)[0]}
    assert numbers["mAP"].value == pytest.approx(np.mean(ap), abs=1e-6)
    assert numbers["recall@1"].value == pytest.approx(np.mean(first))
    assert numbers["recall@1"].value < numbers["recall@5"].value < numbers["recall@10"].value
    assert numbers["mAP"].error == pytest.approx(standard_error(np.array(ap), groups, seed=2), abs=1e-6)


def test_of_equals_the_earlier_in_the_bank_comes_first():
    bank = torch.tensor([[2.0, 0, 0]]).repeat(40, 1)  # products without rounding
    for place in (0, 7, 39):
        labels = (torch.arange(40) == place).long()
        assert values(retrieval_v1(bank, labels, bank[:1], torch.tensor([1])))["mAP"] == pytest.approx(1 / (place + 1))
