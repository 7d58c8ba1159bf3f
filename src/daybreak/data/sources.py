"""One argument to images and what is known of them: folder, archive, list, table or saved data set, sniffed.

N images.
"""

import bz2
import gzip
import lzma
import mmap
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import numpy as np

from ..errors import Refused, nearest
from .decode import Unreadable

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".ppm", ".pgm", ".pbm",
                      ".pnm", ".webp", ".tif", ".tiff", ".gif"})
TABLES = frozenset([".csv", ".tsv", ".parquet", ".arrow", ".feather", ".ipc"])
SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
PREFERRED = ("label", "labels", "class", "target", "y")  # columns taken as the label where several could be


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
    kind: str  # "folder", "zip", "tar", "list", "table" or "saved"
    keys: list[str]  # a name for each image: its path inside, or its row
    reader: Callable[[int], np.ndarray]
    labels: dict[str, Labels] = field(default_factory=dict)  # by column; "folder" for class folders
    label: str | None = None  # the column in use
    groups: list[str] | None = None  # whose image it is: nobody stands on both sides of a split
    splits: list[str] | None = None  # "train", "val" or "test" for each image

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, i: int) -> np.ndarray:
        """Return the encoded bytes of image ``i``, (n,) uint8, from any thread; or raise Unreadable."""
        return self.reader(i)


def open_source(path: str | Path, *, label: str | None = None, group: str | None = None) -> Source:
    """Find out what ``path`` is and list its images; nothing is decoded.

    A folder (nested or flat), a zip or tar file of one (tar.gz, .bz2 and .xz are unpacked to a temporary
    file), a CSV or Parquet list with a column of paths, a Parquet or Arrow table with a column of encoded
    images or a folder of such tables, or a folder that ``datasets`` saved.  Folders are classes when every
    image lies in one and there are two or more; folders ``train``, ``val`` and ``test`` around them are
    splits; a folder ``masks`` beside one called ``images`` is left out.

    Args:
        label: the column to use as label; without it "label" or "class", else the only one there is.
        group: the column that says whose image it is; without it a column of that name.

    Raises Refused if there is nothing to read, the file is of no known kind, or a column is missing.
    """
    from . import tables  # it needs Source from here

    path = Path(path)
    if not path.exists():
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise Refused(f"{path}: no such file or folder{'; ' + nearest(path.name, beside) if beside else ''}.")
    if path.is_dir():
        source = tables.open_saved(path, group) if tables.is_saved(path) else _open_folder(path, group)
    else:
        with open(path, "rb") as file:
            start = file.read(8)
        if start[:4] in (b"PK\3\4", b"PK\5\6"):
            source = _open_zip(path)
        elif path.suffix.lower() in TABLES or start[:4] in (b"PAR1", b"ARRO"):
            source = tables.open_table([path], group)
        elif tarfile.is_tarfile(path):
            source = _open_tar(path, start)
        elif path.suffix.lower() in SUFFIXES:
            raise Refused(f"{path}: one image; expected a set of them: give its folder, {path.parent}.")
        else:
            raise Refused(
                f"{path}: neither a folder, a zip or tar file, a CSV, Parquet or Arrow table, nor a saved "
                "data set; give one of those."
            )
    if not source.keys:
        raise Refused(f"{path}: no images in this {source.kind}; expected files such as .jpg or .png.")
    if group is not None and source.groups is None:
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
    names, table_paths, seen = [], [], set()
    for folder, below, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # links may lead back to where they stand
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith((".", "__MACOSX")))
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES and not name.startswith("."):
                names.append(Path(folder, name).relative_to(path).as_posix())
            elif suffix in TABLES - {".csv", ".tsv"}:
                table_paths.append(Path(folder, name))
    if not names and table_paths:
        from . import tables

        return tables.open_table(sorted(table_paths), group, path)
    keys, order, labels, splits = _layout(sorted(names))
    inside = [sorted(names)[i] for i in order]

    def read(i: int) -> np.ndarray:
        return read_file(path / inside[i])

    return Source(path, "folder", keys, read, labels, splits=splits)


