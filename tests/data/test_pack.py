"""A pack gives back what its source held, in the same bytes whatever happened while it was written."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from daybreak.cli import main
from daybreak.data import images as images_module
from daybreak.data import pack as module
from daybreak.data.decode import decode, probe, resize
from daybreak.data.encode import PackSettings, encode
from daybreak.data.images import open_images
from daybreak.data.pack import write_pack
from daybreak.data.sources import open_source
from daybreak.data.store import stored_survey, verify_pack
from daybreak.data.survey import Survey, survey
from daybreak.errors import Failed, Refused

KEEP = {"short_side": None}


def blur(random: np.random.Generator, height: int, width: int, bands: int = 3, top: int = 255) -> np.ndarray:
    """Noise with some shape to it, so that a JPEG of it is near it."""
    small = random.uniform(0, top, (4, 5, bands)).astype(np.float32)
    image = resize(small, height, width) + random.uniform(0, top / 20, (height, width, bands))
    return image.clip(0, top).astype(np.uint8 if top == 255 else np.uint16)


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """15 images in 2 classes: each form that a camera, a scanner or a web page gives."""
    root, random = tmp_path_factory.mktemp("odd"), np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6

    def save(name: str, image: np.ndarray, mode: str | None = None, **options) -> None:
        (root / name).parent.mkdir(exist_ok=True)
        made = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        (made.convert(mode) if mode else made).save(root / name, **options)

    save("cat/large.jpg", blur(random, 300, 400))
    save("cat/turned.jpg", blur(random, 280, 320), exif=turned)
    save("cat/small.png", blur(random, 20, 30))
    save("cat/alpha.png", blur(random, 270, 290, 4))
    save("cat/small_alpha.png", blur(random, 20, 20), "LA")
    save("cat/long.jpg", blur(random, 40, 500, 1))
    save("cat/cmyk.jpg", blur(random, 80, 90), "CMYK")
    save("cat/small_turned.jpg", blur(random, 32, 40), exif=turned)
    save("dog/deep.png", blur(random, 300, 260, 1, 65535))
    save("dog/small_deep.png", blur(random, 12, 10, 1, 65535))
    save("dog/palette.gif", blur(random, 30, 30), "P")
    save("dog/web.webp", blur(random, 70, 70))
    save("dog/windows.bmp", blur(random, 90, 70))
    deep, colour = blur(random, 10, 12, 1, 65535), blur(random, 9, 7, 3, 65535)
    (root / "dog/deep.pgm").write_bytes(b"P5\n12 10\n65535\n" + deep.astype(">u2").tobytes())
    (root / "dog/deep.ppm").write_bytes(b"P6\n7 9\n65535\n" + colour.astype(">u2").tobytes())
    return root


@pytest.fixture
def noise(tmp_path) -> Path:
    """40 images, of which two can't be read."""
    random = np.random.default_rng(1)
    for i in range(40):
        path = tmp_path / "noise" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(blur(random, 70 + i, 80)).save(path)
    (tmp_path / "noise" / "05.png").write_bytes(b"<html>")
    (tmp_path / "noise" / "33.png").write_bytes((tmp_path / "noise" / "34.png").read_bytes()[:-30])
    return tmp_path / "noise"


def pack(data: Path, out: Path, *, label=None, group=None, max_bad=0.1, workers=2, progress=lambda done, total: None, **settings):
    source = open_source(data, label=label, group=group)
    return write_pack(source, out, PackSettings(**settings), max_bad=max_bad, workers=workers, progress=progress)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same_labels(one, other) -> bool:
    return (one.kind, one.classes) == (other.kind, other.classes) and np.array_equal(one.values, other.values, equal_nan=True)


def test_keep_gives_back_every_key_label_and_byte(tmp_path, odd):
    told = pack(odd, tmp_path / "out", **KEEP)
    assert (told.images, told.left_out, told.shards) == (15, 0, 1)
    source, packed = open_source(odd), open_source(tmp_path / "out")
    assert packed.kind == "saved" and packed.keys == source.keys and packed.label == "label"
    assert same_labels(packed.labels["label"], source.labels["folder"]) and packed.groups is None and packed.splits is None
    assert [packed.read(i).tobytes() for i in range(15)] == [(odd / key).read_bytes() for key in source.keys]


