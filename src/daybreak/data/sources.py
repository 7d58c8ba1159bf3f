"""One argument to images and what is known of them: folder, archive, list, table or saved data set, sniffed.

N images.
"""

import contextlib
import mmap
import os
import stat
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import numpy as np

from ..errors import Refused, nearest
from . import dicom
from .decode import Unreadable

DICOM = frozenset({".dcm", ".dicom"})
PICTURES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".ppm", ".pgm", ".pbm",
                      ".pnm", ".webp", ".tif", ".tiff", ".gif"})
SUFFIXES = PICTURES | DICOM
TABLES = frozenset([".csv", ".tsv", ".parquet", ".arrow", ".feather", ".ipc"])
SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
PREFERRED = ("cls", "label", "labels", "class", "target", "y")  # columns taken as the label where several could be


@dataclass
class Labels:
    """One label for each of N images.

    ``values``: "class": (N,) int64, positions in ``classes``, -1 unknown; "multi": (N, len(classes)) float32
    of 0 and 1, NaN unknown; "value": (N,) float64, NaN unknown.
    """

    kind: Literal["class", "multi", "value"]
    values: np.ndarray
    classes: tuple[str, ...] = ()

    def take(self, indices: np.ndarray) -> "Labels":
        """Return the labels of some of the images."""
        return Labels(self.kind, self.values[indices], self.classes)


@dataclass
class Source:
    """Encoded images by position, with labels, groups and splits where the data have them."""

    path: Path
    kind: str  # "folder", "zip", "tar", "webdataset", "list", "table", "saved" or "generated"
    keys: list[str]  # a name for each image: its path inside, or its row
    reader: Callable[[int], np.ndarray]
    labels: dict[str, Labels] = field(default_factory=dict)  # by column; "folder" for class folders
    label: str | None = None  # the column in use
    groups: list[str] | None = None  # whose image it is: nobody stands on both sides of a split
    splits: list[str] | None = None  # "train", "val" or "test" for each image
    frames: list[int | None] | None = None  # which frame of its DICOM file each image is; None: the only one
    masks: Callable[[int], np.ndarray] | None = None  # encoded bytes of an image's mask, as ``reader`` gives the image's

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, i: int) -> np.ndarray:
        """Return the encoded bytes of image ``i``, (n,) uint8, from any thread; or raise Unreadable.

        A DICOM file gives one frame as PGM or PPM, without its tags.
        """
        data = self.reader(i)
        return dicom.picture(data, self.frames[i] if self.frames else None) if dicom.is_dicom(data) else data


def open_source(path: str | Path, *, label: str | None = None, group: str | None = None) -> Source:
    """Find out what ``path`` is and list its images; nothing is decoded.

    A folder (nested or flat), a zip or tar file of one (tar.gz, .bz2 and .xz are unpacked to a temporary
    file), WebDataset tars (one, a folder of them, or ``train-{000000..000146}.tar``), a CSV or Parquet list
    with a column of paths, a Parquet or Arrow table with a column of encoded images or a folder of such
    tables, a folder that ``datasets`` saved, or ``dsprites:N``, which is drawn (``dsprites.open_dsprites``).
    Folders are classes when every image lies in one and there are two or more; folders ``train``, ``val``
    and ``test`` around them are splits; a folder ``masks`` beside one called ``images``, or a column ``mask``
    beside ``image``, holds masks and no images.  Files of several frames (DICOM) are that many images,
    without masks.

    Args:
        label: the column to use as label; without it "label" or "class", else the only one there is.
        group: the column that says whose image it is; without it a column of that name.

    Raises Refused if there is nothing to read, the file is of no known kind, or a column is missing.
    """
    from . import archives, dsprites, tables, webdataset  # they need Source from here

    drawn, path = dsprites.is_dsprites(path), Path(path)
    if drawn and group is not None:
        raise Refused(f"{path}: no group '{group}': every image is drawn by itself; leave --group out.")
    if drawn:
        source = dsprites.open_dsprites(str(path))
    elif shards := webdataset.numbered(path):
        source = webdataset.open_shards(path, shards, group)
    elif not path.exists():
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise Refused(f"{path}: no such file or folder{'; ' + nearest(path.name, beside) if beside else ''}.")
    elif path.is_dir():
        source = tables.open_saved(path, group) if tables.is_saved(path) else _open_folder(path, group)
    else:
        with open(path, "rb") as file:
            start = file.read(8)
        if start[:4] in (b"PK\3\4", b"PK\5\6"):
            source = archives.open_zip(path)
        elif path.suffix.lower() in TABLES or start[:4] in (b"PAR1", b"ARRO"):
            source = tables.open_table([path], group)
        elif tarfile.is_tarfile(path):
            source = archives.open_tar(path, start, group)
        elif path.suffix.lower() in SUFFIXES:
            raise Refused(f"{path}: one image; expected a set of them: give its folder, {path.parent}.")
        else:
            raise Refused(
                f"{path}: neither a folder, a zip or tar file, a CSV, Parquet or Arrow table, nor a saved "
                "data set; give one of those."
            )
    if not source.keys:
        raise Refused(f"{path}: no images in this {source.kind}; expected files such as .jpg or .png.")
    if group is not None and source.kind in ("folder", "zip", "tar"):
        raise Refused(f"{path}: no group '{group}': a {source.kind} has no columns; list them in a CSV.")
    source.label = _choose(source, label or source.label)
    return source


