"""segment-v1: its counts against loops over pixels, numbers by hand, what perfect and constant features reach."""

import numpy as np
import pytest
import torch

from daybreak.errors import Refused
from daybreak.evaluate import linear, segment
from daybreak.evaluate.linear import RATES
from daybreak.evaluate.patches import PatchTask
from daybreak.evaluate.segment import best_head, count, iou, numbers, patch_shares, segment_v1


class Fake:
    """Masks made here, (n, H, W) of values, 255 void."""

    def __init__(self, masks, groups=None):
        self.masks, self.images = np.asarray(masks), type("Images", (), {"groups": groups})()
        self.values = tuple(int(v) for v in np.unique(self.masks) if v != 255)

    def __len__(self):
        return len(self.masks)

    def read(self, i, classes=None):
        place = {value: k for k, value in enumerate(self.values if classes is None else classes)}
        return np.vectorize(lambda v: place.get(int(v), -1), otypes=[np.int64])(self.masks[i])


def stripes(count: int, values=(3, 5, 9), seed: int = 0) -> np.ndarray:
    """Upright stripes whose edges are those of patches of 4 px: each mask (16, 24) holds each value once, in some order."""
    random = np.random.default_rng(seed)
    return np.stack([np.repeat(random.permutation(values), 8)[None].repeat(16, 0) for _ in range(count)])


