"""What the evaluate command says of data that can't be judged: one sentence and code 2, or a note beside the numbers."""

import csv

import cv2
import numpy as np
import pytest
import torch
from test_run import main_ok, say

from daybreak.export.backbone import write_backbone
from daybreak.nn.encoder import Encoder

PROTOCOLS = ("knn-v1", "linear-v1", "logistic-v1", "fewshot-v1", "nearest-mean-v1", "retrieval-v1", "finetune-v1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Twelve images and a random backbone."""
    folder, random = tmp_path_factory.mktemp("refusals"), np.random.default_rng(0)
    for i in range(12):
        cv2.imwrite(str(folder / f"{i}.png"), random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return folder


def backbone(folder, name: str, bias: float = 0.0):
    encoder = Encoder("vit_micro", image_size=(16, 16), patch_size=4, width=64, depth=1, heads=1)
    torch.nn.init.constant_(encoder.model.norm.bias, bias)
    write_backbone(encoder, folder / name, mean=(0.5,) * 3, std=(0.3,) * 3, info={})
    return folder / name


def listed(folder, name: str, labels):
    """A list of the first images with these labels."""
    with open(folder / name, "w", newline="") as file:
        csv.writer(file).writerows([("path", "kind"), *((f"{i}.png", label) for i, label in enumerate(labels))])
    return folder / name


def asked(capsys, run, train, test, *protocols: str):
    return say(capsys, "evaluate", run, "--train", train, "--test", test, "--label", "kind",
               *(word for name in protocols for word in ("--protocol", name)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_classes_and_one_class_only_are_one_sentence(place, capsys, protocol):
    run, pets = backbone(place, "run"), listed(place, "pets.csv", ["cat", "dog"] * 6)
    code, _, err = asked(capsys, run, pets, listed(place, "farm.csv", ["cow", "yak"] * 6), protocol)
    assert code == 2 and err.count("\n") == 1, err
    assert "No class of the queries (cow, yak) is in the bank (cat, dog); give the same label column for both." in err
    code, _, err = asked(capsys, run, listed(place, "cats.csv", ["cat"] * 12), pets, protocol)
    assert code == 2 and err.count("\n") == 1 and "The bank holds one class only, cat; 2 are needed." in err


def test_fewer_images_than_neighbours_are_a_note(place, capsys):
    pets = listed(place, "pets.csv", ["cat", "dog"] * 6)
    out = main_ok(capsys, "evaluate", backbone(place, "few"), "--train", pets, "--test", pets, "--label", "kind", "--protocol",
                  "knn-v1")
    assert "note: knn-v1: the bank has 12 images, fewer than k = 20; all of them vote." in out and "knn-v1 accuracy" in out


def test_vectors_that_are_not_finite_are_one_sentence(place, capsys):
    pets = listed(place, "pets.csv", ["cat", "dog"] * 6)
    code, _, err = asked(capsys, backbone(place, "broken", float("nan")), pets, pets, *PROTOCOLS[:-1])
    assert code == 2 and err.count("\n") == 1
    assert "12 of 12 vectors of the bank are not finite (the first is that of image 0, from 0)" in err
    code, _, err = asked(capsys, place / "broken", pets, pets, PROTOCOLS[-1])
    assert code == 1 and err.count("\n") == 1 and "the loss of finetune-v1 is nan" in err


def test_patients_on_both_sides_are_said(place, capsys):
    run = backbone(place, "patients")
    for name, rows in (("before.csv", range(0, 8)), ("after.csv", range(4, 12))):
        with open(place / name, "w", newline="") as file:
            csv.writer(file).writerows([("path", "kind", "patient"), *((f"{i}.png", f"kind {i % 2}", i // 3) for i in rows)])
    known = ["evaluate", run, "--label", "kind", "--protocol", "knn-v1", "--group", "patient"]
    out = main_ok(capsys, *known, "--train", place / "before.csv", "--test", place / "after.csv")
    assert "note: 5 of 8 test images are of groups that are in the training images too." in out  # patients 1 and 2: images 4 to 8
    assert "of groups" not in main_ok(capsys, *known[:-2], "--train", place / "before.csv", "--test", place / "after.csv")
