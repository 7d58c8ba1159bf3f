"""Whatever holds images is found out, and gives the same keys, bytes, labels and splits in any container."""

import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from daybreak.data.decode import Unreadable
from daybreak.data.sources import open_source
from daybreak.data.tables import encoded
from daybreak.errors import Refused


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (5, 4), value).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, *names: str) -> Path:
    """Make a folder of images, each of its own grey level."""
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    return root


CLASSES = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.PNG")


def zipped(folder: Path, method: int = zipfile.ZIP_STORED, wrapper: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, wrapper + file.relative_to(folder).as_posix())
    return path


def tarred(folder: Path, mode: str = "w") -> Path:
    path = folder.with_suffix(".tar" + mode[1:].replace(":", "."))
    with tarfile.open(path, mode) as archive:
        archive.add(folder, "wrapped")
    return path


@pytest.mark.parametrize(
    "pack",
    [
        lambda folder: folder,
        zipped,
        lambda folder: zipped(folder, zipfile.ZIP_DEFLATED, wrapper="photos/"),
        tarred,
        lambda folder: tarred(folder, "w:gz"),
        lambda folder: tarred(folder, "w:xz"),
    ],
    ids=["folder", "zip", "deflated zip in a wrapper", "tar", "tar.gz", "tar.xz"],
)
def test_a_folder_and_its_archives_are_the_same(tmp_path, pack):
    folder = write(tmp_path / "set", *CLASSES)
    (folder / "cat" / "notes.txt").write_text("not an image")
    (folder / ".cat.png").write_text("hidden")
    source = open_source(pack(folder))
    assert source.keys == list(CLASSES)
    assert [source.read(i).tobytes() for i in range(4)] == [png(value) for value in range(4)]
    found = source.labels["folder"]
    assert source.label == "folder" and found.kind == "class" and found.classes == ("cat", "dog")
    assert found.values.tolist() == [0, 0, 1, 1] and source.splits is None


@pytest.mark.parametrize(
    "names, is_classes",
    [
        (("a.png", "b.png"), False),
        (("cat/a.png", "cat/b.png"), False),
        (("cat/a.png", "dog/b.png", "c.png"), False),
        (("cat/a.png", "dog/old/b.png"), False),
        (("train/cat/a.png", "test/dog/b.png"), True),
        (("train/a.png", "test/b.png"), False),
        (("train/a.png", "other/b.png"), True),  # a class of trains
    ],
)
def test_folders_are_classes_only_where_every_image_lies_in_one(tmp_path, names, is_classes):
    assert ("folder" in open_source(write(tmp_path, *names)).labels) == is_classes


def test_top_folders_are_splits(tmp_path):
    source = open_source(write(tmp_path, "test/cat/a.png", "train/cat/b.png", "train/dog/c.png", "val/dog/d.png"))
    assert source.splits == ["test", "train", "train", "val"]
    assert source.labels["folder"].values.tolist() == [0, 0, 1, 1]
    assert open_source(write(tmp_path / "2", "train/a.png", "extra/b.png")).splits is None
    assert open_source(write(tmp_path / "3", "train/cat/a.png", "train/dog/b.png")).splits == ["train"] * 2


def test_masks_beside_images_are_left_out(tmp_path):
    names = open_source(write(tmp_path, "train/images/a.png", "train/masks/a.png", "val/images/b.png")).keys
    assert names == ["train/images/a.png", "val/images/b.png"]
    assert len(open_source(write(tmp_path / "2", "masks/a.png", "hats/b.png"))) == 2


def test_linked_folders_are_followed_once(tmp_path):
    folder = write(tmp_path / "set", "cat/a.png", "dog/b.png")
    write(tmp_path / "elsewhere", "c.png")
    os.symlink(tmp_path / "elsewhere", folder / "owl")
    os.symlink(folder, folder / "dog" / "again")
    assert open_source(folder).keys == ["cat/a.png", "dog/b.png", "owl/c.png"]