def one_hot_patches(masks: np.ndarray, patch: int = 4) -> torch.Tensor:
    """The class of the pixel in the middle of each patch, (n, 12, h, w)."""
    return torch.nn.functional.one_hot(torch.from_numpy(masks[:, patch // 2 :: patch, patch // 2 :: patch] % 12).long(),
                                       12).movedim(3, 1).float()


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(linear, "STEPS", 60)


def found_of(train, test, features=one_hot_patches, seed: int = 0):
    made, notes = segment_v1(PatchTask(features(train), Fake(train), features(test), Fake(test)), seed)
    return {n.metric: n for n in made}, notes


def test_the_class_itself_as_feature_scores_one():
    found, notes = found_of(stripes(10), stripes(6, seed=1))
    assert not notes and {n.value for n in found.values()} == {1.0} and {n.error for n in found.values()} == {0.0}
    assert set(found) == {"mIoU", "pixel accuracy", "Dice (mean over images)", "mIoU (bound of the grid)",
                          *(f"IoU (class {v})" for v in (3, 5, 9))}


def test_a_constant_says_the_commonest_class_everywhere():
    """Half of each mask is class 5, a quarter 3 and 9 each: IoU 1/2, 0, 0; Dice 2/3, 0, 0."""
    masks = np.stack([np.repeat(order, 6)[None].repeat(16, 0) for order in ([3, 5, 5, 9], [5, 9, 3, 5], [5, 5, 9, 3]) * 4])
    found, _ = found_of(masks, masks, features=lambda m: torch.ones(len(m), 1, 4, 6))
    assert found["IoU (class 5)"].value == 0.5 and found["IoU (class 3)"].value == found["IoU (class 9)"].value == 0
    assert found["mIoU"].value == pytest.approx(0.5 / 3) and found["pixel accuracy"].value == 0.5
    assert found["Dice (mean over images)"].value == pytest.approx(2 / 9)


def test_features_of_noise_are_between_chance_and_one():
    random = torch.Generator().manual_seed(0)
    found, _ = found_of(stripes(10), stripes(6, seed=1), lambda m: one_hot_patches(m) + 0.8 * torch.randn(
        len(m), 12, 4, 6, generator=random))
    assert 0.3 < found["mIoU"].value < 0.95 and 0 < found["mIoU"].error < 0.1


def test_counts_equal_a_loop_over_pixels():
    random = np.random.default_rng(0)
    masks, maps = random.choice([0, 1, 2, 255], (3, 6, 9)), torch.from_numpy(random.normal(size=(3, 3, 2, 3)))
    found = count(maps, Fake(masks), (0, 1, 2))
    for i in range(3):
        large = torch.nn.functional.interpolate(maps[i : i + 1], size=(6, 9), mode="bilinear")[0].numpy()
        expected = np.zeros((3, 3))
        for y in range(6):
            for x in range(9):
                truth, guess = masks[i, y, x], int(large[:, y, x].argmax())
                if truth != 255:
                    expected[0, truth] += guess == truth
                    expected[1, guess] += 1
                    expected[2, truth] += 1
        assert (found[i] == expected).all()


def test_numbers_of_counts_by_hand():
    """Two images, three classes of which the last is nowhere; counts are summed before they are divided."""
    counts = np.array([[[4, 0, 0], [6, 2, 0], [5, 3, 0]], [[1, 6, 0], [1, 7, 0], [2, 6, 0]]], float)
    found = {n.metric: n.value for n in numbers(counts, counts, (0, 1, 2), None, 0)}
    first, second = 5 / (7 + 7 - 5), 6 / (9 + 9 - 6)
    assert found == pytest.approx({
        "IoU (class 0)": first, "IoU (class 1)": second, "mIoU": (first + second) / 2, "pixel accuracy": 11 / 16,
        "Dice (mean over images)": ((8 / 11 + 0) / 2 + (2 / 3 + 12 / 13) / 2) / 2,
        "mIoU (bound of the grid)": (first + second) / 2})


def test_groups_are_resampled_as_one():
    counts = np.array([[[4, 0], [6, 2], [5, 3]], [[1, 6], [1, 7], [2, 6]]] * 5, float)
    alone, together = (numbers(counts, counts, (0, 1), groups, 0)[0].error for groups in (None, ["a"] * 10))
    assert together < 1e-12 < 0.01 < alone


def test_void_pixels_count_neither_in_training_nor_in_the_test():
    """What lies under the void is of the wrong class in the features; the last columns of the grid are void all over."""
    train, test = stripes(10), stripes(6, seed=1)
    wrong = [one_hot_patches(m) for m in (train, test)]
    for masks, features in zip((train, test), wrong, strict=True):
        masks[:, :8, 20:] = 255
        features[:, :, :2, 5] = 7.0
    made, _ = segment_v1(PatchTask(wrong[0], Fake(train), wrong[1], Fake(test)), 0)
    assert {n.metric: n.value for n in made}["pixel accuracy"] > 0.97  # logits leak from void patches by half a patch


def test_the_images_that_choose_the_rate_are_not_trained_on(monkeypatch):
    """Each image's patches carry its number; one image in ten is held out, always the same."""
    seen = []
    monkeypatch.setattr(segment, "standardise_by", lambda reference, *tables: tables)
    monkeypatch.setattr(segment, "train_heads", lambda x, y, c, seed: seen.append(x) or linear.train_heads(x, y, c, seed))
    monkeypatch.setattr(segment, "best_head", lambda w, b, x, y: seen.append(x) or best_head(w, b, x, y))
    found_of(stripes(10), stripes(2, seed=1), lambda m: torch.arange(len(m)).float()[:, None, None, None].expand(-1, 1, 4, 6))
    fit, choose = (sorted(set(x.flatten().tolist())) for x in seen)
    assert choose == np.flatnonzero(linear.held_out(10)).tolist() and sorted(fit + choose) == list(range(10))
    assert [len(x) for x in seen] == [9 * 24, 24]


def test_a_patch_counts_for_the_classes_it_is_of():
    masks = np.full((1, 4, 8), 255)
    masks[0, :, :3], masks[0, :2, 4:6] = 1, 2
    assert patch_shares(Fake(masks), (1, 2), (1, 2))[0].flatten(1).tolist() == [[0.75, 0], [0, 0.25]]


def test_the_best_rate_by_a_loop():
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(4, 3 * len(RATES), generator=random), torch.randn(3 * len(RATES), generator=random)
    x, shares = torch.randn(50, 4, generator=random), torch.rand(50, 3, generator=random).softmax(1)
    scores = []
    for rate in range(len(RATES)):
        guess = (x @ weight[:, 3 * rate : 3 * rate + 3] + bias[3 * rate : 3 * rate + 3]).argmax(1)
        each = []
        for c in range(3):
            both = sum(float(shares[i, c]) for i in range(50) if guess[i] == c)
            either = sum(float(shares[i, c]) for i in range(50)) + sum(int(guess[i] == c) for i in range(50)) - both
            each.append(both / either)
        scores.append(np.mean(each))
    best = int(np.argmax(scores))
    found = best_head(weight, bias, x, shares)
    assert torch.equal(found[0], weight[:, 3 * best : 3 * best + 3]) and torch.equal(found[1], bias[3 * best : 3 * best + 3])


def test_iou_of_a_class_that_is_nowhere_is_unknown():
    found = iou(np.array([[2.0, 0, 0], [3.0, 1, 0], [4.0, 0, 0]]))
    assert found[0] == 0.4 and found[1] == 0 and np.isnan(found[2])


def test_classes_that_training_lacks_count_as_errors_and_are_said():
    train = stripes(10)
    test = np.where(stripes(6, seed=1) == 9, 11, stripes(6, seed=1))
    found, notes = found_of(train, test)
    assert notes == ["1 of 3 classes of the test masks are not in the training masks; their pixels count as errors: 11."]
    assert found["IoU (class 11)"].value == 0 and found["pixel accuracy"].value <= 2 / 3


def test_no_class_in_common_is_refused():
    with pytest.raises(Refused, match=r"no class of the test masks \(4, 6, 11\) is in the training masks \(3, 5, 9\); number"):
        found_of(stripes(10), stripes(6, (4, 6, 11)))


def test_too_little_to_train_on_is_refused():
    with pytest.raises(Refused, match="1 training image; 2 are needed"):
        found_of(stripes(1), stripes(2))
    masks = stripes(3)
    masks[1:] = 255
    with pytest.raises(Refused, match="known by half or more"):
        found_of(masks, stripes(2))
