"""Protocols of patches from the command line: images and masks in, numbers beside random weights, pixels and a constant out."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from test_run import main_ok, say

import daybreak
from daybreak.config import RunConfig, fill, write_config
from daybreak.data.images import open_images
from daybreak.data.masks import labels_of, open_masks
from daybreak.evaluate import linear
from daybreak.evaluate.dense import DENSE
from daybreak.export.backbone import write_backbone
from daybreak.methods.base import find
from daybreak.nn.encoder import Encoder
from daybreak.runs import make_encoder

COLOURS = {2: (200, 40, 30), 5: (40, 180, 60), 9: (30, 60, 220)}  # BGR of the classes


def write_set(folder, count: int, seed: int):
    """Images of 32 x 48 pixels, three upright stripes of three colours and little noise, with masks of their classes."""
    random = np.random.default_rng(seed)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        order = random.permutation(list(COLOURS))
        mask = np.repeat(order, 16)[None].repeat(32, 0).astype(np.uint8)
        image = np.array([COLOURS[value] for value in mask.ravel()]).reshape(32, 48, 3) + random.normal(0, 8, (32, 48, 3))
        cv2.imwrite(str(folder / "images" / f"{i}.png"), image.clip(0, 255).astype(np.uint8))
        cv2.imwrite(str(folder / "masks" / f"{i}.png"), mask)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streets")
    write_set(folder / "train", 12, 0)
    write_set(folder / "val", 8, 1)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of another seed than its weights, so that its random start is another network."""
    folder, cls = tmp_path_factory.mktemp("runs") / "mae", find("mae")
    config = fill(RunConfig, {
        "method_name": "mae", "method": cls.Config(), "training": cls.recipe, "data": {}, "watch": {}, "seed": 1,
        "encoder": {"name": "vit_micro", "image_size": (16, 24), "width": 64, "depth": 1, "heads": 1, "patch_size": 4}})
    made = make_encoder(fill(RunConfig, {**vars(config), "seed": 2}), cls, 3)
    write_backbone(made, folder / "backbone", mean=(0.4,) * 3, std=(0.3,) * 3, info={"method": "mae"})
    write_config(folder, config)
    return folder


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(linear, "STEPS", 150)


def both(folder, *sides):
    return ["evaluate", folder, "--train", sides[0], "--test", sides[-1], *(x for name in DENSE for x in ("--protocol", name))]


