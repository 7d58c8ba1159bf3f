"""The block sampler against the reference's measured statistics, and against a plain sequential version."""

import pytest
import torch

from daybreak.data.philox import Random
from daybreak.nn.masking import block_mask, first_by_masks, first_by_slices, num_candidates, partners, random_mask


def random(count, seed=0):
    return Random(seed, 0, torch.arange(count))


def loop_block_mask(draws, height, width, share, align, candidates):
    """One image, from its own draws, in the order of the card: place blocks until the quota is reached."""
    quota = (min(0.5, share) + draws[0] * (share - min(0.5, share))) * height * width
    mask = [[False] * width for _ in range(height)]
    column = [draws[1 + k * candidates : 1 + (k + 1) * candidates] for k in range(4)]
    for r in range(candidates):
        top, left = (int(d[r] * (extent - align)) // align * align for d, extent in zip(column[:2], (height, width), strict=True))
        sides = []
        for d, extent in zip(column[2:], (height, width), strict=True):
            largest = max(int(0.3 * extent), align + 1)
            sides.append((align + int(d[r] * (largest - align))) // align * align)
        for y in range(top, min(top + sides[0], height)):
            for x in range(left, min(left + sides[1], width)):
                mask[y][x] = True
        if sum(map(sum, mask)) >= quota:
            break
    return mask


@pytest.mark.parametrize(("height", "width", "share", "align"), [(32, 32, 0.5, 1), (24, 40, 0.75, 1), (32, 32, 0.75, 4)])
def test_equals_the_sequential_sampler(height, width, share, align):
    source = random(4)
    found = block_mask(source, "x", height, width, share, align=align)
    candidates = num_candidates(share)
    draws = source("x", (4, 4 * candidates + 1)).tolist()
    for i in range(4):
        assert found[i].tolist() == loop_block_mask(draws[i], height, width, share, align, candidates)


# share of pixels, of 16-px tokens wholly hidden and of tokens touched, at 224 px, as measured on the reference sampler
@pytest.mark.parametrize(("share", "align", "pixels", "whole", "touched"),
                         [(0.5, 1, 0.51, 0.25, 0.77), (0.75, 1, 0.63, 0.35, 0.86), (0.75, 16, 0.64, 0.64, 0.64)])
def test_statistics_of_the_reference(share, align, pixels, whole, touched):
    hidden = block_mask(random(96), "x", 224, 224, share, align=align).float()
    tokens = torch.nn.functional.avg_pool2d(hidden[:, None], 16)
    assert hidden.mean().item() == pytest.approx(pixels, abs=0.02)
    assert (tokens == 1).float().mean().item() == pytest.approx(whole, abs=0.03)
    assert (tokens > 0).float().mean().item() == pytest.approx(touched, abs=0.03)


@pytest.mark.parametrize(("share", "align"), [(0.3, 1), (0.5, 1), (0.75, 4), (0.9, 1)])
def test_the_quota_is_always_reached(share, align):
    covered = block_mask(random(2000), "x", 32, 32, share, align=align).float().mean((1, 2))
    assert covered.min() >= min(0.5, share)


def test_devices_and_cpus_paint_the_same_rectangles():
    """Two ways to find the first rectangle over each pixel, one for each kind of device; some are empty or reach beyond."""
    top, left = torch.randint(0, 12, (5, 9)), torch.randint(0, 17, (5, 9))
    bottom, right = top + torch.randint(0, 6, (5, 9)), left + torch.randint(0, 8, (5, 9))
    painted = first_by_slices(top, bottom, left, right, 12, 17)
    assert torch.equal(painted, first_by_masks(top, bottom, left, right, 12, 17)) and painted.dtype == torch.int16
    y, x = (painted[0] < 9).nonzero()[0].tolist()
    over = [r for r in range(9) if top[0, r] <= y < bottom[0, r] and left[0, r] <= x < right[0, r]]
    assert painted[0, y, x] == min(over)


def test_aligned_blocks_hide_whole_patches():
    hidden = block_mask(random(16), "x", 32, 32, 0.6, align=4).float()
    tokens = torch.nn.functional.avg_pool2d(hidden[:, None], 4)
    assert set(tokens.unique().tolist()) == {0.0, 1.0}


def test_a_sample_does_not_depend_on_its_batch():
    whole = block_mask(random(8), "x", 16, 16, 0.5)
    part = block_mask(Random(0, 0, torch.tensor([5, 2])), "x", 16, 16, 0.5)
    assert torch.equal(whole[[5, 2]], part)


def test_partners_stay_in_their_cell_and_reach_all_of_it():
    found = torch.stack([partners(random(40, seed), "p") for seed in range(200)])
    for i in range(40):
        start, stop = i // 16 * 16, min(i // 16 * 16 + 16, 40)
        assert set(found[:, i].tolist()) == set(range(start, stop))


@pytest.mark.parametrize(("count", "ratio", "kept"), [(196, 0.75, 49), (64, 0.5, 32), (4, 0.9, 1)])
def test_random_mask_keeps_the_smallest(count, ratio, kept):
    noise = random(3)("n", (3, count))
    keep, _, hidden = random_mask(noise, ratio)
    assert keep.shape == (3, kept) and (~hidden).sum().item() == 3 * kept
    for b in range(3):
        assert noise[b][~hidden[b]].max() <= noise[b][hidden[b]].min()
