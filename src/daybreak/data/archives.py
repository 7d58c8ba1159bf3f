"""Zip and tar files: their members are mapped in place, and those that point outside are refused by name."""

import bz2
import contextlib
import gzip
import lzma
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from ..errors import Refused
from .decode import MAX_PIXELS, Unreadable
from .sources import SUFFIXES, Source, from_names, mapped, suffix

MAX_MEMBER = 8 * MAX_PIXELS + (1 << 20)  # bytes: four channels of 16 bits, and a header


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


def is_image(name: str) -> bool:
    """Whether a member of an archive is called like a picture, and is not hidden."""
    parts = PurePosixPath(name).parts
    hidden = any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in parts)
    return suffix(name) in SUFFIXES and not hidden


def open_zip(path: Path) -> Source:
    """Open a zip file of folders of images; stored members are mapped in place."""
    found: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                _check_member(path, info.filename, stat.S_ISLNK(info.external_attr >> 16))
                if not info.is_dir() and is_image(info.filename):
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
    with open(path, "rb") as file:
        content = mapped(file)

    def read(name: str) -> np.ndarray:
        info = found[name]
        # The local header's name and extra field may be longer than those of the directory at the end.
        name_size, extra_size = struct.unpack_from("<HH", content.data, info.header_offset + 26)
        begin = info.header_offset + 30 + name_size + extra_size
        data = content[begin : begin + info.compress_size]
        if info.compress_type == zipfile.ZIP_STORED:
            return data
        if info.file_size > MAX_MEMBER:
            raise Unreadable(f"it unpacks to {info.file_size:,} bytes, more than any picture of 200 megapixels")
        try:  # never more than the directory says: a small member may hold any number of zeros
            unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data.data, max(info.file_size, 1))
        except zlib.error as error:
            raise Unreadable(f"damaged in the zip file: {error}") from error
        if len(unpacked) != info.file_size:
            raise Unreadable(f"damaged in the zip file: {len(unpacked):,} of {info.file_size:,} bytes")
        return np.frombuffer(unpacked, np.uint8)

    return from_names(path, "zip", list(found), read)


def open_tar(path: Path, start: bytes, group: str | None) -> Source:
    """Open a tar file, of folders of images or of WebDataset's samples; ``start`` are its first bytes."""
    from . import webdataset  # it needs the members from here

    with _uncompressed(path, start) as file:
        found = tar_members(path, file)
        content = mapped(file)
    if webdataset.has_siblings(found):
        return webdataset.from_tars(path, {path.stem: found}, lambda _: content, group)

    def read(name: str) -> np.ndarray:
        offset, size = found[name]
        return content[offset : offset + size]

    return from_names(path, "tar", list(filter(is_image, found)), read)


@contextlib.contextmanager
def _uncompressed(path: Path, start: bytes) -> Iterator[IO[bytes]]:
    """The file itself, or what is in it: members of a compressed tar can't be reached one by one."""
    opener: Any = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}.get(start[:2])
    if not opener:
        with open(path, "rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        try:
            with opener(path, "rb") as packed:
                while block := packed.read(1 << 20):
                    file.write(block)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise Refused(f"{path}: a damaged tar file ({error}); fetch it again.") from error
        file.flush()
        file.seek(0)
        yield file


def tar_members(path: Path, file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """Return offset and size of each file in a tar that is not compressed; nothing is unpacked.

    Raises Refused if it is damaged, or a member is a link or points outside.
    """
    found = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                _check_member(path, member.name, member.issym() or member.islnk())
                if member.isfile():
                    found[str(PurePosixPath(member.name))] = member.offset_data, member.size
    except (tarfile.TarError, EOFError, OSError) as error:
        raise Refused(f"{path}: a damaged tar file ({error}); fetch it again.") from error
    return found