def test_from_images_and_masks_to_numbers(run, data, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    out = main_ok(capsys, *both(folder, data))
    assert "the 12 images of its split train" in out and "the 8 images of its split val" in out
    rows = json.loads((folder / "evaluations.json").read_text())
    found = {(r["protocol"], r["metric"], r["backbone"]): r for r in rows}
    assert len(found) == len(rows) and {r["backbone"] for r in rows} == {"trained", "random", "pixels", "constant"}
    for r in rows:
        assert (r["version"], r["num_train"], r["num_test"], r["num_classes"], r["seed"]) == ("v1", 12, 8, 3, 0)
        assert r["data"] != r["test_data"] and "+" in r["data"] and (r["error"] is None) == r["metric"].startswith("threshold")
        assert bool(r["backbone_hash"]) == (r["backbone"] in ("trained", "random"))
    assert {r["width"] for r in rows} == {64, 48, 1} and len({r["backbone_hash"] for r in rows}) == 3

    def value(protocol, metric, backbone):
        return found[protocol, metric, backbone]["value"]

    assert value("segment", "mIoU", "pixels") > 0.97 and value("segment", "mIoU (bound of the grid)", "trained") == 1
    assert value("segment", "mIoU", "constant") <= 1 / 3 and value("segment", "pixel accuracy", "constant") == pytest.approx(1 / 3)
    assert value("segment", "mIoU", "random") > 0.6  # colours survive a layer
    assert value("patch-prompt", "mIoU, less mean", "pixels") > 0.97 and value("patch-prompt", "AUROC", "pixels") == 1
    for suffix in ("", ", less mean"):
        assert value("patch-prompt", f"mIoU{suffix}", "constant") == pytest.approx(1 / 3)
        assert value("patch-prompt", f"AUROC{suffix}", "constant") == 0.5
    assert value("patch-prompt", "mIoU", "trained") != value("patch-prompt", "mIoU", "random")
    line = next(line for line in out.splitlines() if "patch-prompt-v1 mIoU:" in line)
    assert "a constant 33.3% ± 0.0%" in line and "random weights" in line and "raw pixels" in line
    assert "threshold: 0." in out and "note: patch-prompt-v1 (a constant):" in out

    main_ok(capsys, "evaluate", folder, "--train", data, "--test", data, "--protocol", "rank-v1")
    after = json.loads((folder / "evaluations.json").read_text())
    assert [r for r in after if r["protocol"] != "rank"] == rows  # nothing of the other backbones is lost
    assert {r["num_train"] for r in after if r["protocol"] == "rank"} == {12}  # the split, as for patches
    main_ok(capsys, "compare", folder, folder)


def test_other_protocols_go_beside_and_the_same_call_gives_the_same_numbers(run, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    console = Console(quiet=True)
    known = dict(train=data / "train", test=data / "val", console=console)
    first = daybreak.evaluate(folder, protocols=["segment-v1", "rank-v1", "patch-prompt-v1"], **known)
    assert {r.protocol for r in first} == {"segment", "rank", "patch-prompt"}
    again = daybreak.evaluate(folder, protocols=["patch-prompt-v1"], **known)
    assert again == [r for r in first if r.protocol == "patch-prompt"]
    assert {r.test_data.rpartition("+")[2] for r in again} == {"4 x 6"}  # the grid decides what is an object


def test_which_classes_are_in_an_image_are_the_labels_of_multilabel(run, data, textures, tmp_path, capsys):
    """Class 5 is taken out of every second image, in training and test, and of class 9 less than 1 % is left."""
    shutil.copytree(data, tmp_path / "some")
    for split in ("train", "val"):
        for i in range(0, 8, 2):
            mask, image = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (
                tmp_path / f"some/{split}/masks/{i}.png", tmp_path / f"some/{split}/images/{i}.png"))
            image[mask != 2], mask[mask == 5] = COLOURS[2], 2
            mask[mask == 9] = 2
            mask[0, :15] = 9  # 15 of 1,536 pixels
            cv2.imwrite(str(tmp_path / f"some/{split}/masks/{i}.png"), mask)
            cv2.imwrite(str(tmp_path / f"some/{split}/images/{i}.png"), image)
    images = open_images(tmp_path / "some")
    labels = labels_of(open_masks(images))
    assert labels.kind == "multi" and labels.classes == ("class 2", "class 5", "class 9")
    emptied = np.array([int(key.split("/")[-1][:-4]) in range(0, 8, 2) for key in images.keys])
    np.testing.assert_array_equal(labels.values, np.stack([np.ones(20), ~emptied, ~emptied], 1))
    assert (labels_of(open_masks(images), 15 / 1536).values[:, 2] == 1).all()
    nothing = labels_of(replace(open_masks(images), values=(5, 7))).values  # all but class 5 is void
    assert np.isnan(nothing[emptied]).all() and (nothing[~emptied] == (1, 0)).all()

    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    out = main_ok(capsys, "evaluate", folder, "--train", tmp_path / "some", "--test", tmp_path / "some", "--protocol",
                  "multilabel-v1", "--protocol", "rank-v1", "--void", "2")
    assert "labels: the classes that cover 1 % of an image or more" in out
    rows = json.loads((folder / "evaluations.json").read_text())
    found = {r["metric"]: r for r in rows if r["protocol"] == "multilabel" and r["backbone"] == "trained"}
    assert found["mean AUC"]["value"] == 1 and "AUC (class 5)" in found and "+" in found["mean AUC"]["test_data"]
    random = next(r for r in rows if r["metric"] == "mean AUC" and r["backbone"] == "random")
    assert random["backbone_hash"] != found["mean AUC"]["backbone_hash"] and random["value"] > 0.5
    assert any(r["protocol"] == "rank" for r in rows)
    code, _, err = say(capsys, "evaluate", folder, "--train", textures, "--test", textures, "--protocol", "multilabel-v1")
    assert code == 2 and "one class an image; this protocol needs several labels an image" in err


def test_a_backbone_without_its_run_is_measured_without_random_weights(run, data, capsys, tmp_path):
    shutil.copytree(run / "backbone", tmp_path / "alone")
    out = main_ok(capsys, "evaluate", tmp_path / "alone", "--train", data, "--test", data, "--protocol", "segment-v1")
    assert "note: segment-v1: random weights are left out" in out and "raw pixels" in out


def test_bad_input_is_one_sentence(run, data, textures, tmp_path, capsys):
    code, _, err = say(capsys, *both(run, textures))
    assert code == 2 and "no masks in this folder" in err and err.count("\n") == 1
    code, _, err = say(capsys, *both(run, data), "--void", "2", "--void", "5")
    assert code == 2 and "one class only, 9, beside the void 2, 5" in err and err.count("\n") == 1
    code, _, err = say(capsys, "evaluate", run, "--train", data, "--test", data, "--protocol", "knn-v1", "--void", "2")
    assert code == 2 and "--void is read by segment-v1, patch-prompt-v1 and multilabel-v1 alone" in err
    shutil.copytree(data, tmp_path / "odd")
    cv2.imwrite(str(tmp_path / "odd/train/masks/3.png"), np.zeros((8, 8), np.uint8))
    code, _, err = say(capsys, *both(run, tmp_path / "odd"))
    assert code == 2 and "the mask of train/images/3.png has 8 x 8 pixels and its image 48 x 32" in err and err.count("\n") == 1
    broken = Encoder("vit_micro", image_size=(16, 24), patch_size=4, width=64, depth=1, heads=1)
    torch.nn.init.constant_(broken.model.norm.bias, torch.nan)
    write_backbone(broken, tmp_path / "broken", mean=(0.4,) * 3, std=(0.3,) * 3, info={})
    out = main_ok(capsys, "evaluate", tmp_path / "broken", "--train", data, "--test", data, "--protocol", "segment-v1")
    assert "(trained): 12 of 12 vectors of the patches of the training images are not finite" in out
    out = main_ok(capsys, "evaluate", run, "--train", data / "train", "--test", data / "train", "--protocol", "rank-v1")
    assert "note: 12 of 12 test images are training images too" in out
    write_backbone(Encoder("resnet10t", image_size=(32, 48)), tmp_path / "cnn", mean=(0.4,) * 3, std=(0.3,) * 3, info={})
    code, _, err = say(capsys, *both(tmp_path / "cnn", data))
    assert code == 2 and err == ("error: resnet10t is a CNN (ResNet) and has no patch tokens for segment-v1 and "
                                 "patch-prompt-v1; evaluate a run of a ViT, such as vit_mini.\n")