@pytest.mark.parametrize("settings", [KEEP, KEEP | {"encoding": "raw"}, KEEP | {"encoding": "lossless"}])
def test_a_run_on_a_pack_sees_the_pixels_of_the_source(tmp_path, odd, settings):
    pack(odd, tmp_path / "out", **settings)
    ours, theirs = open_images(tmp_path / "out"), open_images(odd)
    assert ours.sizes.tolist() == theirs.sizes.tolist() and (ours.channels, ours.depth) == (theirs.channels, theirs.depth)
    assert all(np.array_equal(ours.decode(i), theirs.decode(i)) for i in range(15))
    assert (ours.mean, ours.std) == (theirs.mean, theirs.std)


PACKED = {  # with short side 256: format, height, width of what is packed; None where the file keeps its bytes
    "cat/large.jpg": ("jpeg", 256, 341), "cat/turned.jpg": ("jpeg", 293, 256), "cat/small.png": ("pnm", 20, 30),
    "cat/alpha.png": ("png", 256, 275), "cat/small_alpha.png": None, "cat/long.jpg": None, "cat/cmyk.jpg": None,
    "cat/small_turned.jpg": ("pnm", 40, 32), "dog/deep.png": ("png", 295, 256), "dog/small_deep.png": ("pnm", 12, 10),
    "dog/palette.gif": ("pnm", 30, 30), "dog/web.webp": None, "dog/windows.bmp": None, "dog/deep.pgm": None,
    "dog/deep.ppm": None,
}


@pytest.mark.parametrize("name", PACKED)
def test_only_larger_images_are_encoded_again(odd, name):
    data = np.fromfile(odd / name, np.uint8)
    packed, header = encode(data, PackSettings()), probe(data)
    if PACKED[name] is None:
        assert packed is data
        return
    found = probe(packed)
    assert (found.format, found.height, found.width) == PACKED[name] and found.orientation == 1
    assert (found.channels == 4) == (header.channels in (2, 4)) and found.depth == header.depth
    how = {"channels": header.channels, "depth": header.depth}
    ours, theirs = decode(packed, **how), resize(decode(data, **how), found.height, found.width)
    if found.format == "jpeg":
        assert 0 < np.abs(ours.astype(int) - theirs).mean() < 6
    else:
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("encoding, plain", [("jpeg", "jpeg"), ("raw", "pnm"), ("lossless", "png")])
def test_an_encoding_is_that_of_all_images_it_can_hold(odd, encoding, plain):
    for path in sorted(odd.rglob("*.*")):
        data = np.fromfile(path, np.uint8)
        packed, header = encode(data, PackSettings(short_side=None, encoding=encoding)), probe(data)
        is_deep = header.channels == 1 and header.depth == 16
        held = probe(packed)
        assert held.format == ("png" if header.channels in (2, 4) or (is_deep and encoding == "jpeg") else plain), path
        assert held.depth == 16 if is_deep else (packed is data or held.depth == 8)
        assert (packed is data) == (held.format == header.format), path


def test_quality_is_that_of_the_jpeg(odd):
    data = np.fromfile(odd / "cat/large.jpg", np.uint8)
    assert len(encode(data, PackSettings(quality=30))) < len(encode(data, PackSettings()))


@pytest.mark.parametrize("settings", [KEEP, {"short_side": 64}, KEEP | {"encoding": "raw"}])
def test_the_survey_describes_what_is_packed_as_if_it_were_looked_at_again(tmp_path, odd, settings):
    pack(odd, tmp_path / "out", shard=4, **settings)
    source = open_source(tmp_path / "out")
    stored, looked = stored_survey(source), survey(source)
    for field in fields(Survey):
        ours, theirs = getattr(stored, field.name), getattr(looked, field.name)
        assert ours is theirs or np.array_equal(ours, theirs), field.name
    told = json.loads((tmp_path / "out" / "survey.json").read_text())
    assert told["images"] == 15 and told["classes"] == {"cat": 8, "dog": 7, "(unknown)": 0} and told["alpha"]
    assert told["aspect"]["max"] == pytest.approx((looked.sizes[:, 1] / looked.sizes[:, 0]).max())


