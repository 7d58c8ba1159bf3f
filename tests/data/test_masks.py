"""Masks: found beside images in every kind of source, read as the numbers they hold, refused with the reason."""

import io
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from daybreak.data.decode import Unreadable
from daybreak.data.images import open_images
from daybreak.data.masks import decode_mask, open_masks
from daybreak.errors import Refused


def stored(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if mode == "P":
        image = Image.fromarray(pixels, "L").convert("L")
        image.putpalette([(37 * k) % 256 for k in range(768)])
    image.save(buffer, kind)
    return buffer.getvalue()


def example(i: int) -> tuple[bytes, np.ndarray]:
    """An image of 8 x 12 pixels and its mask of 2, 5 and 255."""
    random = np.random.default_rng(i)
    return stored(random.integers(0, 256, (8, 12, 3)).astype(np.uint8)), random.choice([2, 5, 255], (8, 12)).astype(np.uint8)


def folder_of(root, count: int = 4):
    for i in range(count):
        image, mask = example(i)
        for kind, content, suffix in (("images", image, "jpg"), ("masks", stored(mask), "png")):
            path = root / ("val" if i == 3 else "train") / kind / f"street {i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def zip_of(root):
    folder_of(root)
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, f"wrapped/{file.relative_to(root).as_posix()}")
    return root.with_suffix(".zip")


def parquet_of(root, form: str = "struct"):
    rows = [example(i) for i in range(4)]
    made = {"image": [image for image, _ in rows], "mask": [stored(mask) for _, mask in rows]}
    if form == "struct":
        made = {name: [{"bytes": data, "path": None} for data in held] for name, held in made.items()}
    root.mkdir()
    pq.write_table(pa.table(dict(reversed(made.items()))), root / "train.parquet", row_group_size=3)
    return root / "train.parquet"


def list_of(root):
    folder_of(root)
    lines = ["image,mask", *(f"{s}/images/street {i}.jpg,{s}/masks/street {i}.png" for i, s in enumerate(["train"] * 3 + ["val"]))]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root / "list.csv"


@pytest.mark.parametrize("make", [folder_of, zip_of, parquet_of, lambda root: parquet_of(root, "bytes"), list_of],
                         ids=["folder", "zip", "parquet of datasets", "parquet of bytes", "list"])
def test_masks_come_with_their_images_from_every_kind_of_source(tmp_path, make):
    images = open_images(make(tmp_path / "set"))
    assert len(images) == 4 and images.labels is None
    masks = open_masks(images)
    assert masks.values == (2, 5)
    for i in range(4):
        mask = example(i)[1]
        assert (masks.read(i) == np.select([mask == 2, mask == 5], [0, 1], -1)).all()
        assert (masks.read(i, (1, 2, 3, 5)) == np.select([mask == 2, mask == 5], [1, 3], -1)).all()
    few = open_masks(images.subset(np.array([2, 0])))
    assert (few.read(0) == masks.read(2)).all() and (few.read(1) == masks.read(0)).all()


def test_void_is_what_is_said_to_be(tmp_path):
    images = open_images(folder_of(tmp_path))
    assert open_masks(images, void=(-1,)).values == (2, 5, 255) and open_masks(images, void=(2,)).values == (5, 255)
    prints = {open_masks(images, void).fingerprint for void in ((255,), (2,), (-1,))}
    assert len(prints) == 3 and open_masks(images).fingerprint in prints
    with pytest.raises(Refused, match=r"one class only, 5, beside the void 2, 255; 2 are needed: if what is void is a class"):
        open_masks(images, void=(2, 255))


def test_one_class_is_refused(tmp_path):
    for path in folder_of(tmp_path).rglob("*.png"):
        path.write_bytes(stored(np.full((8, 12), 3, np.uint8)))
    with pytest.raises(Refused, match=r"its masks hold one class only, 3; 2 are needed\.$"):
        open_masks(open_images(tmp_path))


def test_the_fingerprint_changes_with_a_mask_and_not_with_the_order(tmp_path):
    images = open_images(folder_of(tmp_path))
    first = open_masks(images).fingerprint
    assert open_masks(images.subset(np.array([3, 1, 0, 2]))).fingerprint == first
    (tmp_path / "train/masks/street 1.png").write_bytes(stored(example(9)[1]))
    assert open_masks(images).fingerprint != first


def test_data_without_masks_are_refused_with_where_masks_belong(tmp_path):
    (tmp_path / "a.png").write_bytes(example(0)[0])
    with pytest.raises(Refused, match=r"no masks in this folder; expected a folder 'masks' beside 'images'.*column 'mask'"):
        open_masks(open_images(tmp_path))


def test_a_mask_of_another_size_is_refused_by_name(tmp_path):
    images = open_images(folder_of(tmp_path))
    (tmp_path / "train/masks/street 2.png").write_bytes(stored(np.zeros((12, 8), np.uint8)))
    with pytest.raises(Refused, match=r"the mask of train/images/street 2.jpg has 8 x 12 pixels and its image 12 x 8"):
        open_masks(images)


def test_a_mask_that_is_missing_is_refused_by_name(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "train/masks/street 2.png").unlink()
    with pytest.raises(Refused, match="street 2.jpg can't be read: there is no file of the image's name in the folder masks"):
        open_masks(open_images(tmp_path))
    (tmp_path / "list.csv").write_text("image,mask\ntrain/images/street 0.jpg,train/masks/street 0.png\nval/images/street 3.jpg,\n")
    with pytest.raises(Refused, match="street 3.jpg can't be read: the table has no path in this row"):
        open_masks(open_images(tmp_path / "list.csv"))


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1"])
def test_masks_are_the_numbers_they_store(mode):
    values = {"1": np.array([[True, False]]), "I;16": np.array([[7, 60000]], np.uint16)}.get(mode, np.array([[3, 200]], np.uint8))
    data = stored(values, mode=mode)
    assert Image.open(io.BytesIO(data)).mode == mode
    assert decode_mask(np.frombuffer(data, np.uint8)).tolist() == values.astype(int).tolist()


@pytest.mark.parametrize(("data", "words"), [
    (stored(np.zeros((4, 4), np.uint8), "JPEG"), "a JPEG, which does not keep numbers"),
    (stored(np.zeros((4, 4, 3), np.uint8)), "its pixels are RGB; expected one number a pixel"),
    (b"", "the file is empty"), (b"no image", "not an image"), (stored(example(0)[1])[:60], "Pillow can't decode it")],
    ids=["jpeg", "colour", "empty", "text", "cut"])
def test_what_is_no_mask_is_unreadable_with_the_reason(data, words):
    with pytest.raises(Unreadable, match=words):
        decode_mask(np.frombuffer(data, np.uint8))


def test_camvid(shared):
    images = open_images(shared("camvid.zip"), max_bad=0)
    assert (len(images), images.splits.count("train"), images.splits.count("val")) == (468, 367, 101)
    masks = open_masks(images.subset(np.arange(0, 468, 60)), void=(11,))
    assert masks.values == tuple(range(11)) and masks.read(0).shape == (360, 480)
