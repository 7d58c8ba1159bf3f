"""DICOM files give the grey that the standard's formulae give, a frame at a time, and nothing that says whose they are."""

import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from daybreak.data.decode import Unreadable, decode, probe
from daybreak.data.dicom import picture, see
from daybreak.data.images import open_images, split_images
from daybreak.data.sources import open_source
from daybreak.errors import Refused

pydicom = pytest.importorskip("pydicom")

SECRETS = {"PatientName": "Roe^Jane", "PatientID": "MRN12345", "StudyDescription": "knee of a queen"}


def dataset(pixels: np.ndarray, bits: int | None = None, kind: str = "MONOCHROME2", frames: int = 0, **tags):
    """A data set of pixels (H, W), (H, W, 3) or, with frames, one axis more."""
    height, width = pixels.shape[1:3] if frames else pixels.shape[:2]
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    made.Rows, made.Columns, made.PhotometricInterpretation = height, width, kind
    made.SamplesPerPixel = 3 if kind in ("RGB", "YBR_FULL") else 1
    made.BitsAllocated = 8 * pixels.dtype.itemsize
    made.BitsStored = bits or made.BitsAllocated
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    if made.SamplesPerPixel == 3:
        made.PlanarConfiguration = 0
    if frames:
        made.NumberOfFrames = frames
    for name, value in (SECRETS | tags).items():
        setattr(made, name, value)
    made.PixelData = pixels.tobytes()
    return made


def write(path: Path, pixels: np.ndarray, *options, **tags) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset(pixels, *options, **tags).save_as(path, enforce_file_format=True)
    return path


def read(path: Path, frame: int | None = None) -> np.ndarray:
    return picture(np.fromfile(path, np.uint8), frame)


def grey(path: Path, frame: int | None = None) -> list[int]:
    """All values of a file, at the depth they have."""
    data = read(path, frame)
    return decode(data, channels=1, depth=probe(data).depth).ravel().tolist()


def row(*values: int, kind=np.uint16) -> np.ndarray:
    return np.array([values], kind)


def test_slope_intercept_and_the_first_window(tmp_path):
    """Hounsfield units are value - 1024; the window 40, 400 runs from -160 to 239, so one unit is 65535 / 399 = 164.2."""
    values = row(0, 864, 865, 1064, 1263, 1264, 4095, 4095)
    path = write(tmp_path / "a.dcm", values, 12, RescaleSlope=1, RescaleIntercept=-1024,
                 WindowCenter=[40, 300], WindowWidth=[400, 1])
    assert grey(path) == [0, 0, 164, 32850, 65535, 65535, 65535, 65535]  # 65535 * (0.5 + 0.5 / 399) = 32849.6


def test_without_a_window_all_that_can_be_stored_is_the_range(tmp_path):
    assert grey(write(tmp_path / "a.dcm", row(0, 2048, 4095, 1), 12)) == [0, 32776, 65535, 16]  # 65535 / 4095 = 16.0037
    assert grey(write(tmp_path / "b.dcm", row(-32768, 0, 32767, 1, kind=np.int16))) == [0, 32768, 65535, 32769]
    falling = write(tmp_path / "c.dcm", row(0, 4095), 12, RescaleSlope=-2, RescaleIntercept=7)
    assert grey(falling) == [65535, 0]


def test_monochrome1_is_inverted(tmp_path):
    assert grey(write(tmp_path / "a.dcm", row(0, 4095, 1, 0), 12, "MONOCHROME1")) == [65535, 0, 65519, 65535]
    windowed = write(tmp_path / "b.dcm", row(0, 10, 20, 30), 12, "MONOCHROME1", WindowCenter=10.5, WindowWidth=21)
    assert grey(windowed) == [65535, 32768, 0, 0]  # from 0 to 20; half of 65535 rounds to the even 32768


def test_eight_bits_stay_eight(tmp_path):
    path = write(tmp_path / "a.dcm", row(0, 7, 200, 255, kind=np.uint8))
    assert grey(path) == [0, 7, 200, 255] and probe(read(path)).depth == 8


