"""patch-prompt-v1: objects, prompts, segments and pairs against loops over pixels; what perfect and constant features reach."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from test_segment import Fake, one_hot_patches, stripes

from daybreak.errors import Refused
from daybreak.evaluate.patch_prompt import (
    BINS,
    DRAWS,
    THRESHOLDS,
    bounds,
    candidates,
    centre,
    centre_curves,
    cosines,
    find_objects,
    measure_pairs,
    of_objects,
    of_pairs,
    patch_prompt_v1,
    random_ious,
    segment_ious,
)
from daybreak.evaluate.patches import PatchTask, coverage


def noise(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def found_of(train, test, features=one_hot_patches, seed: int = 0):
    made, notes = patch_prompt_v1(PatchTask(features(train), Fake(train), features(test), Fake(test)), seed)
    assert len({n.metric for n in made}) == len(made)
    return {n.metric: n for n in made}, notes


def test_the_class_itself_as_feature_scores_one():
    found, notes = found_of(stripes(6), stripes(5, seed=1))
    for name in ("mIoU", "mIoU (random prompts)", "mIoU (best threshold of each image)", "mIoU (mean over classes)",
                 "mIoU (4 to 16 patches)", "mIoU (bound of the grid)", "intra-object cosine", "AUROC"):
        assert (found[name].value, found[name].error) == (1, 0), name
    assert found["inter-object cosine"].value == found["overlap"].value == 0
    for name in ("mIoU, less mean", "mIoU (random prompts), less mean", "AUROC, less mean"):
        assert found[name].value == 1
    assert found["inter-object cosine, less mean"].value == pytest.approx(-0.5)  # three vectors at equal angles
    assert "mIoU (1 to 4 patches)" not in found and "d'" not in found
    assert any("not defined here" in note and "mIoU (1 to 4 patches)" in note for note in notes)


def test_a_constant_takes_the_whole_image_and_tells_no_pairs_apart():
    """Three stripes of a third each: the whole image has IoU 1/3 with each."""
    found, _ = found_of(stripes(6), stripes(5, seed=1), lambda m: torch.ones(len(m), 2, 4, 6))
    for suffix in ("", ", less mean"):
        for name in ("mIoU", "mIoU (random prompts)", "mIoU (best threshold of each image)"):
            assert found[name + suffix].value == pytest.approx(1 / 3)
        assert found[f"overlap{suffix}"].value == pytest.approx(1) and found[f"AUROC{suffix}"].value == 0.5
        assert f"d'{suffix}" not in found
    assert found["intra-object cosine"].value == 1 and found["intra-object cosine, less mean"].value == 0
    assert found["threshold, less mean"].value <= 0 and found["threshold"].error is None


def test_features_between_are_between():
    def blurred(masks):
        return one_hot_patches(masks) + 0.6 * noise(len(masks), 12, 4, 6, seed=len(masks))

    found, _ = found_of(stripes(12), stripes(15, seed=1), blurred)
    assert 1 / 3 < found["mIoU"].value < found["mIoU (best threshold of each image)"].value < 1
    assert 0.5 < found["AUROC"].value < 1 and 0 < found["overlap"].value < 1 and found["d'"].value > 0
    assert 0 < found["mIoU"].error < 0.1 and found["threshold"].value in THRESHOLDS
    assert found["mIoU (mean over thresholds)"].value < found["mIoU"].value
    again, _ = found_of(stripes(12), stripes(15, seed=1), blurred, seed=1)
    changed = {name for name in found if found[name].value != again[name].value}
    assert changed == {"mIoU (random prompts)", "mIoU (random prompts), less mean"}


def test_the_threshold_is_chosen_without_the_test():
    train = stripes(6)
    first, second = (found_of(train, test)[0]["threshold"] for test in (stripes(5, seed=1), stripes(5, (3, 9, 5), seed=2)))
    assert first == second
    with_noise = patch_prompt_v1(PatchTask(one_hot_patches(train), Fake(train), noise(5, 12, 4, 6), Fake(stripes(5, seed=1))))
    assert next(n for n in with_noise[0] if n.metric == "threshold") == first


def test_objects_are_connected_regions_of_a_patch_or_more():
    """8 neighbours; on a grid of 2 x 3 patches of 16 pixels: 16 pixels are an object, 15 are none; void is none."""
    mask = np.full((8, 12), -1)
    mask[:4, :4], mask[4:, 4:8] = 0, 0  # they touch at a corner: one object of 32 pixels
    mask[:4, 8:12] = 1
    mask[5:8, 8:12], mask[4, 8:11] = 1, 2  # 12 of class 1 touch nothing of it; 3 of class 2
    found = find_objects(mask, (2, 3))
    assert found.values.tolist() == [0, 1] and found.sizes.tolist() == [2, 1] and found.num_small == 2
    assert (found.regions[0] == (mask == 0)).all() and found.covers[0].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert (found.known == (mask >= 0)).all()
    assert len(find_objects(np.full((8, 12), -1), (2, 3)).values) == 0


def depth_by_loops(region: np.ndarray) -> np.ndarray:
    """Distance of each pixel of a region to the nearest pixel that is not of it, with a frame of such around the image."""
    outside = np.argwhere(~np.pad(region, 1)) - 1
    return np.array([[np.sqrt(((outside - (y, x)) ** 2).sum(1)).min() if region[y, x] else 0 for x in range(region.shape[1])]
                     for y in range(region.shape[0])])


@pytest.mark.parametrize("seed", range(6))
def test_the_centre_is_the_half_covered_patch_with_the_deepest_point(seed):
    random = np.random.default_rng(seed)
    region = np.zeros((18, 25), bool)
    for _ in range(3):
        y, x = random.integers(0, 12, 2)
        region[y : y + random.integers(4, 9), x : x + random.integers(4, 12)] = True
    cover = coverage(region[None], (4, 5))[0]
    depth = depth_by_loops(region)
    best = np.full(20, -1.0)
    for y in range(18):
        for x in range(25):
            patch = int((y + 0.5) * 4 / 18) * 5 + int((x + 0.5) / 5)
            if cover.ravel()[patch] >= 0.5:
                best[patch] = max(best[patch], depth[y, x])
    assert best.max() > 0
    assert best[centre(region, cover)] == pytest.approx(best.max(), abs=1e-4)


def test_an_object_that_covers_no_patch_by_half_is_prompted_where_it_covers_most():
    cover = np.array([[0.1, 0.4], [0.3, 0.2]])
    assert candidates(cover).tolist() == [1] and centre(np.ones((4, 4), bool), cover) == 1
    assert candidates(np.array([[0.5, 0.4], [0.6, 0.2]])).tolist() == [0, 2]


def iou_by_loops(small: np.ndarray, region: np.ndarray, known: np.ndarray, threshold: float) -> float:
    large = torch.nn.functional.interpolate(torch.from_numpy(small)[None, None], size=region.shape, mode="bilinear")[0, 0]
    both = either = 0
    for y in range(region.shape[0]):
        for x in range(region.shape[1]):
            if known[y, x]:
                taken = float(large[y, x]) >= threshold
                both += taken and region[y, x]
                either += taken or region[y, x]
    return both / either


def test_segments_and_curves_equal_loops_over_pixels():
    """Of the first threshold, of prompts at the centre and at random."""
    random = np.random.default_rng(0)
    mask = random.integers(-1, 3, (2, 3)).repeat(5, 0).repeat(5, 1)
    mask[0, 0] = -1
    objects, table = find_objects(mask, (5, 6)), cosines(noise(4, 5, 6), False)
    assert len(objects.values) >= 3
    curves, draws = centre_curves(table, objects, (5, 6)), random.random((len(objects.values), DRAWS)).astype(np.float32)
    drawn = random_ious(table, objects, (5, 6), draws, 0.3)
    for o, (region, cover) in enumerate(zip(objects.regions, objects.covers, strict=True)):
        maps = table.view(30, 5, 6).numpy()
        for t in (0, 4, 10, 23):
            expected = iou_by_loops(maps[centre(region, cover)], region, objects.known, THRESHOLDS[t])
            assert curves[o, t] == pytest.approx(expected)
        allowed = [n for n in range(30) if cover.ravel()[n] >= 0.5]
        chosen = [allowed[int(float(u) * len(allowed))] for u in draws[o]]
        assert drawn[o] == pytest.approx(np.mean([iou_by_loops(maps[n], region, objects.known, 0.3) for n in chosen]))


def test_an_iou_by_hand():
    """A row of two patches of 2 pixels, enlarged to 1, 0.75, 0.25, 0: at 0.25 three pixels are taken, one of them rightly."""
    maps, known = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64), np.array([[True, True, True, True]])
    region = np.array([[False, False, True, True]])
    assert segment_ious(maps, region, known, [0.25, 0.5, 1.5]).tolist() == [[0.25, 0.0, 0.0]]
    assert segment_ious(maps, region, np.array([[True, False, True, True]]), [0.2]).tolist() == [[1 / 3]]


def test_the_bound_of_a_region_that_the_grid_can_draw_is_one_and_less_for_others():
    mask = np.zeros((8, 12), int)
    mask[:, 4:] = 1
    assert bounds(find_objects(mask, (2, 3))).tolist() == [1, 1]
    mask[3, 6:] = 0
    objects = find_objects(mask, (2, 3))
    plain = [iou_by_loops(cover, region, objects.known, 0.5)
             for region, cover in zip(objects.regions, objects.covers, strict=True)]
    assert bounds(objects) == pytest.approx(plain) and min(plain) < 1


def test_pairs_equal_loops():
    mask = np.zeros((12, 16), int)
    mask[:, 8:], mask[6:, 4:8], mask[:3, 12:] = 1, 1, -1
    mask[:4, 6:10] = 2
    objects, table = find_objects(mask, (6, 8)), cosines(noise(5, 6, 8) + 1, False)
    objects = objects._replace(values=np.array([0, 1, 1]))  # two regions of one value are no pair
    found = measure_pairs(table, objects)
    owner = [next((o for o in range(3) if objects.covers[o].ravel()[n] > 0.5), None) for n in range(48)]
    intra, inter = [], []
    for i in range(48):
        for j in range(i):
            if owner[i] is not None and owner[j] is not None:
                if owner[i] == owner[j]:
                    intra.append(float(table[i, j]))
                elif objects.values[owner[i]] != objects.values[owner[j]]:
                    inter.append(float(table[i, j]))
    assert None in owner and len(inter) > 100
    expected = [[np.mean(kind), np.mean(np.square(kind))] for kind in (intra, inter)]
    np.testing.assert_allclose(found.moments, expected)
    assert found.auroc == pytest.approx(roc_auc_score([1] * len(intra) + [0] * len(inter), intra + inter))
    bins = [[sum(-1 + 0.02 * b <= s < -1 + 0.02 * (b + 1) for s in kind) / len(kind) for b in range(BINS)]
            for kind in (intra, inter)]
    np.testing.assert_allclose(found.histogram.sum(1), 1)
    assert np.minimum(*found.histogram).sum() == pytest.approx(np.minimum(*np.array(bins)).sum(), abs=0.01)


def test_numbers_of_pairs_by_hand():
    """Two images that weigh the same whatever the number of their pairs, and a third without any."""
    mask = np.repeat([0, 1], 2)[None].repeat(2, 0)
    first = measure_pairs(torch.full((8, 8), 0.0, dtype=torch.float64), find_objects(mask, (2, 4)))
    assert first.moments.tolist() == [[0, 0], [0, 0]] and first.auroc == 0.5
    second = first._replace(moments=np.array([[0.8, 0.65], [0.2, 0.05]]), auroc=0.9,
                            histogram=np.eye(BINS)[[90, 60]])
    names, measure = of_pairs([first, None, second])
    intra, inter, overlap, auroc, separation = measure(np.ones(3))
    assert (intra, inter, auroc) == pytest.approx((0.4, 0.1, 0.7)) and overlap == 0.5
    variance = ((0.65 / 2 - 0.16) + (0.05 / 2 - 0.01)) / 2
    assert separation == pytest.approx(0.3 / variance**0.5)
    assert measure(np.array([0.0, 5, 2]))[:2] == pytest.approx([0.8, 0.2])
    assert np.isnan(measure(np.array([0.0, 1, 0]))).all() and len(names) == 5


def test_an_image_of_one_object_gives_no_pairs():
    assert measure_pairs(torch.ones(8, 8).double(), find_objects(np.zeros((2, 4), int), (2, 4))) is None
    assert measure_pairs(torch.ones(8, 8).double(), find_objects(np.full((2, 4), -1), (2, 4))) is None


def test_numbers_of_objects_by_hand():
    """Objects weigh the same, not images; the best threshold is that of the image, over its objects."""
    curve = np.array([[0.1, 0.5, 0.9], [0.2, 0.8, 0.0], [0.6, 0.4, 0.2]])
    names, measure = of_objects(np.array([0, 0, 2]), np.array([1, 4, 4]), np.array([1.5, 4.0, 20.0]), curve,
                                np.array([0.3, 0.6, 0.9]), 1)
    found = dict(zip(names, measure(np.ones(3)), strict=True))
    assert found == pytest.approx({
        "mIoU": 1.7 / 3, "mIoU (random prompts)": 0.6, "mIoU (best threshold of each image)": (0.5 + 0.8 + 0.6) / 3,
        "mIoU (mean over thresholds)": (0.5 + 1 / 3 + 0.4) / 3, "mIoU (mean over classes)": (0.5 + 0.6) / 2,
        "mIoU (1 to 4 patches)": 0.5, "mIoU (4 to 16 patches)": 0.8, "mIoU (16 patches and more)": 0.4})
    assert dict(zip(names, measure(np.array([0.0, 3, 2])), strict=True))["mIoU"] == pytest.approx(0.4)


def test_what_is_left_out_is_said():
    masks = stripes(5, seed=1)
    masks[0, 0, 0], masks[1] = 7, 3  # a dot, and an image of one object
    _, notes = found_of(stripes(6), masks)
    assert notes[0].startswith("1 of ") and "smaller than a patch" in notes[0]
    assert "1 of 5 test images lack pairs" in notes[1]


def test_masks_of_dots_are_refused():
    dots = np.full((2, 16, 24), 255)
    dots[:, ::4, ::4] = 1
    for sides in ((stripes(3), dots), (dots, stripes(3))):
        fakes = [Fake(side) for side in sides]
        for fake in fakes:
            fake.images.source = type("Source", (), {"path": "set"})()
        with pytest.raises(Refused, match=r"set: no region of its masks is as large as one patch"):
            patch_prompt_v1(PatchTask(one_hot_patches(sides[0]), fakes[0], one_hot_patches(sides[1]), fakes[1]))