def read_file(path: Path) -> np.ndarray:
    """Return a file's bytes; Unreadable where they can't be had."""
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def _layout(names: Sequence[str]) -> tuple[list[str], list[int], dict[str, Labels], list[str] | None]:
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
        labels["folder"] = Labels("class", np.array([number[p[0]] for p in parts], np.int64), tuple(classes))
    return keys, order, labels, splits


def _check_member(path: Path, name: str, is_link: bool) -> None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if is_link:
        raise Refused(
            f"{path}: the member '{name}' is a link; pack the files themselves (tar -h follows links)."
        )
    if name.startswith(("/", "\\")) or ".." in parts or (parts and parts[0].endswith(":")):
        raise Refused(
            f"{path}: the member '{name}' points outside the archive; pack it again from inside its folder."
        )


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in parts)
    return os.path.splitext(name)[1].lower() in SUFFIXES and not hidden


def _open_zip(path: Path) -> Source:
    found: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                _check_member(path, info.filename, stat.S_ISLNK(info.external_attr >> 16))
                if not info.is_dir() and _is_image(info.filename):
                    if info.flag_bits & 1:
                        raise Refused(
                            f"{path}: the member '{info.filename}' is encrypted; pack it without a password."
                        )
                    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                        raise Refused(
                            f"{path}: the member '{info.filename}' is compressed by method "
                            f"{info.compress_type}; pack it with plain zip (deflate or store)."
                        )
                    found[info.filename] = info
    except (zipfile.BadZipFile, EOFError) as error:
        raise Refused(f"{path}: a damaged zip file ({error}); fetch it again.") from error
    names = sorted(found)
    keys, order, labels, splits = _layout(names)
    members = [found[names[i]] for i in order]
    places = [(m.header_offset, m.compress_size, m.compress_type == zipfile.ZIP_DEFLATED) for m in members]
    with open(path, "rb") as file:
        content = _mapped(file)

    def read(i: int) -> np.ndarray:
        offset, size, deflated = places[i]
        # The local header's name and extra field may be longer than those of the directory at the end.
        name_size, extra_size = struct.unpack_from("<HH", content.data, offset + 26)
        begin = offset + 30 + name_size + extra_size
        data = content[begin : begin + size]
        if not deflated:
            return data
        try:
            return np.frombuffer(zlib.decompress(data.data, -zlib.MAX_WBITS), np.uint8)
        except zlib.error as error:
            raise Unreadable(f"damaged in the zip file: {error}") from error

    return Source(path, "zip", keys, read, labels, splits=splits)


def _open_tar(path: Path, start: bytes) -> Source:
    opener: Any = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}.get(start[:2])
    file: IO[bytes] = open(path, "rb")  # noqa: SIM115 (closed below)
    found: dict[str, tuple[int, int]] = {}
    try:
        if opener:  # members of a compressed tar can't be reached one by one
            file.close()
            file = tempfile.TemporaryFile()  # noqa: SIM115 (closed below)
            with opener(path, "rb") as packed:
                while block := packed.read(1 << 20):
                    file.write(block)
            file.flush()
            file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                _check_member(path, member.name, member.issym() or member.islnk())
                if member.isfile() and _is_image(member.name):
                    found[member.name] = member.offset_data, member.size
        content = _mapped(file)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise Refused(f"{path}: a damaged tar file ({error}); fetch it again.") from error
    finally:
        file.close()
    names = sorted(found)
    keys, order, labels, splits = _layout([str(PurePosixPath(name)) for name in names])
    places = [found[names[i]] for i in order]

    def read(i: int) -> np.ndarray:
        offset, size = places[i]
        return content[offset : offset + size]

    return Source(path, "tar", keys, read, labels, splits=splits)


def _mapped(file: IO[bytes]) -> np.ndarray:
    """A file's bytes as an array on mapped memory, which outlives the file object and needs no lock."""
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
