"""The bootstrap against the closed forms that exist."""

import numpy as np
import pytest

from daybreak.evaluate.bootstrap import RESAMPLES, errors_of, standard_error


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


def test_errors_of_means_are_those_of_the_means():
    table, groups = np.random.default_rng(0).random((60, 2)), [str(i // 3) for i in range(60)]
    for whose in (None, groups):
        found = errors_of(lambda w: w @ table / w.sum(), (60, whose), seed=4)
        assert found == pytest.approx([standard_error(column, whose, seed=4) for column in table.T])


def test_groups_are_drawn_whole_and_samples_apart():
    seen = []
    errors_of(lambda a, b: seen.append((a, b)) or np.zeros(1), (6, list("aabbcc")), (6, None))
    first, second = (np.array(side) for side in zip(*seen, strict=True))
    assert len(first) == RESAMPLES and (first[:, ::2] == first[:, 1::2]).all() and (first[:, ::2].sum(1) == 3).all()
    assert (second.sum(1) == 6).all() and abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.2


def test_a_number_that_is_mostly_undefined_has_no_error():
    found = errors_of(lambda w: np.array([1.0 if w[0] else np.nan, np.nan, w[0]]), (5, None))
    assert found[0] == 0 and found[1] is None and found[2] == pytest.approx(0.8**0.5, rel=0.15)