def test_a_table_of_the_modality_is_applied(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [4, 0, 16], [0, 200, 400, 1000], "US"
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    path = write(tmp_path / "a.dcm", row(0, 1, 2, 3), 12, ModalityLUTSequence=[table], WindowCenter=500.5, WindowWidth=1001)
    assert grey(path) == [0, 13107, 26214, 65535]  # fifths of 65535


@pytest.mark.parametrize("function, values, wanted", [
    ("LINEAR", [8, 8.5, 9.5, 10.5, 11], [0, 1 / 6, 0.5, 5 / 6, 1]),  # from 8 to 11
    ("LINEAR_EXACT", [7, 8, 10, 12, 13], [0, 0, 0.5, 1, 1]),
    ("SIGMOID", [10, 11, -1e6, 1e6], [0.5, 1 / (1 + np.exp(-1)), 0, 1]),
])
def test_windows_follow_the_formulae_of_the_standard(function, values, wanted):
    np.testing.assert_allclose(see(np.array(values, float), 10, 4, function), wanted, atol=1e-12)


def test_windows_of_width_one_are_thresholds_and_others_below_it_are_refused():
    assert see(np.array([9.0, 9.5, 9.6, 10.0]), 10, 1).tolist() == [0, 0, 1, 1]
    for width, function in ((0.5, "LINEAR"), (0, "SIGMOID"), (-3, "LINEAR_EXACT")):
        with pytest.raises(Unreadable, match="window"):
            see(np.zeros(2), 0, width, function)
    with pytest.raises(Unreadable, match="CUBIC"):
        see(np.zeros(2), 0, 1, "CUBIC")


def frames(count: int = 3) -> np.ndarray:
    return (1000 * np.arange(1, count + 1, dtype=np.uint16))[:, None, None] * np.ones((1, 4, 6), np.uint16)


def packed(folder: Path, form: str) -> Path:
    path = folder.with_suffix(f".{form}")
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in folder.rglob("*.dcm"):
                archive.write(file, file.relative_to(folder))
    else:
        with tarfile.open(path, "w") as archive:
            archive.add(folder, "set")
    return path


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_each_frame_is_an_image_and_a_file_is_a_group(tmp_path, form):
    write(tmp_path / "set" / "a.dcm", frames(), None, "MONOCHROME2", 3)
    write(tmp_path / "set" / "b.dcm", np.full((4, 6), 9, np.uint16))
    source = open_source(tmp_path / "set" if form == "folder" else packed(tmp_path / "set", form))
    assert source.keys == ["a.dcm#000", "a.dcm#001", "a.dcm#002", "b.dcm"]
    assert source.groups == ["a.dcm"] * 3 + ["b.dcm"]
    shown = [decode(source.read(i), channels=1, depth=16)[0, 0, 0] for i in range(4)]
    assert shown == [1000, 2000, 3000, 9]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(source.read, [0, 1, 2, 3] * 20))
    assert [decode(data, channels=1, depth=16)[0, 0, 0] for data in again] == shown * 20


def test_a_list_names_patients_and_keeps_them_whole(tmp_path):
    rows = ["path,label,patient"]
    for i in range(12):
        write(tmp_path / f"{i}.dcm", frames(), None, "MONOCHROME2", 3)
        rows.append(f"{i}.dcm,{'ab'[i % 2]},p{i // 2}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    images = open_images(tmp_path / "list.csv", group="patient")
    assert len(images) == 36 and images.keys[4] == "1.dcm#001" and images.groups[4] == "p0"
    assert images.labels.values.tolist() == [0, 0, 0, 1, 1, 1] * 6
    split = split_images(images)
    assert len(split.queries) and not set(split.bank.groups) & set(split.queries.groups)


def test_settings_of_a_frame_stand_in_its_functional_group(tmp_path):
    def item(**tags):
        made = pydicom.Dataset()
        for name, value in tags.items():
            setattr(made, name, value)
        return made

    shared = item(PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-100, RescaleType="US")])
    own = [item(FrameVOILUTSequence=[item(WindowCenter=center, WindowWidth=11)]) for center in (0.5, 10.5)]
    stack = np.array([[[45, 50, 55, 60]], [[45, 50, 55, 60]]], np.uint16)  # -10, 0, 10, 20 after the rescale
    path = write(tmp_path / "a.dcm", stack, 12, "MONOCHROME2", 2,
                 SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=own)
    assert grey(path, 0) == [0, 32768, 65535, 65535]  # from -5 to 5
    assert grey(path, 1) == [0, 0, 32768, 65535]  # from 5 to 15


