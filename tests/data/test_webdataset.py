"""WebDataset's tars give each sample once, with its bytes, labels, group and split, and nothing is unpacked."""

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daybreak.data import webdataset
from daybreak.data.images import open_images, split_images
from daybreak.data.sources import open_source
from daybreak.errors import Refused


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (5, 4), value).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path: Path, **members: bytes | str) -> Path:
    """Write a tar; in the names of members "__" stands for a dot and "___" for a slash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            content = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name.replace("___", "/").replace("__", "."))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_names_are_cut_at_the_first_dot_of_the_last_part():
    assert webdataset.cut("a.b/0001.seg.png") == ("a.b/0001", "seg.png")
    assert webdataset.cut("0001.jpg") == ("0001", "jpg") and webdataset.cut("0001") == ("0001", "")


def test_a_tar_of_samples_is_told_by_what_stands_beside_its_pictures(tmp_path):
    source = open_source(tar(tmp_path / "x.tar", b__png=png(1), b__cls="dog", a__png=png(0), a__cls=" cat\n", c__png=png(2)))
    assert source.kind == "webdataset" and source.keys == ["a", "b", "c"]
    assert [source.read(i).tobytes() for i in range(3)] == [png(i) for i in range(3)]
    assert source.label == "cls" and source.labels["cls"].classes == ("cat", "dog")
    assert source.labels["cls"].values.tolist() == [0, 1, -1]
    plain = open_source(tar(tmp_path / "y.tar", a__png=png(0), b__png=png(1), annotations__json="[]"))
    assert plain.kind == "tar" and plain.keys == ["a.png", "b.png"]


def test_indices_of_classes_are_ordered_as_numbers(tmp_path):
    pictures = {f"s{i}__png": png(i) for i in range(3)}
    source = open_source(tar(tmp_path / "x.tar", **pictures, s0__cls="10", s1__cls="2", s2__cls="10"))
    assert source.labels["cls"].classes == ("2", "10") and source.labels["cls"].values.tolist() == [1, 0, 1]


def test_fields_of_json_are_columns(tmp_path):
    rows = [{"species": "owl", "patient": "007", "age": 3.5, "boxes": [1, 2], "split": "train"},
            {"species": "cat", "patient": "7", "split": "val"}, {"patient": "7", "age": 1, "split": "val"}]
    members = {f"s{i}__png": png(i) for i in range(3)} | {f"s{i}__json": json.dumps(row) for i, row in enumerate(rows)}
    source = open_source(tar(tmp_path / "x.tar", **members), group="patient", label="species")
    assert source.groups == ["007", "7", "7"] and source.splits == ["train", "val", "val"]
    assert set(source.labels) == {"species", "age"} and source.labels["species"].classes == ("cat", "owl")
    assert source.labels["species"].values.tolist() == [1, 0, -1]
    np.testing.assert_array_equal(source.labels["age"].values, [3.5, np.nan, 1])
    with pytest.raises(Refused, match="did you mean 'patient'"):
        open_source(tmp_path / "x.tar", group="patients")


def test_a_field_of_several_kinds_is_text(tmp_path):
    members = {"a__png": png(0), "b__png": png(1), "a__json": '{"y": 1}', "b__json": '{"y": "one"}'}
    assert open_source(tar(tmp_path / "x.tar", **members)).labels["y"].classes == ("1", "one")


def test_broken_json_is_refused_by_name(tmp_path):
    with pytest.raises(Refused, match="x/b.json is not valid JSON"):
        open_source(tar(tmp_path / "x.tar", a__png=png(0), a__json="{}", b__png=png(1), b__json='{"cls": 1'))


def test_a_folder_of_shards_has_the_shard_in_its_keys_where_stems_repeat(tmp_path):
    for i, name in enumerate(("test-000000", "train-000000", "train-000001")):
        tar(tmp_path / "a" / f"{name}.tar", s__png=png(i), s__cls="ab"[i % 2])
    source = open_source(tmp_path / "a")
    assert source.keys == ["test-000000/s", "train-000000/s", "train-000001/s"]
    assert source.splits == ["test", "train", "train"] and source.labels["cls"].values.tolist() == [0, 1, 0]
    assert [source.read(i).tobytes() for i in range(3)] == [png(i) for i in range(3)]
    tar(tmp_path / "b" / "one.tar", s__png=png(0), s__cls="a")
    tar(tmp_path / "b" / "two.tar", t__png=png(1), t__cls="b")
    assert open_source(tmp_path / "b").keys == ["s", "t"] and open_source(tmp_path / "b").splits is None


def test_numbered_shards_are_named_by_braces(tmp_path):
    for i in range(8, 11):
        tar(tmp_path / f"train-{i:06d}.tar", **{f"s{i}__png": png(i), f"s{i}__cls": "a"})
    source = open_source(tmp_path / "train-{000008..000010}.tar")
    assert source.keys == ["s8", "s9", "s10"] and source.read(2).tobytes() == png(10)
    with pytest.raises(Refused, match=r"2 of its 5 shards are not there \(train-000006.tar, train-000007.tar\)"):
        open_source(tmp_path / "train-{000006..000010}.tar")


def test_shards_are_mapped_a_few_at_a_time_from_many_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "OPEN", 2)
    for i in range(6):
        tar(tmp_path / f"{i}.tar", **{f"s{i}{j}__png": png(10 * i + j) for j in range(4)}, **{f"s{i}0__cls": "a"})
    source = open_source(tmp_path)
    assert len(source) == 24
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, [i * 7 % 24 for i in range(480)]))
    assert [data.tobytes() for data in read] == [png(10 * (i // 4) + i % 4) for i in (i * 7 % 24 for i in range(480))]
    assert not any(data.flags.owndata or data.flags.writeable for data in read)


def test_a_longer_extension_is_no_image_where_there_is_a_shorter(tmp_path):
    pair = {"b__left__png": png(1), "b__right__png": png(2)}
    source = open_source(tar(tmp_path / "x.tar", a__png=png(0), a__mask__png=png(9), a__cls="c", **pair))
    assert source.keys == ["a", "b.left.png", "b.right.png"]
    assert [source.read(i).tobytes() for i in range(3)] == [png(i) for i in range(3)]
    two = open_source(tar(tmp_path / "y.tar", a__png=png(0), a__PNG=png(1), a__cls="c"))
    assert sorted(two.keys) == ["a.PNG", "a.png"] and two.labels["cls"].values.tolist() == [0, 0]


def test_without_labels_the_folders_in_stems_are_classes(tmp_path):
    tar(tmp_path / "0.tar", cat___1__png=png(0), dog___1__png=png(1))
    tar(tmp_path / "1.tar", cat___2__png=png(2))
    source = open_source(tmp_path)
    assert source.keys == ["cat/1", "dog/1", "cat/2"] and source.label == "folder"
    assert source.labels["folder"].values.tolist() == [0, 1, 0]


def test_shards_with_links_ways_out_or_damage_are_refused_by_name(tmp_path):
    (tmp_path / "out").mkdir()
    with tarfile.open(tmp_path / "out" / "0.tar", "w") as archive:
        member = tarfile.TarInfo("../up.png")
        member.size = len(png(0))
        archive.addfile(member, io.BytesIO(png(0)))
    with pytest.raises(Refused, match="0.tar: the member '../up.png' points outside"):
        open_source(tmp_path / "out")
    whole = tar(tmp_path / "cut" / "0.tar", a__png=png(0), a__cls="a", b__png=png(1)).read_bytes()
    (tmp_path / "cut" / "0.tar").write_bytes(whole[:1600])
    with pytest.raises(Refused, match="0.tar: a damaged tar file"):
        open_source(tmp_path / "cut")


def test_groups_of_samples_stay_whole(tmp_path):
    members = {}
    for i in range(60):
        members |= {f"s{i:02d}__png": png(i), f"s{i:02d}__json": json.dumps({"group": f"p{i % 12}", "label": i % 2})}
    split = split_images(open_images(tar(tmp_path / "x.tar", **members)))
    assert len(split.bank) + len(split.queries) == 60 and len(split.queries)
    assert not set(split.bank.groups) & set(split.queries.groups)