def test_a_run_uses_the_survey_of_a_pack_only_where_it_holds(tmp_path, odd, monkeypatch):
    pack(odd, tmp_path / "out", **KEEP)
    surveyed = []
    monkeypatch.setattr(images_module, "survey", lambda source, **known: surveyed.append(1) or survey(source, **known))
    assert len(open_images(tmp_path / "out")) == 15 and len(open_images(tmp_path / "out", channels=3)) == 15
    assert not surveyed
    black, grey = open_images(tmp_path / "out", background=0), open_images(tmp_path / "out", channels=1)
    assert len(surveyed) == 2 and black.mean != open_images(tmp_path / "out").mean and grey.channels == 1
    told = json.loads((tmp_path / "out" / "survey.json").read_text())
    (tmp_path / "out" / "survey.json").write_text(json.dumps(told | {"shards": "of another pack"}))
    open_images(tmp_path / "out")
    assert len(surveyed) == 3
    (shard,) = (tmp_path / "out").glob("*.arrow")
    with open(shard, "ab") as file:
        file.write(b"\0")
    (tmp_path / "out" / "survey.json").write_text(json.dumps(told))
    with pytest.raises(Refused, match="--verify"):
        open_images(tmp_path / "out")


@pytest.mark.parametrize("workers", [2, 8])
def test_the_number_of_workers_changes_no_byte(tmp_path, noise, workers):
    pack(noise, tmp_path / "one", workers=1, shard=7, short_side=64)
    pack(noise, tmp_path / "many", workers=workers, shard=7, short_side=64)
    assert len(tree(tmp_path / "one")) == 6 + 6 + 5 and tree(tmp_path / "one") == tree(tmp_path / "many")


def test_bad_images_are_left_out_and_named(tmp_path, noise):
    told = pack(noise, tmp_path / "out", shard=8)
    assert (told.images, told.left_out) == (38, 2)
    with open(tmp_path / "out" / "bad.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"] and [row[0] for row in rows[1:]] == ["05.png", "33.png"]
    assert "not an image" in rows[1][1] and "truncated" in rows[2][1]
    packed = open_source(tmp_path / "out")
    assert packed.keys == [f"{i:02d}.png" for i in range(40) if i not in (5, 33)]
    assert all(packed.read(j).tobytes() == (noise / key).read_bytes() for j, key in enumerate(packed.keys))
    assert json.loads((tmp_path / "out" / "survey.json").read_text())["left_out"] == 2


def test_too_many_bad_images_stop_a_pack_that_a_larger_limit_goes_on_with(tmp_path, noise):
    seen = []
    with pytest.raises(Refused, match="1 of 40 images are unreadable.*05.png"):
        pack(noise, tmp_path / "out", shard=8, max_bad=0.01, progress=lambda done, total: seen.append(done))
    assert max(seen) < 40  # not after all is done
    with pytest.raises(Refused, match="not finished"):
        open_source(tmp_path / "out")
    with pytest.raises(Refused, match="not finished"):
        verify_pack(tmp_path / "out", lambda done, total: None)
    pack(noise, tmp_path / "out", shard=8)
    with pytest.raises(Refused, match="1 of 40"):
        pack(noise, tmp_path / "out", shard=8, max_bad=0.01)
    pack(noise, tmp_path / "whole", shard=8)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    (tmp_path / "none").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "none" / name).write_bytes(b"no")
    with pytest.raises(Refused, match="2 of 2"):
        pack(tmp_path / "none", tmp_path / "empty", max_bad=1.0)


def test_another_pack_in_the_folder_is_refused_with_the_difference(tmp_path, noise, odd):
    pack(noise, tmp_path / "out", short_side=64)
    before = tree(tmp_path / "out")
    with pytest.raises(Refused, match="holds another pack.*quality 90 there and 80 here"):
        pack(noise, tmp_path / "out", short_side=64, quality=80)
    with pytest.raises(Refused, match="images 40 there and 15 here.*short_side 64 there and 256 here"):
        pack(odd, tmp_path / "out")
    shutil.copy(noise / "01.png", noise / "00.png")  # one of the bytes that are looked at
    with pytest.raises(Refused, match="data .* there and .* here"):
        pack(noise, tmp_path / "out", short_side=64)
    with pytest.raises(Refused, match="holds other files, such as 00.png"):
        pack(odd, noise)
    assert tree(tmp_path / "out") == before


