"""finetune-v1: mixing and shares against loops, what it learns, what it leaves alone and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TEXTURES
from torch.nn import functional

from daybreak.data.images import open_images
from daybreak.data.sources import Labels
from daybreak.errors import Failed, Refused
from daybreak.evaluate.finetune import (
    Settings,
    chosen,
    finetune_v1,
    judge_classes,
    loss_of,
    matched,
    mix,
    settled,
    targets_of,
    tune,
)
from daybreak.evaluate.unfinished import Unfinished
from daybreak.nn.encoder import Encoder

PLAIN = dict(magnitude=0.0, mixup=0.0, cutmix=0.0, smoothing=0.0, drop_path=0.0)


def encoder(drop_path: float = 0.0) -> Encoder:
    torch.manual_seed(0)
    return Encoder("vit_micro", image_size=(16, 16), patch_size=4, width=64, depth=2, heads=2, drop_path=drop_path)


@pytest.fixture(scope="module")
def sides(textures):
    images = open_images(textures)
    return images.subset(np.arange(0, 600, 2)), images.subset(np.arange(1, 600, 4))


def how(images) -> dict:
    return dict(mean=images.mean, std=images.std, threads=1)


@pytest.mark.parametrize("draws", [(0.7, 0.3, 0.5, 0.5), (0.2, 0.6, 0.1, 0.8), (0.2, 0.01, 0.5, 0.5)])
def test_mixing_is_that_of_a_loop_over_pixels(draws):
    """Beta(1, 1) is uniform, so q is the second draw."""
    random = torch.Generator().manual_seed(0)
    x, t = torch.rand(3, 2, 6, 8, generator=random), torch.rand(3, 4, generator=random)
    found, targets = mix(x, t, draws, 1.0, 1.0)
    q = draws[1]
    expected = x.clone()
    if draws[0] >= 0.5:
        for i in range(3):
            expected[i] = q * x[i] + (1 - q) * x[2 - i]
    else:
        tall, wide = 6 * (1 - q) ** 0.5, 8 * (1 - q) ** 0.5
        rows = range(max(0, round(draws[2] * 6 - tall / 2)), min(6, round(draws[2] * 6 + tall / 2)))
        columns = range(max(0, round(draws[3] * 8 - wide / 2)), min(8, round(draws[3] * 8 + wide / 2)))
        for i in range(3):
            for r in rows:
                for c in columns:
                    expected[i, :, r, c] = x[2 - i, :, r, c]
        q = 1 - len(rows) * len(columns) / 48
    torch.testing.assert_close(found, expected)
    for i in range(3):
        for k in range(4):
            assert float(targets[i, k]) == pytest.approx(q * float(t[i, k]) + (1 - q) * float(t[2 - i, k]), abs=1e-6)


def test_mixing_off_changes_nothing_and_leaves_the_given_images():
    x, t = torch.rand(4, 1, 4, 4), torch.eye(4)
    assert mix(x, t, (0.1, 0.5, 0.5, 0.5), 0.0, 0.0)[0] is x
    before = x.clone()
    mix(x, t, (0.1, 0.2, 0.5, 0.5), 0.0, 1.0)
    assert torch.equal(x, before)


def test_targets_and_losses_by_hand():
    torch.testing.assert_close(targets_of(torch.tensor([1]), 4, 0.2), torch.tensor([[0.05, 0.85, 0.05, 0.05]]))
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    labels = torch.tensor([[1.0, torch.nan, 0.0], [torch.nan, torch.nan, 1.0]])
    known = [(1.0, 1.0), (0.5, 0.0), (-1.0, 1.0)]
    by_hand = sum(functional.softplus(torch.tensor(-z if y else z)) for z, y in known) / 3
    torch.testing.assert_close(loss_of(logits, targets_of(labels, 3, 0.0), "multi"), by_hand)
    torch.testing.assert_close(loss_of(logits, targets_of(torch.tensor([2, 1]), 3, 0.0), "class"),
                               functional.cross_entropy(logits, torch.tensor([2, 1])))


def test_shares_are_of_each_class_and_nested():
    values = np.repeat([0, 1, 2], [100, 40, 3])
    few, more = (chosen(Labels("class", values, ("a", "b", "c")), share, 5) for share in (0.01, 0.1))
    assert np.bincount(values[few]).tolist() == [1, 1, 1] and np.bincount(values[more]).tolist() == [10, 4, 1]
    assert set(few) <= set(more)
    assert not np.array_equal(more, chosen(Labels("class", values, ("a", "b", "c")), 0.1, 6))


def test_shares_of_several_labels_hold_both_values_of_each():
    table = np.zeros((200, 2), np.float32)
    table[[3, 150], 0], table[:, 1] = 1, np.nan
    table[[7, 9], 1] = 0, 1
    few, more = (chosen(Labels("multi", table, ("rare", "known of two")), share, 0) for share in (0.01, 0.2))
    for rows in (few, more):
        assert {7, 9} <= set(rows) and set(table[rows, 0]) == {0, 1}
    assert len(few) <= 2 + 4 and 40 <= len(more) <= 44 and set(few) <= set(more)


def test_what_is_left_open_follows_the_data_the_labels_and_the_encoder():
    vit, cnn = encoder(), Encoder("convnext_mini", image_size=(16, 16))
    small, large = settled(Settings(), "class", vit, 100), settled(Settings(), "class", vit, 100_000)
    assert (small.batch_size, small.epochs, large.batch_size, large.epochs) == (16, 500, 256, 50)
    assert large.learning_rate == pytest.approx(1e-3) and small.learning_rate == pytest.approx(2.5e-4)
    assert (large.layer_decay, large.drop_path, large.magnitude, large.mixup) == (0.65, 0.1, 9.0, 0.8)
    several = settled(Settings(), "multi", vit, 5000)
    assert (several.layer_decay, several.drop_path, several.magnitude, several.mixup, several.epochs) == (0.55, 0.2, 6.0, 0.0, 100)
    assert settled(Settings(), "class", cnn, 100).layer_decay == 1
    assert settled(Settings(layer_decay=0.8), "class", cnn, 9).layer_decay == 0.8
    random = settled(Settings(layer_decay=0.8, epochs=3), "class", vit, 100, "random")
    assert random.layer_decay == 1 and random.epochs == 3
    assert settled(Settings(batch_size=64), "class", vit, 20).batch_size == 20
    assert Settings(shares=(0.1,), epochs=3).said() == "epochs = 3"


def test_no_rate_leaves_the_weights_as_they_were(sides):
    settings = settled(Settings(epochs=1, learning_rate=0.0, batch_size=32), "class", encoder(), 300)
    before = encoder().state_dict()
    tuned = tune(encoder(0.1), sides[0], settings, seed=0, **how(sides[0])).encoder.state_dict()
    assert all(torch.equal(tuned[name], value) for name, value in before.items())


def test_it_learns_textures_and_says_the_same_again(sides):
    train, test = sides
    settings = Settings(epochs=24, batch_size=32, learning_rate=2e-3, layer_decay=0.9, **PLAIN)
    state, told, seen = torch.get_rng_state(), [], []
    results, skipped = finetune_v1(encoder, train, test, settings, seed=3, say=told.append,
                                   progress=lambda done, total: seen.append((done, total)), **how(train))
    assert torch.equal(torch.get_rng_state(), state) and not skipped and len(told) == 1 and "layer decay 0.9" in told[0]
    assert [r.metric for r in results] == ["accuracy", "balanced accuracy", "AUC"] and results[0].value > 0.8
    r = results[0]
    assert (r.protocol, r.version, r.backbone, r.seed, r.num_train, r.num_test, r.num_classes) == (
        "finetune", "v1", "trained", 3, 300, 150, 5)
    assert 0 < r.error < 0.06 and r.data == train.fingerprint and r.width == 64 and r.backbone_hash
    assert "epochs = 24" in r.settings and seen[-1] == (24 * 9 * 32, 24 * 9 * 32)


def test_the_recipe_trains_and_repeats_and_shares_are_named(sides):
    train, test = sides
    settings = Settings(epochs=1, batch_size=16, shares=(0.1, 1.0))
    twice = [finetune_v1(encoder, train, test, settings, **how(train))[0] for _ in range(2)]
    assert twice[0] == twice[1]
    assert [(r.metric, r.num_train) for r in twice[0] if r.metric.startswith("accuracy")] == [
        ("accuracy (10% of the labels)", 30), ("accuracy", 300)]


def test_several_labels_are_measured_by_mean_auc(sides):
    def several(images):
        values = np.stack([images.labels.values < 2, images.labels.values % 2 == 0], 1).astype(np.float32)
        values[::7, 1] = np.nan
        return replace(images, labels=Labels("multi", values, ("first two", "even")))

    train, test = map(several, sides)
    settings = Settings(epochs=12, batch_size=32, learning_rate=2e-3, layer_decay=0.9, **PLAIN)
    results, _ = finetune_v1(encoder, train, test, settings, **how(train))
    numbers = {r.metric: r for r in results}
    assert numbers["mean AUC"].value > 0.75 and 0 < numbers["mean AUC"].error < 0.1 and "AUC (even)" in numbers


def test_numbers_of_classes_are_those_of_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    random = np.random.default_rng(0)
    truth, score = (random.random(80) < 0.3).astype(int), random.random(80)
    score = (score + truth) / 2.5
    numbers = {n.metric: n for n in judge_classes(np.stack([1 - score, score], 1), truth, None, 0)}
    assert numbers["balanced accuracy"].value == pytest.approx(balanced_accuracy_score(truth, score > 0.5))
    assert numbers["AUC"].value == pytest.approx(roc_auc_score(truth, score))
    p = numbers["accuracy"].value
    assert numbers["accuracy"].error == pytest.approx((p * (1 - p) / 80) ** 0.5, rel=0.2)
    several, kind = random.dirichlet(np.ones(4), 90), random.integers(0, 3, 90)  # no image is of the fourth class
    found = {n.metric: n for n in judge_classes(several, kind, None, 0)}
    areas = [roc_auc_score(kind == c, several[:, c]) for c in range(3)]
    assert found["AUC"].value == pytest.approx(np.mean(areas)) and 0 < found["AUC"].error < 0.1
    assert found["balanced accuracy"].value == pytest.approx(balanced_accuracy_score(kind, several.argmax(1)))
    assert 0 < found["balanced accuracy"].error < 0.1
    many = {n.metric: n for n in judge_classes(random.dirichlet(np.ones(21), 90), random.integers(0, 21, 90), None, 0)}
    assert many["AUC"].error is None and many["accuracy"].error is not None
    assert [n.metric for n in judge_classes(several, np.zeros(90, int), None, 0)] == ["accuracy", "balanced accuracy"]
    one = judge_classes(np.stack([1 - score, score], 1), truth, ["same"] * 80, 0)
    assert all(n.error == pytest.approx(0) for n in one)


def test_one_class_other_classes_and_no_labels_are_refused(sides):
    train, test = sides
    kind = train.labels.values
    with pytest.raises(Refused, match=f"one class only, {TEXTURES[0]}; 2 are needed"):
        matched(train.subset(np.flatnonzero(kind == 0)), test)
    renamed = replace(test, labels=Labels("class", test.labels.values, ("v", "w", "x", "y", "z")))
    with pytest.raises(Refused, match="No class of the queries .* give the same label column for both"):
        matched(train, renamed)
    with pytest.raises(Refused, match="several labels an image; this protocol needs one class an image"):
        matched(train, replace(test, labels=Labels("multi", np.eye(5, dtype=np.float32)[test.labels.values], TEXTURES)))
    with pytest.raises(Refused, match="have no labels"):
        matched(replace(train, labels=None), test)
    _, _, notes = matched(train, test.subset(np.flatnonzero(test.labels.values == 1)))
    assert any("test images are of one class only" in note for note in notes)


@pytest.mark.parametrize("shares", [(), (0.1, 0.0)])
def test_a_share_of_nothing_is_refused(sides, shares):
    with pytest.raises(Refused, match="shares of the labels above 0 up to 1"):
        finetune_v1(encoder, *sides, Settings(shares=shares), **how(sides[0]))


def test_a_loss_that_is_not_finite_fails_in_one_sentence(sides):
    wrong = how(sides[0]) | {"std": (float("nan"),) * 3}
    with pytest.raises(Failed, match=r"after 18 steps; set a lower --set finetune.learning_rate"):
        finetune_v1(encoder, *sides, Settings(epochs=1, batch_size=16), **wrong)


class Broken(Exception):
    """What ends a training in these tests."""


def interrupted_at(count: int, error: type[BaseException] = Broken):
    """A ``progress`` that raises at its call of this number."""
    calls = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == count:
            raise error

    return progress


RECIPE = Settings(epochs=2, batch_size=16, shares=(0.5, 1.0))  # with drop path, mixing and RandAugment: 18 and 36 steps


@pytest.fixture(scope="module")
def whole(sides):
    kept = []
    results, _ = finetune_v1(encoder, *sides, RECIPE, keep=lambda *given: kept.append(given), **how(sides[0]))
    return results, kept[0][0].state_dict(), kept[0][1].state_dict()


@pytest.mark.parametrize(("seconds", "told"), [
    (0.0, ["going on after 18 of 18 steps", "going on after 19 of 36 steps"]),  # a state after each step
    (1e9, ["going on after 18 of 18 steps"]),  # only what ended was saved
])
def test_an_interrupted_fine_tuning_ends_with_the_same_bits(sides, whole, tmp_path, seconds, told):
    with pytest.raises(Broken):  # in the second share
        finetune_v1(encoder, *sides, RECIPE, unfinished=Unfinished(tmp_path / "f", seconds=seconds),
                    progress=interrupted_at(2), **how(sides[0]))
    kept, said, unfinished = [], [], Unfinished(tmp_path / "f", seconds=seconds)
    results, _ = finetune_v1(encoder, *sides, RECIPE, unfinished=unfinished, say=said.append,
                             keep=lambda *given: kept.append(given), **how(sides[0]))
    assert [words for words in said if "going on" in words] == [f"{t} in {p}" for t, p in zip(told, unfinished.used, strict=False)]
    assert results == whole[0]
    for found, expected in zip((x.state_dict() for x in kept[0]), whole[1:], strict=True):
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert len(list((tmp_path / "f").iterdir())) == 2
    unfinished.clear()
    assert not (tmp_path / "f").exists()


def test_a_signal_lets_the_step_end_and_saves_it(sides, whole, tmp_path):
    import os
    import signal

    def progress(done: int, total: int) -> None:
        if total == 36 * 16:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        finetune_v1(encoder, *sides, RECIPE, unfinished=Unfinished(tmp_path / "f"), progress=progress, **how(sides[0]))
    said: list[str] = []
    results, _ = finetune_v1(encoder, *sides, RECIPE, unfinished=Unfinished(tmp_path / "f"), say=said.append, **how(sides[0]))
    assert results == whole[0] and any("going on after 20 of 36 steps" in words for words in said)


def test_another_seed_setting_or_label_begins_anew_and_so_does_a_damaged_state(sides, tmp_path):
    settings = settled(Settings(epochs=1, batch_size=64), "class", encoder(), 300)
    other = replace(sides[0], labels=Labels("class", sides[0].labels.values[::-1].copy(), sides[0].labels.classes))
    said: list[str] = []

    def run(images=sides[0], seed=0, settings=settings):
        tune(encoder(), images, settings, seed=seed, unfinished=Unfinished(tmp_path), say=said.append, **how(images))

    run()
    for change in ({"images": other}, {"seed": 1}, {"settings": replace(settings, learning_rate=1e-5)}):
        run(**change)
    assert not said and len(list(tmp_path.iterdir())) == 4
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:200])
    run()
    assert not said
    run()
    assert len(said) == 1


def test_a_full_disk_fails_in_one_sentence_and_a_broken_loss_leaves_no_state(sides, tmp_path, monkeypatch):
    settings = settled(Settings(epochs=1, batch_size=16), "class", encoder(), 300)
    with pytest.raises(Failed, match="not finite|is nan"):
        tune(encoder(), sides[0], settings, seed=0, unfinished=Unfinished(tmp_path / "a", seconds=0),
             **(how(sides[0]) | {"std": (float("nan"),) * 3}))
    assert not list((tmp_path / "a").iterdir())

    def full(state, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(Failed, match="No space left .*; make room, and the same command goes on"):
        tune(encoder(), sides[0], settings, seed=0, unfinished=Unfinished(tmp_path / "b", seconds=0), **how(sides[0]))
    assert not list((tmp_path / "b").iterdir())