def _choose(source: Source, label: str | None) -> str | None:
    """The label column in use: the one asked for, a usual name, all yes-or-no columns, or the only one."""
    names = list(source.labels)
    if label is not None and label not in names:
        if not names:
            raise Refused(
                f"{source.path}: no label '{label}': this {source.kind} has none; leave --label out."
            )
        raise Refused(f"{source.path}: no label column '{label}'; {nearest(label, names)}.")
    usual = [name for name in PREFERRED if name in names]
    return label or next(iter(usual), names[0] if len(names) == 1 else None)


def _open_folder(path: Path, group: str | None) -> Source:
    names: list[str] = []
    nameless: list[str] = []
    tables_found: list[Path] = []
    tars: list[Path] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise Refused(f"{printable(str(error.filename))}: can't be read ({error.strerror}), and what it holds would be missed; "
                      "make it readable, or move it elsewhere.")

    for folder, below, files in os.walk(path, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:  # links may lead back to where they stand
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith((".", "__MACOSX", "lost+found")))
        for name in files:
            kind, inside = suffix(name), Path(folder, name)
            if name.startswith("."):
                continue
            if kind in SUFFIXES:
                names.append(inside.relative_to(path).as_posix())
            elif kind in TABLES - {".csv", ".tsv"}:
                tables_found.append(inside)
            elif kind == ".tar":
                tars.append(inside)
            elif not kind and not inside.exists():  # perhaps to a folder of images; those called like one are named as bad
                refuse(FileNotFoundError(None, "a broken link", str(inside)))
            elif (not kind or kind[1:].isdigit()) and name.upper() != "DICOMDIR":  # 1.2.840.113619 ends in digits
                nameless.append(inside.relative_to(path).as_posix())
    if not names and tables_found:
        from . import tables

        return tables.open_table(sorted(tables_found), group, path)
    if not names and tars:
        from . import webdataset

        return webdataset.open_shards(path, sorted(tars), group)
    names = names or [name for name in nameless if _is_dicom(path / name)]
    return from_names(path, "folder", names, lambda name: read_file(path / name))


def _is_dicom(path: Path) -> bool:
    """Whether a file without a telling suffix is DICOM; one that can't be read is not."""
    try:
        return path.is_file() and dicom.is_dicom(np.fromfile(path, np.uint8, dicom.START))
    except OSError:
        return False


def from_names(path: Path, kind: str, names: Sequence[str], read: Callable[[str], np.ndarray]) -> Source:
    """A source of files whose folders say labels and splits."""
    names = sorted(names)
    keys, order, labels, splits = layout(names)
    inside = [names[i] for i in order]
    masks = masks_beside(names, inside, read)
    source = Source(path, kind, keys, lambda i: read(inside[i]), labels, splits=splits, masks=masks)
    return by_frames(source, [i for i, name in enumerate(inside) if suffix(name) not in PICTURES])


def masks_beside(
    names: Sequence[str], images: Sequence[str], read: Callable[[str], np.ndarray]
) -> Callable[[int], np.ndarray] | None:
    """Return a reader of the masks of ``images``, or None if there are none among ``names``.

    ``images/a/1.jpg`` has ``masks/a/1.png`` for its mask, of any suffix.
    """
    kept = set(images)
    held = {os.path.splitext(name)[0]: name for name in names if name not in kept}
    found = [next((held[stem] for stem in _mask_stems(name) if stem in held), None) for name in images] if held else []
    if not any(found):
        return None

    def reader(i: int) -> np.ndarray:
        name = found[i]
        if name is None:
            raise Unreadable("there is no file of the image's name in the folder masks")
        return read(name)

    return reader