def test_colour_comes_as_rgb(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    assert (decode(read(write(tmp_path / "a.dcm", colours, None, "RGB")), channels=3) == colours).all()
    level = np.stack([colours[..., 0], *np.full((2, 4, 6), 128, np.uint8)], -1)  # brightness, and no colour
    shown = decode(read(write(tmp_path / "b.dcm", level, None, "YBR_FULL")), channels=3)
    assert (shown == colours[..., :1]).all()
    tables = {f"{name}PaletteColorLookupTableData": np.array(values, "<u2").tobytes() for name, values in
              {"Red": [0, 65535], "Green": [257, 0], "Blue": [514, 25700]}.items()}
    tables |= {f"{name}PaletteColorLookupTableDescriptor": [2, 0, 16] for name in ("Red", "Green", "Blue")}
    palette = write(tmp_path / "c.dcm", row(0, 1, kind=np.uint8), None, "PALETTE COLOR", **tables)
    assert decode(read(palette), channels=3).tolist() == [[[0, 1, 2], [255, 0, 100]]]


def test_what_a_file_says_of_a_person_goes_nowhere(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.dcm", np.full((4, 6), i, np.uint16))
    images = open_images(tmp_path)
    everything = repr([images.source.keys, images.groups, images.source.labels, images.source.splits, images.sentence()]).encode()
    everything += b"".join(images.source.read(i).tobytes() for i in range(4))
    assert images.labels is None and b"P5" in everything
    assert not any(secret.encode() in everything for secret in SECRETS.values())


def test_sixteen_bits_reach_the_pixels(tmp_path):
    values = np.arange(0, 48000, 2000, dtype=np.uint16).reshape(4, 6)
    for i in range(3):
        write(tmp_path / f"{i}.dcm", values + i)
    images = open_images(tmp_path)
    assert images.depth == 16 and images.channels == 1 and images.sizes.tolist() == [[4, 6]] * 3
    assert (images.decode(2)[..., 0] == values + 2).all()


def test_files_without_a_suffix_are_looked_into_where_there_are_no_pictures(tmp_path):
    write(tmp_path / "a" / "IM0001", np.full((4, 6), 1, np.uint16))
    write(tmp_path / "a" / "1.2.840.7", np.full((4, 6), 2, np.uint16))
    write(tmp_path / "a" / "DICOMDIR", np.full((4, 6), 3, np.uint16))
    (tmp_path / "a" / "README").write_text("not an image")
    assert open_source(tmp_path / "a").keys == ["1.2.840.7", "IM0001"]
    Image.new("L", (4, 6)).save(tmp_path / "a" / "b.png")
    assert open_source(tmp_path / "a").keys == ["b.png"]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_files_are_unreadable(tmp_path, share):
    path = write(tmp_path / "a.dcm", np.ones((40, 60), np.uint16))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(Unreadable):
        read(path)
    assert open_source(tmp_path).keys == ["a.dcm"]


def test_what_gives_no_picture_says_why(tmp_path):
    pixels = np.ones((4, 6), np.uint16)
    cases = {
        "no image": dataset(pixels), "megapixels": dataset(pixels), "1,000,000 frames": dataset(pixels, NumberOfFrames=1_000_000),
        "JPEG Lossless": dataset(pixels), "CUBIC": dataset(pixels, WindowCenter=1, WindowWidth=2, VOILUTFunction="CUBIC"),
        "32 bits": dataset(pixels.astype(np.uint32)),
    }
    del cases["no image"].Rows
    cases["megapixels"].Rows = cases["megapixels"].Columns = 20_000
    cases["JPEG Lossless"].file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    cases["JPEG Lossless"].PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    cases["JPEG Lossless"]["PixelData"].VR = "OB"
    for i, (reason, made) in enumerate(cases.items()):
        made.save_as(tmp_path / f"{i}.dcm", enforce_file_format=True)
        with pytest.raises(Unreadable, match=reason) as said:
            read(tmp_path / f"{i}.dcm")
        assert "\n" not in str(said.value)
    assert len(open_source(tmp_path)) == len(cases)  # a million frames are not listed


def test_what_pydicom_unpacks_is_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (20, 30)).astype(np.uint16)
    plain, made = write(tmp_path / "a.dcm", pixels, 12), dataset(pixels, 12)
    made.compress(pydicom.uid.RLELossless)
    made.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert (read(plain) == read(tmp_path / "b.dcm")).all()


def test_without_pydicom_the_line_that_installs_it_is_said(tmp_path, monkeypatch):
    path = write(tmp_path / "set" / "a.dcm", np.ones((4, 6), np.uint16))
    pq.write_table(pa.table({"image": [path.read_bytes()]}), tmp_path / "t.parquet")
    assert len(open_source(tmp_path / "t.parquet").read(0)) == len(b"P5 6 4 65535\n") + 48
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(Refused, match=r"a.dcm can't be read.*pip install \"daybreak\[dicom\]\""):
        open_source(tmp_path / "set")
    with pytest.raises(Unreadable, match="pip install"):
        open_source(tmp_path / "t.parquet").read(0)
