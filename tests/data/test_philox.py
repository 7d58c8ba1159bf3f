"""Philox against its published answers, and the promises the loader and the methods rest on."""

import numpy as np
import pytest
import torch

from daybreak.data.philox import Random, permutation, philox, uniform

# Counter, key and answer of "philox4x32 10" in Random123's kat_vectors (D. E. Shaw Research).
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
FROZEN_UNIFORM = [[0.6747010946273804, 0.22546881437301636], [0.5042052865028381, 0.4527605175971985]]
FROZEN_PERMUTATION = [7, 4, 6, 8, 5, 2, 9, 1, 3, 0]


def words(text):
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize("counter, key, answer", KNOWN_ANSWERS)
@pytest.mark.parametrize(
    "kind", [lambda word: word, lambda word: np.array([word]), lambda word: torch.tensor([word])]
)
def test_known_answers(counter, key, answer, kind):
    found = philox(words(key), tuple(kind(word) for word in words(counter)))
    assert tuple(int(word) if isinstance(word, int) else word.item() for word in found) == words(answer)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**70])
def test_numpy_and_torch_give_the_same_bits(seed):
    index = np.array([0, 1, 5, 2**31 - 1, 3_000_000_000])
    drawn = uniform(seed, "box", 3, index, 9, view=2)
    twin = uniform(seed, "box", 3, torch.from_numpy(index), 9, view=2)
    assert drawn.dtype == np.float32 and twin.dtype == torch.float32 and drawn.shape == (5, 9)
    assert drawn.tobytes() == twin.numpy().tobytes()


def test_every_part_of_the_key_and_the_counter_counts():
    index = np.arange(6)
    parts = [
        (0, "a", 0, 0),
        (1, "a", 0, 0),
        (2**32, "a", 0, 0),
        (0, "b", 0, 0),
        (0, "a", 1, 0),
        (0, "a", 0, 1),
    ]
    draws = np.concatenate([uniform(seed, name, epoch, index, 5, view) for seed, name, epoch, view in parts])
    assert len(np.unique(draws)) == draws.size


def test_a_row_depends_on_its_own_index_alone():
    index = np.arange(50)
    whole = uniform(1, "mask", 0, index, 11)
    chosen = np.array([40, 3, 17])
    assert np.array_equal(uniform(1, "mask", 0, chosen, 11), whole[chosen])
    assert np.array_equal(uniform(1, "mask", 0, index, 4), whole[:, :4])


def test_uniform_is_uniform():
    draws = uniform(0, "test", 0, np.arange(4000), 25).ravel().astype(np.float64)  # 100,000 numbers
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8  # chi square, 19 degrees of freedom, p = 0.001
    grid = draws.reshape(4000, 25)
    assert np.abs(np.corrcoef(grid.T) - np.eye(25)).max() < 0.08  # five deviations of 1 / sqrt(4000)


def test_permutation():
    order = permutation(0, 0, 1000)
    assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, permutation(0, 0, 1000))
    assert (order != permutation(0, 1, 1000)).mean() > 0.98 and (
        order != permutation(1, 0, 1000)
    ).mean() > 0.98
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15
    assert permutation(0, 0, 1).tolist() == [0] and permutation(0, 0, 0).tolist() == []


def test_the_numbers_never_change():
    # A run can be repeated with a later version only while these stand.
    assert uniform(0, "mask", 0, np.array([0, 1]), 2).tolist() == FROZEN_UNIFORM
    assert permutation(0, 0, 10).tolist() == FROZEN_PERMUTATION


def test_random_draws_by_name_and_view():
    random = Random(3, 1, torch.arange(4))
    draw = random("mask", (4, 2, 3))
    assert draw.shape == (4, 2, 3) and draw.dtype == torch.float32
    assert torch.equal(draw, random("mask", (4, 2, 3)))
    assert not torch.isin(draw, random("drop", (4, 2, 3))).any()
    assert not torch.isin(draw, random("mask", (4, 2, 3), view=1)).any()
    assert random("one", (4,)).shape == (4,)
    last = Random(3, 1, torch.tensor([3]))("mask", (1, 2, 3))
    assert torch.equal(last[0], draw[3])


def test_random_refuses_another_batch_size():
    random = Random(0, 0, torch.arange(4))
    for shape in [(3, 2), ()]:
        with pytest.raises(ValueError, match="4 samples"):
            random("mask", shape)
        with pytest.raises(ValueError, match="4 samples"):
            random.normal("mask", shape)


def test_normal_is_normal():
    draws = Random(0, 0, torch.arange(2000)).normal("noise", (2000, 5, 5)).double()
    assert draws.shape == (2000, 5, 5) and draws.isfinite().all()
    assert abs(draws.mean()) < 0.02 and abs(draws.std() - 1) < 0.02
    for bound, share in [(-1.0, 0.1587), (0.5, 0.6915), (2.0, 0.9772)]:
        assert abs((draws < bound).double().mean() - share) < 0.008
    assert (torch.corrcoef(draws.flatten(1).T) - torch.eye(25)).abs().max() < 0.12


def test_a_negative_seed_is_an_error():
    with pytest.raises(ValueError, match="-1"):
        permutation(-1, 0, 3)