def _mask_stems(name: str) -> list[str]:
    """What the mask of an image may be called, without suffix: with ``masks`` for one of the folders ``images`` in its path."""
    parts = PurePosixPath(os.path.splitext(name)[0]).parts
    return ["/".join([*parts[:i], "masks", *parts[i + 1 :]]) for i, part in enumerate(parts[:-1]) if part == "images"]


def by_frames(source: Source, files: Sequence[int]) -> Source:
    """Return the source with each frame of a DICOM file as an image, key#000 and so on; a file is then a group.

    ``files`` are the positions of what may be such files.  Raises Refused if one is and pydicom is not installed.
    """
    counts = np.ones(len(source), np.int64)
    for i in files:
        with contextlib.suppress(Unreadable):  # which is said when it is read
            data = source.reader(i)
            if not dicom.is_dicom(data):
                continue
            if not dicom.is_installed():
                raise Refused(f"{source.path}: {printable(source.keys[i])} can't be read: {dicom.INSTALL}")
            counts[i] = dicom.count_frames(data)
    if counts.max(initial=1) == 1:
        return source
    which = np.repeat(np.arange(len(source)), counts)
    frame = np.arange(len(which)) - (np.cumsum(counts) - counts)[which]
    pairs = list(zip(which.tolist(), frame.tolist(), strict=True))
    whose = source.groups or source.keys
    return replace(
        source,
        keys=[source.keys[i] + (f"#{at:03d}" if counts[i] > 1 else "") for i, at in pairs],
        reader=lambda i: source.reader(which[i]),
        labels={name: held.take(which) for name, held in source.labels.items()},
        groups=[whose[i] for i in which],
        splits=[source.splits[i] for i in which] if source.splits else None,
        frames=[at if counts[i] > 1 else None for i, at in pairs],
        masks=None,
    )


def read_file(path: Path) -> np.ndarray:
    """Return a file's bytes, those of DICOM mapped, since one frame is wanted; Unreadable where they can't be had."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
            raise Unreadable("not a file")
        if suffix(path.name) in PICTURES or not dicom.is_dicom(np.fromfile(path, np.uint8, dicom.START)):
            return np.fromfile(path, np.uint8)
        with open(path, "rb") as file:
            return mapped(file)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        broken = isinstance(error, FileNotFoundError) and path.is_symlink()
        raise Unreadable(f"a broken link ({reason})" if broken else reason) from error


def printable(name: str) -> str:
    """Return a name that is valid Unicode: bytes of a file's name that are not UTF-8 become ``\\xff`` and the like."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def suffix(name: str) -> str:
    """Return the suffix of a file's name with its dot, in lower case."""
    return os.path.splitext(name)[1].lower()


def layout(names: Sequence[str]) -> tuple[list[str], list[int], dict[str, Labels], list[str] | None]:
    """Read the folders in paths: keys, the positions of the kept paths, labels and splits."""
    parts = [PurePosixPath(name).parts for name in names]
    beside = {p[:i] for p in parts for i in range(len(p) - 1) if p[i] == "images"}
    order = [
        i
        for i, p in enumerate(parts)
        if not any(p[j] == "masks" and p[:j] in beside for j in range(len(p) - 1))
    ]
    parts = [parts[i] for i in order]
    # Archives wrap all in one folder of their own name: a folder and its archive shall give the same keys.
    while len({p[0] for p in parts}) == 1 and all(len(p) > 1 for p in parts) and parts[0][0] not in SPLITS:
        parts = [p[1:] for p in parts]
    keys = ["/".join(p) for p in parts]
    splits = None
    if parts and all(len(p) > 1 and p[0] in SPLITS for p in parts):
        splits = [SPLITS[p[0]] for p in parts]
        parts = [p[1:] for p in parts]
    labels = {}
    classes = sorted({p[0] for p in parts if len(p) == 2})
    if len(classes) > 1 and all(len(p) == 2 for p in parts):
        number = {name: i for i, name in enumerate(classes)}
        values = np.array([number[p[0]] for p in parts], np.int64)
        labels["folder"] = Labels("class", values, tuple(map(printable, classes)))
    return keys, order, labels, splits


def mapped(file: IO[bytes]) -> np.ndarray:
    """Return a file's bytes as an array on mapped memory, which outlives the file object and needs no lock."""
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
