"""The survey counts what is there, measures it to the number, and tells data sets apart."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from daybreak.data import survey as module
from daybreak.data.sources import open_source
from daybreak.data.survey import survey
from daybreak.errors import Refused


@pytest.fixture
def folder(tmp_path):
    """12 colour images of several sizes in 2 classes."""
    random = np.random.default_rng(0)
    for i in range(12):
        shape = (8 + i, 20 - i, 3)
        path = tmp_path / "set" / ("cat" if i % 3 else "dog") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, shape).astype(np.uint8)).save(path)
    return tmp_path / "set"


def pixels(folder):
    return [np.asarray(Image.open(path)) / 255 for path in sorted(folder.rglob("*.png"))]


def test_statistics_weigh_every_image_equally(folder):
    found, images = survey(open_source(folder)), pixels(folder)
    mean = np.mean([x.mean((0, 1)) for x in images], 0)
    square = np.mean([(x**2).mean((0, 1)) for x in images], 0)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(found.std, np.sqrt(square - mean**2), rtol=1e-9)
    assert found.sizes.tolist() == [list(x.shape[:2]) for x in images] and found.sizes.dtype == np.int32
    assert (found.channels, found.depth, found.decoded, found.bad) == (3, 8, 12, {})
    said = "12 images in 2 folders; 9 x 8 to 20 x 19 pixels, colour; 2 classes from 'folder'"
    assert found.sentence() == said


def test_threads_change_no_bit(folder):
    one, many = (survey(open_source(folder), threads=threads) for threads in (1, 8))
    assert (one.mean, one.std, one.fingerprint) == (many.mean, many.std, many.fingerprint)


def test_grey_is_seen_also_where_it_is_stored_as_colour(folder):
    grey = folder.parent / "grey"
    for path in folder.rglob("*.png"):
        to = grey / path.relative_to(folder)
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("L").convert("RGB" if path.stem != "03" else "L").save(to)
    found = survey(open_source(grey))
    assert found.channels == 1 and len(found.mean) == 1
    forced = survey(open_source(grey), channels=3)
    assert forced.channels == 3 and forced.mean == pytest.approx(found.mean * 3)
    one_pixel = Image.open(grey / "dog" / "00.png")
    one_pixel.putpixel((0, 0), (0, 0, 1))
    one_pixel.save(grey / "dog" / "00.png")
    assert survey(open_source(grey)).channels == 3


def test_swapped_channels_of_equal_means_are_colour(tmp_path):
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 0, 0] = image[0, 1, 1] = image[0, 2, 2] = 255  # each channel has the same mean
    Image.fromarray(image).save(tmp_path / "a.png")
    assert survey(open_source(tmp_path)).channels == 3


def test_depth_is_16_only_if_every_image_has_it(tmp_path):
    values = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
    for name in "ab":
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    found = survey(open_source(tmp_path))
    assert (found.channels, found.depth, found.duplicates) == (1, 16, 1)
    assert found.mean[0] == pytest.approx((values / 65535).mean())
    Image.fromarray(np.uint8(values >> 8)).save(tmp_path / "c.png")
    mixed = survey(open_source(tmp_path))
    assert mixed.depth == 8 and mixed.mean == pytest.approx(found.mean, abs=0.01)


def test_transparency_is_composited_on_the_background(tmp_path):
    Image.new("RGBA", (4, 3), (255, 0, 0, 0)).save(tmp_path / "a.png")
    found = survey(open_source(tmp_path), background=51)
    assert found.channels == 1 and found.mean[0] == pytest.approx(0.2) and found.std == (1.0,)
    assert survey(open_source(tmp_path), channels=4).mean == pytest.approx((1, 0, 0, 0))


def test_bad_images_are_listed_and_too_many_are_refused(folder, tmp_path):
    (folder / "cat" / "01.png").write_bytes((folder / "cat" / "01.png").read_bytes()[:-20])
    (folder / "dog" / "00.png").write_bytes(b"<html>")
    found = survey(open_source(folder), max_bad=0.2)
    assert {found.keys[i] for i in found.bad} == {"cat/01.png", "dog/00.png"} and "2 unreadable" in found.sentence()
    found.write(tmp_path)
    with open(tmp_path / "bad.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"] and [row[0] for row in rows[1:]] == ["cat/01.png", "dog/00.png"]
    assert "truncated" in rows[1][1] and "not an image" in rows[2][1]
    told = json.loads((tmp_path / "survey.json").read_text())
    assert told["images"] == 12 and told["unreadable"] == 2 and told["classes"] == {"cat": 8, "dog": 4, "(unknown)": 0}
    with pytest.raises(Refused, match="2 of 12 images are unreadable.*cat/01.png"):
        survey(open_source(folder), max_bad=0.1)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no")
    with pytest.raises(Refused, match="12 of 12"):
        survey(open_source(folder), max_bad=1.0)


def test_the_fingerprint_changes_with_any_key_byte_or_label_and_with_nothing_else(folder):
    base = survey(open_source(folder)).fingerprint
    assert len(base) == 16 and survey(open_source(folder)).fingerprint == base
    shutil.make_archive(str(folder), "zip", folder)
    assert survey(open_source(folder.with_suffix(".zip"))).fingerprint == base
    (folder / "cat" / "01.png").rename(folder / "cat" / "x.png")
    renamed = survey(open_source(folder)).fingerprint
    (folder / "cat" / "x.png").write_bytes((folder / "cat" / "02.png").read_bytes())
    changed = survey(open_source(folder))
    assert changed.duplicates == 1
    labels = {survey(source).fingerprint for source in _relabelled(folder)}
    assert len({base, renamed, changed.fingerprint} | labels) == 5


def test_the_order_of_rows_does_not_change_the_fingerprint(folder):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    found = set()
    for order in (names, names[::-1]):
        (folder / "list.csv").write_text("path\n" + "".join(f"{name}\n" for name in order))
        found.add(survey(open_source(folder / "list.csv")).fingerprint)
    assert len(found) == 1


def _relabelled(folder):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    for last in "ab":
        (folder / "list.csv").write_text("path,label\n" + "".join(f"{n},{last if n == names[0] else 'a'}\n" for n in names))
        yield open_source(folder / "list.csv")


def test_labels_that_were_not_chosen_are_offered(folder):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    (folder / "list.csv").write_text("path,coat,size\n" + "".join(f"{n},red,big\n" for n in names))
    assert "no labels chosen; --label takes coat, size" in survey(open_source(folder / "list.csv")).sentence()


def test_large_sets_are_decoded_in_part(folder, monkeypatch):
    monkeypatch.setattr(module, "DECODE_ALL", 10)
    monkeypatch.setattr(module, "SAMPLE", 5)
    found = survey(open_source(folder))
    assert found.decoded == 5 and (found.sizes > 0).all() and found.channels == 3
    (folder / "cat" / "01.png").write_bytes((folder / "cat" / "01.png").read_bytes()[:-20])
    assert len(survey(open_source(folder), max_bad=0.2).bad) == 1  # the end of every file is looked for


def test_unknown_channels_are_refused(folder):
    with pytest.raises(Refused, match="2 channels"):
        survey(open_source(folder), channels=2)