def test_two_processes_do_not_pack_into_one_folder(tmp_path, noise):
    (tmp_path / "out").mkdir()
    with module._alone(tmp_path / "out"), pytest.raises(Refused, match="another process"):
        pack(noise, tmp_path / "out")


@pytest.mark.parametrize("settings", [{"short_side": 0}, {"quality": 0}, {"quality": 101}, {"encoding": "jpg"}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(Refused, match="expected|did you mean 'jpeg'"):
        PackSettings(**settings)


class Stopped(Exception):
    pass


def test_a_pack_stopped_before_any_file_has_its_name_goes_on_to_the_same_bytes(tmp_path, noise, monkeypatch):
    """The folder as each rename finds it is what a crash there leaves."""
    pack(noise, tmp_path / "whole", shard=16, short_side=64)
    replace, left = os.replace, [0]

    def stop(*paths):
        if left[0] == 0:
            raise Stopped
        left[0] -= 1
        replace(*paths)

    renames = 0
    while True:
        out = tmp_path / f"out{renames}"
        left[0] = renames
        monkeypatch.setattr(os, "replace", stop)
        try:
            pack(noise, out, shard=16, short_side=64)
            break
        except Stopped:
            monkeypatch.setattr(os, "replace", replace)
        pack(noise, out, shard=16, short_side=64)
        assert tree(out) == tree(tmp_path / "whole"), renames
        renames += 1
    assert renames == 1 + 3 * 2 + 5  # pack.json, facts and shards, what is written at the end


CHILD = """
import os, signal, sys
from pathlib import Path
from daybreak.data.encode import PackSettings
from daybreak.data.pack import write_pack
from daybreak.data.sources import open_source

def progress(done, total):
    if done == 0:
        print("began", flush=True)
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

source = open_source(sys.argv[1])
write_pack(source, Path(sys.argv[2]), PackSettings(shard=8, short_side=64), max_bad=0.1, workers=2, progress=progress)
"""


def start(data: Path, out: Path, stop: int) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", CHILD, data, out, str(stop)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"began\n"
    return process


def test_a_killed_pack_goes_on_to_the_same_bytes_and_repeats_no_whole_shard(tmp_path, noise):
    process = start(noise, tmp_path / "out", 21)
    assert process.wait() == -signal.SIGKILL
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in tree(tmp_path / "out")}
    done = [name for name in before if name.endswith(".arrow")]
    assert 0 < len(done) < 5
    pack(noise, tmp_path / "out", shard=8, short_side=64)
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == before[name] for name in done)
    pack(noise, tmp_path / "whole", shard=8, short_side=64)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.long
def test_a_pack_killed_at_random_moments_goes_on_to_the_same_bytes(tmp_path):
    random = np.random.default_rng(2)
    (tmp_path / "set").mkdir()
    for i in range(160):
        Image.fromarray(random.integers(0, 256, (400, 300, 3), np.uint8)).save(tmp_path / "set" / f"{i:03d}.jpg")
    process = start(tmp_path / "set", tmp_path / "whole", 10**9)
    began = time.monotonic()
    assert process.wait() == 0
    seconds, killed = time.monotonic() - began, 0
    for moment in range(10):
        out = tmp_path / f"out{moment}"
        process = start(tmp_path / "set", out, 10**9)
        time.sleep(random.uniform(0, seconds))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        pack(tmp_path / "set", out, shard=8, short_side=64)
        assert tree(out) == tree(tmp_path / "whole"), moment
    assert killed >= 5


