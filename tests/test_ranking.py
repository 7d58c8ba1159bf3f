"""The verb that orders backbones without training, on tiny ones that were never trained."""

import inspect
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import transferability
from rich.console import Console

import daybreak
from daybreak import cli, start
from daybreak.data.images import open_images
from daybreak.errors import Refused
from daybreak.evaluate.features import features, kept_features, view_features
from daybreak.evaluate.protocols import Result
from daybreak.evaluate.rank import rank_v1
from daybreak.evaluate.transfer import leep, logme
from daybreak.export.backbone import write_backbone
from daybreak.nn.encoder import Encoder
from daybreak.ranking import Ranked, in_order


def write(folder, width: int = 64, broken: bool = False):
    torch.manual_seed(width)
    encoder = Encoder("vit_micro", image_size=(16, 16), patch_size=4, width=width, depth=1, heads=2)
    if broken:
        torch.nn.init.constant_(encoder.model.norm.bias, torch.nan)
    return write_backbone(encoder, folder, mean=[0.5] * 3, std=[0.25] * 3, info={})


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    return [str(write(folder / "wide", 64)), str(write(folder / "narrow", 8))]


def ranked(*arguments, **more) -> tuple[list[Ranked], str]:
    console = Console(width=200, record=True, file=io.StringIO())
    return daybreak.rank(*arguments, console=console, **more), console.export_text()


def test_backbones_are_ordered_by_scores_of_vectors_that_evaluate_keeps_too(textures, backbones):
    rows, text = ranked(textures, backbones)
    assert [row.place for row in rows] == [1, 2] and rows[0].scores["LogME"] > rows[1].scores["LogME"]
    assert {row.backbone: row.width for row in rows} == dict(zip(backbones, (64, 8), strict=True))
    images = open_images(textures)
    for row in rows:
        assert row.num_images == 600 and row.scores.keys() == {"TMI", "PED", "LogME", "H-score"}
        assert row.seconds.keys() == row.scores.keys() | {"vectors"} and all(s >= 0 for s in row.seconds.values())
        backbone = daybreak.load(row.backbone)
        vectors, sentence = kept_features(Path(row.backbone) / "features", backbone.encoder, images, size=(16, 16),
                                          mean=backbone.mean, std=backbone.std)
        assert "computed before" in sentence
        assert row.scores["LogME"] == pytest.approx(logme(vectors, torch.from_numpy(images.labels.values)))
        assert f"{row.scores['LogME']:.4g}" in text and f"{row.seconds['vectors']:.2f}" in text
    assert "LogME *" in text and "TMI grows with the width" in text and "600 x 64" in text
    again, _ = ranked(textures, backbones, by="h-SCORE", reference=textures / "dots")
    assert again[0].scores["H-score"] > again[1].scores["H-score"]
    both = {row.backbone: row.scores for row in rows}
    assert all(row.scores["PED"] != both[row.backbone]["PED"] for row in again)  # scaled by other images
    assert all(row.scores["LogME"] == both[row.backbone]["LogME"] for row in again)


def test_the_command_prints_the_table_and_its_flags_are_frozen(textures, backbones, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["rank", str(textures), *backbones, "--by", "PED"])
    assert not end.value.code and "PED *" in capsys.readouterr().out
    assert list(inspect.signature(cli.rank).parameters) == ["data", "backbones", "label", "reference", "by"]


def test_only_the_split_that_is_trained_on_counts(noisy_textures, tmp_path):
    small = tmp_path / "data"
    for split, count in (("train", 12), ("val", 30)):
        for kind in ("dots", "checks"):
            (small / split / kind).mkdir(parents=True)
            for path in sorted((noisy_textures / "train" / kind).iterdir())[:count]:
                (small / split / kind / path.name).write_bytes(path.read_bytes())
    torch.manual_seed(0)
    encoder = Encoder("vit_micro", image_size=(16, 16), channels=1, patch_size=4, width=32, depth=1, heads=2)
    folder = write_backbone(encoder, tmp_path / "grey", mean=[0.5], std=[0.25], info={})
    rows, text = ranked(small, [folder])
    assert rows[0].num_images == 24 and "no more images than dimensions" in text


def test_the_benchmark_measures_on_the_splits_that_are_scored(noisy_textures, tmp_path, monkeypatch):
    torch.manual_seed(0)
    encoder = Encoder("vit_micro", image_size=(16, 16), channels=1, patch_size=4, width=32, depth=1, heads=2)
    folder, seen = write_backbone(encoder, tmp_path / "grey", mean=[0.5], std=[0.25], info={}), []
    result = Result("linear", "v1", "accuracy", 0.25, None, "trained", "", 0)
    monkeypatch.setattr(transferability, "evaluate_features", lambda *given, **_: seen.append([len(x) for x in given[::2]]) or
                        ([result], []))
    assert transferability.linear_accuracy(str(folder), str(noisy_textures), str(noisy_textures), 0) == 0.25
    assert seen == [[1200, 1000]]


