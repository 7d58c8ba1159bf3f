"""A folder of odd and bad files: each odd one is an image, each bad one is named with its reason, and a run ends."""

import csv
import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

import daybreak
from daybreak.data.decode import Unreadable
from daybreak.data.images import open_images
from daybreak.data.sources import open_source, printable, read_file
from daybreak.data.survey import survey
from daybreak.errors import Refused

NOT_UTF8 = os.fsdecode(b"caf\xe9.jpg")
LATIN = os.fsdecode(b"\xe9t\xe9")  # a folder's name
NOBODY = 65534


def smooth(number: int, height: int = 64, width: int = 96) -> Image.Image:
    """A colour image, of its own phase."""
    y, x = np.mgrid[:height, :width].astype(float)
    waves = [128 + 120 * np.sin(x / 7 + number), 128 + 100 * np.cos(y / 5 + number), 255 * y / height]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def bomb() -> bytes:
    """A whole and valid PNG of 20,000 x 20,000 zeros: 400 MB unpacked, some 2 MB packed."""
    packer, row = zlib.compressobj(1), bytes(20_001)
    packed = b"".join(packer.compress(row) for _ in range(20_000)) + packer.flush()
    size = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def claiming(width: int, height: int) -> bytes:
    """A GIF whose header claims that size."""
    data = bytearray(encoded(Image.new("P", (1, 1)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def odd() -> dict[str, bytes]:
    """An image of every kind."""
    image, exif = smooth(0), Image.Exif()
    exif[0x0112] = 6
    deep = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96) * 10
    return {
        "deep.png": encoded(Image.fromarray(deep), "PNG"),
        "turned.jpg": encoded(image, "JPEG", exif=exif),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "palette.png": encoded(image.quantize(16), "PNG"),
        "rgba.png": encoded(image.convert("RGBA"), "PNG"),
        "grey-alpha.png": encoded(image.convert("LA"), "PNG"),
        "animated.gif": encoded(image, "GIF", save_all=True, append_images=[smooth(1), smooth(2)]),
        "a.webp": encoded(image, "WEBP"),
        "a.tiff": encoded(image, "TIFF"),
        "bit.png": encoded(image.convert("1"), "PNG"),
        "with a space.jpg": encoded(smooth(3), "JPEG"),
        "line\nbreak.jpg": encoded(smooth(4), "JPEG"),
        "UPPER.JPEG": encoded(smooth(5), "JPEG"),
        NOT_UTF8: encoded(smooth(6), "JPEG"),
    }


def bad() -> dict[str, tuple[bytes, str]]:
    """Files that are no image, each with what its reason must say."""
    whole = encoded(smooth(0), "JPEG", quality=95)
    cut = {f"cut at {share}.jpg": (whole[: len(whole) * share // 100], "truncated|within its header") for share in (10, 50, 99)}
    return cut | {
        "zero.jpg": (b"", "empty"),
        "text.jpg": (b"This is a text, whatever its name.\n", "not an image"),
        "bomb.png": (bomb(), "20000 x 20000 pixels, more than 200 megapixels"),
        "bomb.gif": (claiming(20_000, 20_000), "more pixels than"),
        os.fsdecode(b"no\xff.png"): (b"no", "not an image"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> tuple[Path, set[str], dict[str, str]]:
    """A folder, the names of its images, and the bad files with patterns of their reasons."""
    root, reasons = tmp_path_factory.mktemp("odd") / "set", {}
    root.mkdir()
    good = odd() | {f"{i:02d}.jpg": encoded(smooth(i), "JPEG") for i in range(20)}
    for name, data in good.items():
        (root / name).write_bytes(data)
    for name, (data, reason) in bad().items():
        (root / name).write_bytes(data)
        reasons[name] = reason
    os.symlink(root / "gone.jpg", root / "link.jpg")
    os.symlink("loop.jpg", root / "loop.jpg")
    os.mkfifo(root / "pipe.jpg")
    reasons |= {"link.jpg": "broken link", "loop.jpg": "symbolic links", "pipe.jpg": "not a file"}
    (root / "locked.jpg").write_bytes(encoded(smooth(7), "JPEG"))
    (root / "locked.jpg").chmod(0)
    if os.access(root / "locked.jpg", os.R_OK):  # as root one reads it all the same
        good["locked.jpg"] = b""
    else:
        reasons["locked.jpg"] = "Permission denied"
    (root / "notes.txt").write_text("beside the images")
    (root / ".hidden.jpg").write_bytes(b"no")
    return root, set(good), reasons


def check_bad(rows: dict[str, str], reasons: dict[str, str]) -> None:
    assert rows.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert re.search(reason, rows[name]), (name, rows[name])


def listed(path: Path) -> dict[str, str]:
    """What bad.csv says: reasons by name."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        head, *rows = csv.reader(file)
    assert head == ["path", "reason"] and len(dict(rows)) == len(rows)
    return dict(rows)


def test_none_is_lost_and_each_bad_file_has_its_reason(folder, tmp_path):
    root, good, reasons = folder
    source = open_source(root)
    assert sorted(source.keys) == sorted(good | reasons.keys())
    found = survey(source, max_bad=0.5)
    check_bad({source.keys[i]: reason for i, reason in found.bad.items()}, reasons)
    found.write(tmp_path)
    check_bad(listed(tmp_path / "bad.csv"), reasons)
    told = json.loads((tmp_path / "survey.json").read_text(encoding="utf-8"))
    assert told["images"] == len(good) + len(reasons) and told["unreadable"] == len(reasons) and told["channels"] == 3
    images = open_images(root, max_bad=0.5)
    assert set(images.keys) == good
    for i, key in enumerate(images.keys):
        shape = (96, 64, 3) if key == "turned.jpg" else (64, 96, 3)
        assert images.decode(i).shape == shape, key


def test_too_many_bad_files_are_refused_with_the_first(tmp_path):
    smooth(1).save(tmp_path / "z.png")
    (tmp_path / os.fsdecode(b"a\xff.png")).write_bytes(b"no")
    with pytest.raises(Refused, match=r"1 of 2 images are unreadable.*the first is a\\xff.png: not an image"):
        survey(open_source(tmp_path))


def test_a_bomb_is_not_decoded(folder):
    """In a process of its own, because a peak of memory is never forgotten: decoded, it would take 400 MB."""
    code = (
        "import resource, sys\n"
        "from daybreak.data.sources import open_source\n"
        "from daybreak.data.survey import survey\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == 'darwin' else 1)\n"
        "before = peak()\n"
        "assert any('megapixels' in reason for reason in survey(open_source(sys.argv[1]), max_bad=0.5).bad.values())\n"
        "print((peak() - before) // 1024)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, folder[0]], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 150


def test_classes_whose_names_are_not_utf8_can_be_said(tmp_path):
    for name in (LATIN, "owl"):
        (tmp_path / "set" / name).mkdir(parents=True)
        smooth(1).save(tmp_path / "set" / name / "a.png")
    found = survey(open_source(tmp_path / "set"))
    assert found.labels.classes == ("owl", "\\xe9t\\xe9") and found.keys[1] == f"{LATIN}/a.png"
    assert printable(LATIN) == "\\xe9t\\xe9" and printable("grün\n") == "grün\n"
    found.write(tmp_path)
    told = json.loads((tmp_path / "survey.json").read_text(encoding="utf-8"))
    assert told["classes"] == {"owl": 1, "\\xe9t\\xe9": 1, "(unknown)": 0}


def test_a_list_that_is_not_utf8_is_refused(tmp_path):
    smooth(1).save(tmp_path / NOT_UTF8)
    (tmp_path / "list.csv").write_bytes(b"path\ncaf\xe9.jpg\n")
    with pytest.raises(Refused, match="'path' is not UTF-8"):
        open_source(tmp_path / "list.csv")
    smooth(1).save(tmp_path / "line\nbreak.png")
    (tmp_path / "list.csv").write_text('path,label\n"line\nbreak.png",a\n')
    assert len(open_source(tmp_path / "list.csv").read(0))


def test_a_folder_that_is_lost_is_refused_by_name(tmp_path):
    smooth(1).save(tmp_path / "a.png")
    os.symlink(tmp_path / "gone", tmp_path / "owls")
    with pytest.raises(Refused, match="owls: can't be read \\(a broken link\\)"):
        open_source(tmp_path)


@pytest.fixture
def unprivileged(tmp_path):
    """A folder that somebody without rights may enter, and what makes the test that somebody: root reads all."""
    was, modes = os.geteuid(), {}

    def drop() -> None:
        if was == 0:
            for path in [tmp_path, *tmp_path.parents]:
                if path.stat().st_mode & 0o011 != 0o011:
                    modes[path] = path.stat().st_mode
                    path.chmod(modes[path] | 0o011)
            try:
                os.seteuid(NOBODY)
            except PermissionError:
                pytest.skip("root that may not become anybody else reads every file")

    yield tmp_path, drop
    os.seteuid(was)
    for path, mode in modes.items():
        path.chmod(mode)
    for path in tmp_path.rglob("*"):
        path.chmod(0o755)


def test_files_and_folders_without_permission_are_named(unprivileged):
    folder, drop = unprivileged
    root = folder / "set"
    (root / "closed").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        smooth(1).save(root / name)
    open_source(root)  # what it imports may stand where only root reads
    (root / "b.png").chmod(0)
    (root / "closed").chmod(0)
    root.chmod(0o755)
    drop()
    assert len(read_file(root / "a.png"))
    with pytest.raises(Unreadable, match="Permission denied"):
        read_file(root / "b.png")
    with pytest.raises(Refused, match="closed: can't be read \\(Permission denied\\)"):
        open_source(root)


def small() -> dict:
    """Settings of a run of seconds."""
    return {"batch_size": 8, "images": 16, "image_size": 16, "overrides": ["encoder.width=64", "encoder.depth=1"]}


@pytest.mark.long
def test_a_run_on_the_folder_ends_and_says_what_was_bad(folder, tmp_path):
    root, good, reasons = folder
    (tmp_path / "val").mkdir()
    for i, name in enumerate(["line\nbreak.jpg", NOT_UTF8, *(f"{i} <b>.jpg" for i in range(6))]):
        smooth(i).save(tmp_path / "val" / name)
    run = daybreak.pretrain(root, method="mae", val=tmp_path / "val", max_bad=0.5, out=tmp_path / "run", **small())
    check_bad(listed(run.folder / "bad.csv"), reasons)
    told = json.loads((run.folder / "survey.json").read_text(encoding="utf-8"))
    assert told["images"] == len(good) + len(reasons) and told["unreadable"] == len(reasons)
    assert {r.num_train for r in run.results if r.protocol == "rank"} == {len(good)}
    report = run.report.read_text(encoding="utf-8")
    assert "caf\\xe9.jpg" in report and "0 &lt;b&gt;.jpg" in report and "0 <b>.jpg" not in report

    keys = pq.read_table(daybreak.embed(run.folder, tmp_path / "val", out=tmp_path / "v.parquet"))["key"].to_pylist()
    assert len(keys) == 8 and {"line\nbreak.jpg", "caf\\xe9.jpg", "0 <b>.jpg"} < set(keys)
    (tmp_path / "val" / "list.csv").write_text('path,group\n"line\nbreak.jpg",p1\n0 <b>.jpg,p2\n1 <b>.jpg,p1\n')
    table = pq.read_table(daybreak.embed(run.folder, tmp_path / "val" / "list.csv", out=tmp_path / "v.parquet"))
    assert table["key"].to_pylist() == ["line\nbreak.jpg", "0 <b>.jpg", "1 <b>.jpg"]
    assert table["group"].to_pylist() == ["p1", "p2", "p1"]


@pytest.mark.long
def test_grey_of_sixteen_bits_trains_without_colour_augmentation_and_says_so(tmp_path):
    (tmp_path / "set").mkdir()
    for i in range(16):
        Image.fromarray(np.asarray(smooth(i).convert("L")).astype(np.uint16) * 200 + i).save(tmp_path / "set" / f"{i:02d}.png")
    said = io.StringIO()
    run = daybreak.pretrain(tmp_path / "set", method="simclr", out=tmp_path / "run", console=Console(file=said, width=200),
                            **small())
    assert "colour augmentation off: saturation, hue, grayscale (the images have 1 channel, not RGB)" in said.getvalue()
    told = json.loads((run.folder / "survey.json").read_text(encoding="utf-8"))
    assert (told["channels"], told["depth"]) == (1, 16)


def test_a_data_folder_whose_name_is_not_utf8_is_refused(tmp_path):
    (tmp_path / LATIN).mkdir()
    with pytest.raises(Refused, match="not UTF-8"):
        daybreak.pretrain(tmp_path / LATIN)