def test_a_file_that_vanished_is_unreadable(tmp_path):
    source = open_source(write(tmp_path, "a.png", "b.png"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(Unreadable, match="No such file"):
        source.read(0)


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png", "..\\a.png", "C:\\a.png"])
def test_members_outside_the_archive_are_refused_by_name(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(name, png(0))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(png(0))
        archive.addfile(member, io.BytesIO(png(0)))
    for path in (tmp_path / "x.zip", tmp_path / "x.tar"):
        with pytest.raises(Refused, match="outside") as refusal:
            open_source(path)
        assert name in str(refusal.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_archives_are_refused_by_name(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(Refused, match="'a.png' is a link"):
        open_source(tmp_path / "x.tar")


def test_archives_that_cannot_be_read_are_refused(tmp_path):
    folder = write(tmp_path / "set", *CLASSES)
    with pytest.raises(Refused, match="method 12"):
        open_source(zipped(folder, zipfile.ZIP_BZIP2))
    cut = tmp_path / "cut.zip"
    cut.write_bytes(zipped(folder).read_bytes()[:-30])
    with pytest.raises(Refused, match="damaged"):
        open_source(cut)
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(tarred(folder, "w:gz").read_bytes()[:-30])
    with pytest.raises(Refused):
        open_source(cut)


def test_archives_can_be_read_from_many_threads(tmp_path):
    names = [f"{i}.png" for i in range(100)]
    folder = write(tmp_path / "set", *sorted(names))
    for path in (zipped(folder, zipfile.ZIP_DEFLATED), tarred(folder)):
        source = open_source(path)
        with ThreadPoolExecutor(8) as pool:
            read = [data.tobytes() for data in pool.map(source.read, [i % 100 for i in range(800)])]
        assert read == [png(i % 100) for i in range(800)]


def test_extra_fields_in_a_zip_are_stepped_over(tmp_path):
    member = zipfile.ZipInfo("a.png")
    member.extra = b"\xca\xfe\4\0abcd"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(member, png(7))
    assert open_source(tmp_path / "x.zip").read(0).tobytes() == png(7)


def test_a_list_gives_labels_groups_and_splits(tmp_path):
    write(tmp_path, "x/a.png", "x/b.png", "c.png", "d.png")
    (tmp_path / "list.csv").write_text(
        "path,label,patient,split,age,cough,fever\n"
        "x/a.png,ill,7,train,30.5,1,0\nx/b.png,well,7,train,,0,-1\nc.png,,8,test,41,,1\nd.png,well,9,val,2,0,0\n"
    )
    source = open_source(tmp_path / "list.csv", group="patient")
    assert source.kind == "list" and source.keys == ["x/a.png", "x/b.png", "c.png", "d.png"]
    assert source.read(1).tobytes() == png(1)
    assert source.groups == ["7", "7", "8", "9"] and source.splits == ["train", "train", "test", "val"]
    assert set(source.labels) == {"label", "age", "cough", "fever", "labels"} and source.label == "label"
    assert source.labels["label"].classes == ("ill", "well")
    assert source.labels["label"].values.tolist() == [0, 1, -1, 1]
    assert source.labels["age"].kind == "value" and np.isnan(source.labels["age"].values[1])
    many = source.labels["labels"]
    assert many.kind == "multi" and many.classes == ("cough", "fever")
    np.testing.assert_array_equal(many.values, [[1, 0], [0, np.nan], [np.nan, 1], [0, 0]])
    assert open_source(tmp_path / "list.csv", label="cough").labels["cough"].values.tolist() == [1, 0, -1, 0]


def test_columns_that_are_missing_are_refused_with_the_nearest(tmp_path):
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "list.csv").write_text("path,animal\na.png,cat\nb.png,dog\n")
    with pytest.raises(Refused, match="did you mean 'animal'"):
        open_source(tmp_path / "list.csv", label="animals")
    with pytest.raises(Refused, match="did you mean 'animal'"):
        open_source(tmp_path / "list.csv", group="animall")
    with pytest.raises(Refused, match="leave --label out"):
        open_source(write(tmp_path / "flat", "a.png"), label="animal")
    with pytest.raises(Refused, match="no columns"):
        open_source(tmp_path / "flat", group="patient")


HUGGING_FACE = {
    b"huggingface": b'{"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel",'
    b' "names": ["cat", "dog", "owl"]}}}}'
}


def table() -> pa.Table:
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(4)]
    made = pa.table({"image": images, "label": pa.array([1, 0, None, 2], pa.int64())})
    return made.replace_schema_metadata(HUGGING_FACE)


def write_arrow(made: pa.Table, path: Path, new) -> Path:
    with new(str(path), made.schema) as writer:
        writer.write_table(made, max_chunksize=3)
    return path


@pytest.mark.parametrize("form", ["parquet", "file", "stream", "slices"])
def test_tables_of_encoded_images(tmp_path, form):
    if form == "parquet":
        pq.write_table(table(), tmp_path / "t.parquet", row_group_size=3)
        source = open_source(tmp_path / "t.parquet")
    else:
        made = table() if form != "slices" else pa.concat_tables([table().slice(0, 1), table().slice(1)])
        source = open_source(write_arrow(made, tmp_path / "t.arrow", pa.ipc.new_stream if form == "stream" else pa.ipc.new_file))
    assert source.keys == [f"{i}.png" for i in range(4)]
    assert [source.read(i).tobytes() for i in range(4)] == [png(i) for i in range(4)]
    assert source.labels["label"].classes == ("cat", "dog", "owl")
    assert source.labels["label"].values.tolist() == [1, 0, -1, 2]


def test_a_column_that_is_part_of_another_is_read_from_its_own_rows(tmp_path):
    read, keys = encoded(table()["image"].slice(1, 2), tmp_path)
    assert keys == ["1.png", "2.png"] and [read(i).tobytes() for i in range(2)] == [png(1), png(2)]


def test_a_binary_column_and_a_row_without_bytes(tmp_path):
    pq.write_table(pa.table({"picture": pa.array([png(0), None, png(2)], pa.binary())}), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert source.keys == ["00000000", "00000001", "00000002"] and source.read(2).tobytes() == png(2)
    with pytest.raises(Unreadable, match="no bytes"):
        source.read(1)


def test_shards_in_a_folder_are_one_table_with_splits(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table(), tmp_path / "data" / f"{name}.parquet")
    source = open_source(tmp_path)
    assert len(source) == 12 and source.splits == ["test"] * 4 + ["train"] * 8
    assert source.read(9).tobytes() == png(1)


def test_what_datasets_saved_is_opened(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "owl"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": [1, 0, 2, 0]}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": made, "test": made.select([3, 1])}).save_to_disk(tmp_path / "two")
    one, two = open_source(tmp_path / "one"), open_source(tmp_path / "two")
    assert one.kind == "saved" and [one.read(i).tobytes() for i in range(4)] == [png(i) for i in range(4)]
    assert one.labels["label"].classes == ("cat", "dog", "owl") and one.labels["label"].values.tolist() == [1, 0, 2, 0]
    assert two.splits == ["train"] * 4 + ["test"] * 2 and two.read(4).tobytes() == png(3)


def test_a_name_for_each_row_is_no_label(tmp_path):
    rows = "".join(f"{i}.png,id{i},{'even' if i % 2 == 0 else 'odd'}\n" for i in range(30))
    (tmp_path / "list.csv").write_text("path,name,parity\n" + rows)
    assert open_source(tmp_path / "list.csv").label == "parity"


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda p: p / "photo", "did you mean 'photos'"),
        (lambda p: p / "empty", "no images in this folder"),
        (lambda p: write(p, "photos/a.png") / "photos" / "a.png", "one image"),
        (lambda p: p / "words.txt", "neither a folder"),
        (lambda p: p / "words.csv", "no column holds images"),
        (lambda p: p / "words.parquet", "can't be read as a table"),
    ],
)
def test_what_holds_no_images_is_refused_in_one_sentence(tmp_path, make, said):
    write(tmp_path, "photos/a.png")
    (tmp_path / "empty").mkdir()
    for name in ("words.txt", "words.csv", "words.parquet"):
        (tmp_path / name).write_text("a,b\n1,x\n")
    with pytest.raises(Refused, match=said) as refusal:
        open_source(make(tmp_path))
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "name, count, classes", [("animals-val.parquet", 1940, 10), ("xray-covid.zip", 1124, 3), ("photos-100.zip", 100, 100)]
)
def test_real_sets(shared, name, count, classes):
    source = open_source(shared(name))
    assert len(source) == count and len(source.labels[source.label].classes) == classes
