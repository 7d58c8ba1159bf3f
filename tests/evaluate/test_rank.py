"""RankMe and spread where their values are known."""

import numpy as np
import pytest
import torch

from daybreak.evaluate.rank import rankme, spread


def test_orthonormal_columns_have_full_rank_and_one_direction_has_rank_one():
    columns = torch.linalg.qr(torch.randn(40, 12, generator=torch.Generator().manual_seed(0)))[0]
    assert rankme(columns) == pytest.approx(12, abs=1e-3)
    assert rankme(columns.T) == pytest.approx(12, abs=1e-3)
    assert rankme(torch.ones(40, 12)) == pytest.approx(1, abs=1e-2)
    assert rankme(torch.zeros(40, 12)) == 1.0


def test_rankme_is_the_entropy_of_singular_values_not_of_their_squares():
    table = torch.randn(100, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) + 1.0
    share = np.linalg.svd(table.double().numpy(), compute_uv=False)
    share = share / share.sum() + 1e-7
    assert rankme(table) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    squared = share**2 / (share**2).sum()
    assert rankme(table) > np.exp(-(squared * np.log(squared)).sum()) + 0.1


def test_spread_is_one_for_even_directions_and_nothing_for_one():
    even = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    assert spread(even) == pytest.approx(1, abs=0.02)
    assert spread(even * torch.rand(4000, 1)) == pytest.approx(spread(even), rel=1e-5)  # lengths don't count
    assert spread(torch.ones(50, 32) * torch.arange(1, 51)[:, None]) == pytest.approx(0, abs=1e-6)