def test_correlations_of_the_benchmark_by_hand():
    """Of four backbones the best two change places: sum of d^2 is 2, and one of six pairs is discordant."""
    found = transferability.correlations([1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.4, 0.3])
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15)) and found["kendall"] == pytest.approx((5 - 1) / 6)
    ranks, signs, masses = [4, 3, 1, 2], [], []  # of accuracy; here the order by score gives the same weights, pair by pair
    for i in range(4):
        for j in range(i):
            masses.append(1 / ranks[i] + 1 / ranks[j])
            signs.append(-1 if {i, j} == {2, 3} else 1)
    assert found["weighted tau"] == pytest.approx(np.dot(signs, masses) / sum(masses)) and not found["best found"]
    assert transferability.correlations([1.0, 2.0], [0.1, 0.2])["best found"]
    constant = transferability.correlations([1.0, 1.0], [0.1, 0.2])
    assert not constant.pop("best found") and all(np.isnan(value) for value in constant.values())


def test_what_cannot_be_ranked_is_refused(textures, backbones, tmp_path):
    with pytest.raises(Refused, match="no such score; did you mean 'LogME'"):
        ranked(textures, backbones, by="LogMEE")
    with pytest.raises(Refused, match="no such folder"):
        ranked(textures, [tmp_path / "nowhere"])
    with pytest.raises(Refused, match="no backbones to rank"):
        ranked(textures, [])
    with pytest.raises(Refused, match="LEEP: it has no class head. Order by another score: --by TMI"):
        ranked(textures, backbones, by="LEEP")
    with pytest.raises(Refused, match="no labels"):
        ranked(textures / "dots", backbones)
    with pytest.raises(Refused, match="broken: 600 of 600 vectors of the images are not finite"):
        ranked(textures, [write(tmp_path / "broken", 16, broken=True)])
    lines = [f"{path},dots" for path in sorted((textures / "dots").iterdir())[:5]]
    (tmp_path / "list.csv").write_text("\n".join(["path,kind", *lines]) + "\n")
    with pytest.raises(Refused, match="wide: the 5 labelled images are of 1 class; 2 or more are needed"):
        ranked(tmp_path / "list.csv", backbones)
    with pytest.raises(Refused, match="timm:no_such_model: could not be had"):
        ranked(textures, ["timm:no_such_model"])


def test_places_are_shared_by_equal_scores():
    rows = [Ranked(name, 0, 10, 4, {"LogME": value}, {}, []) for name, value in (("a", 1.0), ("b", 2.0), ("c", 2.0), ("d", 0.0))]
    assert [(row.backbone, row.place) for row in in_order(rows, "LogME")] == [("b", 1), ("c", 1), ("a", 3), ("d", 4)]


def test_a_model_of_timm_is_ranked_with_leep_from_its_own_head(tmp_path, monkeypatch):
    """Weights are made here in the place of fetched ones."""
    real, random = start.timm.create_model, np.random.default_rng(0)
    made = {}

    def create(name, pretrained=False, **arguments):
        torch.manual_seed(3)
        found = real(name, pretrained=False, **arguments)
        if pretrained:
            torch.nn.init.normal_(found.get_classifier().weight)
            made[name] = found
        return found

    for kind in ("a", "b"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i in range(5):
            image = random.integers(0, 120 if kind == "a" else 255, (40, 40, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "data" / kind / f"{i}.png"), image)
    monkeypatch.setattr(start.timm, "create_model", create)
    monkeypatch.chdir(tmp_path)
    ((row,), _), model = ranked(tmp_path / "data", ["timm:test_vit"], by="LEEP"), made["test_vit"]
    assert list((tmp_path / "runs" / "features").glob("*.arrow"))
    images = open_images(tmp_path / "data")
    backbone, head = start.timm_backbone("test_vit")
    pooled = features(backbone.encoder, images, size=backbone.size, mean=backbone.mean, std=backbone.std)
    assert row.scores["LEEP"] == pytest.approx(leep(head(pooled).softmax(1), torch.from_numpy(images.labels.values)), abs=1e-5)
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(backbone.pooled(x)), model.eval()(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(Refused, match="don't fill an encoder here"):
        start.timm_backbone("test_vit2")  # normalises after its pool


def test_views_are_drawn_from_the_seed_and_leave_the_encoder_as_it_was(textures):
    torch.manual_seed(0)
    encoder = Encoder("vit_micro", image_size=(16, 16), patch_size=4, width=64, depth=1, heads=2).train()
    images = open_images(textures).subset(np.arange(0, 600, 10))
    first, again, other = (view_features(encoder, images, size=(16, 16), mean=[0.5] * 3, std=[0.25] * 3, seed=seed)
                           for seed in (0, 0, 1))
    assert first.shape == (50, 10, 64) and torch.equal(first, again) and not torch.equal(first, other) and encoder.training
    found = rank_v1(first[:, 0], first)
    assert found.keys() >= {"LiDAR", "alignment"} and 1 < found["LiDAR"] < 49 and 0 < found["alignment"] < 2