def test_verify_names_every_damaged_shard(tmp_path, noise, capsys):
    pack(noise, tmp_path / "out", shard=8, short_side=64)
    before, shards = tree(tmp_path / "out"), sorted((tmp_path / "out").glob("*.arrow"))

    def say() -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["pack", "--verify", str(tmp_path / "out")])
        return end.value.code, *capsys.readouterr()

    code, out, _ = say()
    assert code == 0 and out.splitlines()[-1].endswith("all shards are whole")
    data = bytearray(shards[1].read_bytes())
    data[len(data) // 2] ^= 1
    shards[1].write_bytes(data)
    shards[3].unlink()
    with open(shards[4], "ab") as file:
        file.write(b"\0")
    code, out, err = say()
    assert code == 1 and "3 of its shards" in err
    assert [shard.name in out for shard in shards] == [False, True, False, True, True]
    for shard in (shards[1], shards[4]):  # what the message says
        shard.unlink()
    pack(noise, tmp_path / "out", shard=8, short_side=64)
    assert tree(tmp_path / "out") == before and say()[0] == 0


def test_the_command_says_what_it_packed(tmp_path, noise, capsys):
    def say(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["pack", *map(str, arguments)])
        return end.value.code, *capsys.readouterr()

    code, out, _ = say(noise, tmp_path / "out", "--short-side", "keep", "--max-bad", "0.1", "--workers", "2")
    assert code == 0 and "38 images" in out and "2 unreadable" in out and "images/s" in out
    assert say(noise, tmp_path / "out", "--max-bad", "0.1")[0] == 2  # another short side
    assert "DATA OUT" in say(noise)[2] and "expected pixels" in say(noise, tmp_path / "2", "--short-side", "all")[2]
    assert say(noise, "--verify", tmp_path / "out")[0] == 2 and say("--verify", noise)[0] == 2


def listed(root: Path, header: str, rows: list[str]) -> Path:
    root.mkdir()
    for i in range(len(rows)):
        Image.new("L", (5, 4), i).save(root / f"{i}.png")
    text = "".join(f"{i}.png,{row}\n" for i, row in enumerate(rows))
    (root / "list.csv").write_text(f"path,{header}\n{text}")
    return root / "list.csv"


@pytest.mark.parametrize("label", [None, "species", "age", "cough", "labels"])
def test_labels_groups_and_splits_come_back(tmp_path, label):
    rows = ["cat,7,train,30.5,1,0", "dog,7,train,,0,-1", ",8,test,41,,1", "cat,9,val,2,0,0"]
    path = listed(tmp_path / "set", "species,patient,split,age,cough,fever", rows)
    pack(path, tmp_path / "out", label=label, group="patient", shard=3, **KEEP)
    source, packed = open_source(path, label=label, group="patient"), open_source(tmp_path / "out")
    assert packed.label == source.label and packed.keys == source.keys
    assert packed.groups == source.groups == ["7", "7", "8", "9"] and packed.splits == source.splits
    assert set(packed.labels) == set(source.labels) == {"species", "age", "cough", "fever", "labels"}
    assert all(same_labels(packed.labels[name], held) for name, held in source.labels.items())
    for name in (None, *source.labels):  # the fingerprint is known for each
        ours, theirs = open_source(tmp_path / "out", label=name), open_source(path, label=name or label)
        assert stored_survey(ours).fingerprint == survey(ours).fingerprint == survey(theirs).fingerprint


def test_split_folders_come_back(tmp_path):
    for name in ("train/cat/a.png", "train/dog/b.png", "val/cat/c.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        Image.new("RGB", (6, 5), (len(name), 0, 9)).save(tmp_path / "set" / name)
    pack(tmp_path / "set", tmp_path / "out")
    packed = open_source(tmp_path / "out")
    assert packed.splits == ["train", "train", "val"] and packed.keys[2] == "val/cat/c.png"
    assert packed.labels["label"].values.tolist() == [0, 1, 0]


def test_columns_whose_names_a_pack_needs_get_an_underscore(tmp_path):
    path = listed(tmp_path / "set", "key", ["b", "a", "b", "a"])
    pack(path, tmp_path / "out")
    assert open_source(path).label == "key"
    packed = open_source(tmp_path / "out")
    assert packed.label == "key_" and packed.keys == [f"{i}.png" for i in range(4)]
    assert packed.labels["key_"].values.tolist() == [1, 0, 1, 0]


def test_names_that_are_no_text_are_shown(tmp_path):
    (tmp_path / "set").mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("L", (5, 4)).save(tmp_path / "set" / "a.png")
    try:
        shutil.copy(tmp_path / "set" / "a.png", tmp_path / "set" / name)
    except OSError:
        pytest.skip("this file system takes only text")
    pack(tmp_path / "set", tmp_path / "out")
    assert open_source(tmp_path / "out").keys == ["a.png", "caf\\xe9.png"]


def several(root: Path) -> Path:
    """A saved table of 4 images with several classes each, of which one image's are unknown."""
    names = ["bird", "cat", "dog"]
    told = {"image": {"_type": "Image"}, "tags": {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}}
    images = []
    for i in range(4):
        pixels = np.full((2, 3), i, np.uint8).tobytes()
        images.append({"bytes": b"P5\n3 2\n255\n" + pixels, "path": None})
    table = pa.table({"image": images, "tags": pa.array([[0, 2], [], None, [1]], pa.list_(pa.int64()))})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": told}})})
    with pa.ipc.new_stream(str(root / "several.arrow"), table.schema) as writer:
        writer.write_table(table)
    return root / "several.arrow"


def test_several_labels_come_back(tmp_path):
    path = several(tmp_path)
    pack(path, tmp_path / "out")
    source, packed = open_source(path), open_source(tmp_path / "out")
    assert source.label == packed.label == "tags" and same_labels(source.labels["tags"], packed.labels["tags"])
    assert np.isnan(packed.labels["tags"].values[2]).all()


def test_datasets_opens_a_pack_and_sees_the_pictures(tmp_path, odd):
    datasets = pytest.importorskip("datasets")
    pack(odd, tmp_path / "keep", shard=4, **KEEP)
    pack(odd, tmp_path / "raw", shard=4, encoding="raw", **KEEP)
    keep, raw = (datasets.load_from_disk(str(tmp_path / name)) for name in ("keep", "raw"))
    assert len(keep) == len(raw) == 15 and keep.features["label"].names == ["cat", "dog"]
    assert list(keep["key"]) == open_source(odd).keys and list(keep["label"]) == [0] * 8 + [1] * 7
    for kept, row in zip(keep, raw, strict=True):
        opened = ImageOps.exif_transpose(Image.open(odd / kept["key"]))
        assert kept["image"].mode == opened.mode and np.array_equal(np.asarray(kept["image"]), np.asarray(opened))
        assert (row["width"], row["height"]) == row["image"].size == opened.size
        data = np.fromfile(odd / kept["key"], np.uint8)
        header = probe(data)
        is_deep = header.channels == 1 and header.depth == 16
        has_alpha = header.channels in (2, 4)
        ours = decode(data, channels=4 if has_alpha else header.channels, depth=16 if is_deep else 8)
        pixels = np.asarray(row["image"].convert("RGBA") if has_alpha else row["image"])
        assert np.array_equal(pixels.reshape(ours.shape), ours), kept["key"]


def test_datasets_reads_several_labels_groups_and_values(tmp_path):
    datasets = pytest.importorskip("datasets")
    pack(several(tmp_path), tmp_path / "several")
    opened = datasets.load_from_disk(str(tmp_path / "several"))
    assert list(opened["tags"]) == [[0, 2], [], None, [1]] and opened.features["tags"].feature.names == ["bird", "cat", "dog"]
    assert np.array_equal(np.asarray(opened[3]["image"]), np.full((2, 3), 3))
    path = listed(tmp_path / "set", "species,group,age", ["cat,7,30.5", ",8,41", "dog,8,2"])
    pack(path, tmp_path / "values")
    opened = datasets.load_from_disk(str(tmp_path / "values"))
    assert opened[:]["species"] == [0, None, 1] and opened[:]["age"] == [30.5, 41, 2] and opened[:]["group"] == ["7", "8", "8"]


def test_a_full_disk_is_one_sentence(tmp_path, noise, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failed, match="No space left.*the same command goes on"):
        pack(noise, tmp_path / "out")
