"""The bootstrap against the closed forms that exist."""

import numpy as np
import pytest

from daybreak.evaluate.bootstrap import standard_error


def test_single_items_give_the_binomial_error():
    right = np.arange(500) % 4 == 0
    assert standard_error(right) == pytest.approx((0.25 * 0.75 / 500) ** 0.5, rel=0.15)


def test_groups_that_err_together_widen_the_error():
    right = np.repeat(np.arange(50) % 4 == 0, 10)  # ten images of each of fifty patients, all right or all wrong
    groups = [f"patient {i // 10}" for i in range(500)]
    share = right.mean()
    assert standard_error(right, groups) == pytest.approx((share * (1 - share) / 50) ** 0.5, rel=0.15)
    assert standard_error(right, groups) > 2 * standard_error(right)


def test_it_is_a_function_of_the_seed():
    right = np.arange(100) % 3 == 0
    assert standard_error(right, seed=1) == standard_error(right, seed=1) != standard_error(right, seed=2)


def test_no_doubt_where_nothing_varies():
    assert standard_error(np.ones(30)) == 0
    assert standard_error(np.arange(30) % 2 == 0, ["one"] * 30) == 0
