"""Chosen images stay aligned with their labels, groups and sizes, and splits share nobody."""

import numpy as np
import pytest
from PIL import Image

from daybreak.data.images import open_images, split_images
from daybreak.errors import Refused


def write(root, names, mode="RGB"):
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (6 + value % 3, 5), (value, 2, 9) if mode == "RGB" else value).save(root / name)
    return root


def listed(root, count=200, groups=20, extra=""):
    write(root, [f"{i}.png" for i in range(count)])
    rows = "".join(f"{i}.png,{'ab'[i % 2]},p{i % groups}\n" for i in range(count))
    (root / "list.csv").write_text("path,label,group\n" + rows + extra)
    return root / "list.csv"


def test_bad_images_are_left_out_and_all_stays_aligned(tmp_path):
    write(tmp_path, [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(20)])
    (tmp_path / "cat" / "0.png").write_bytes(b"no")
    images = open_images(tmp_path)
    assert len(images) == 39 == len(images.keys) == len(images.sizes) == len(images.labels.values)
    for i in (0, 20, 38):
        assert images.labels.classes[images.labels.values[i]] == images.keys[i].split("/")[0]
        assert images.decode(i).shape[:2] == tuple(images.sizes[i])
    part = images.subset([5, 1]).subset([1])
    assert part.keys == [images.keys[1]] and part.labels.values.tolist() == [images.labels.values[1]]
    assert (part.decode(0) == images.decode(1)).all() and part.fingerprint == images.fingerprint


def test_images_of_the_first_split_there_is(tmp_path):
    names = [f"{split}/{kind}/{i}.png" for split in ("train", "test") for kind in "ab" for i in range(3)]
    images = open_images(write(tmp_path, names))
    assert images.of_split("train").splits == ["train"] * 6 and images.of_split("val", "test").splits == ["test"] * 6
    assert images.of_split("val") is images and images.of_split("test").labels.values.tolist() == [0, 0, 0, 1, 1, 1]


def test_without_splits_a_fixed_tenth_is_the_queries(tmp_path):
    split = split_images(open_images(write(tmp_path, [f"{i}.png" for i in range(300)])))
    assert split.seen and len(split.train) == 300 and 15 <= len(split.queries) <= 45
    assert sorted(split.bank.keys + split.queries.keys) == sorted(split.train.keys)
    # What is a query depends on the key alone: more images move none from one side to the other.
    more = split_images(open_images(write(tmp_path, [f"{i}.png" for i in range(330)])))
    assert set(split.queries.keys) <= set(more.queries.keys) and set(split.bank.keys) <= set(more.bank.keys)


def test_no_group_stands_on_both_sides(tmp_path):
    split = split_images(open_images(listed(tmp_path)))
    assert set(split.queries.groups) and not set(split.queries.groups) & set(split.bank.groups)


def test_groups_on_both_sides_of_given_splits_are_refused(tmp_path):
    write(tmp_path, [f"{i}.png" for i in range(8)])
    rows = [f"{i}.png,{'ab'[i % 2]},p{i // 2},{'train' if i < 4 else 'val'}" for i in range(8)]
    (tmp_path / "list.csv").write_text("path,label,patient,split\n" + "\n".join(rows) + "\n")
    split = split_images(open_images(tmp_path / "list.csv", group="patient"))
    assert split.bank.groups == ["p0", "p0", "p1", "p1"] and split.queries.groups == ["p2", "p2", "p3", "p3"]
    rows[4] = rows[4].replace("p2", "p1")
    (tmp_path / "list.csv").write_text("path,label,patient,split\n" + "\n".join(rows) + "\n")
    images = open_images(tmp_path / "list.csv", group="patient")
    with pytest.raises(Refused, match="1 of its groups, such as p1, stand both"):
        split_images(images)
    with pytest.raises(Refused, match="1 of its groups, such as p1, stand both"):
        split_images(images, images.subset([4, 5, 6, 7]))
    assert not split_images(open_images(tmp_path / "list.csv")).seen  # nobody asked for groups


@pytest.mark.parametrize("count, groups", [(1, 1), (2, 2), (3, 3), (12, 1), (12, 2)])
def test_small_sets_have_two_sides(tmp_path, count, groups):
    split = split_images(open_images(listed(tmp_path, count, groups)))
    assert len(split.queries) >= 1 and len(split.bank) >= (count > 1)
    assert len(split.queries) + len(split.bank) == count or count == 1


def test_split_folders_are_obeyed(tmp_path):
    names = [f"{split}/{name}/{i}.png" for split in ("train", "val", "test") for name in ("cat", "dog") for i in range(3)]
    split = split_images(open_images(write(tmp_path, names)))
    assert not split.seen and split.train is split.bank
    assert {key.split("/")[0] for key in split.train.keys} == {"train"}
    assert {key.split("/")[0] for key in split.queries.keys} == {"val"}
    two = split_images(open_images(write(tmp_path / "2", [n for n in names if "val" not in n])))
    assert {key.split("/")[0] for key in two.queries.keys} == {"test"}
    alone = split_images(open_images(write(tmp_path / "3", [n for n in names if n.startswith("train")])))
    assert alone.seen and len(alone.train) == 6


def test_other_images_are_the_queries_with_our_classes(tmp_path):
    ours = open_images(write(tmp_path / "a", ["cat/1.png", "dog/1.png", "owl/1.png"]))
    theirs = open_images(write(tmp_path / "b", ["ant/1.png", "dog/1.png", "owl/1.png"]))
    split = split_images(ours, theirs)
    assert not split.seen and len(split.train) == 3 and split.queries.keys == theirs.keys
    assert split.queries.labels.classes == ("cat", "dog", "owl") and split.queries.labels.values.tolist() == [-1, 1, 2]
    with pytest.raises(Refused, match="none of those"):
        split_images(ours, open_images(write(tmp_path / "c", ["ant/1.png", "bee/1.png"])))
    with pytest.raises(Refused, match="--channels 3"):
        split_images(ours, open_images(write(tmp_path / "d", ["cat/1.png", "dog/1.png"], "L")))


def test_sixteen_bits_reach_the_pixels(tmp_path):
    values = np.arange(0, 60000, 5000, dtype=np.uint16).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "a.png")
    images = open_images(tmp_path)
    assert images.depth == 16 and (images.decode(0)[:, :, 0] == values).all()


def test_real_images_are_surveyed_whole(shared):
    images = open_images(shared("xray-covid.zip"))
    assert len(images) == 1124 and images.channels == 1 and images.sizes.max() == 320
    split = split_images(images)
    assert len(split.train) + len(split.queries) == 1124 and not split.seen
