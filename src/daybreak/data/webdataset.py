"""WebDataset's tars: files that share a stem, such as 0001.jpg, 0001.cls and 0001.json, are one sample.

Its format is described at github.com/webdataset/webdataset: a name is cut at the first dot of its last part into
stem and extension.  Shards are mapped in place and nothing is unpacked.

N images.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..errors import Refused
from .archives import is_image, tar_members
from .sources import DICOM, Source, by_frames, layout, mapped, suffix
from .tables import describe, split_names

OPEN = 64  # shards mapped at a time: each takes a file handle, and there may be thousands
SIBLINGS = ("cls", "json")

Place = tuple[int, int]  # offset and size


class Picture(NamedTuple):
    """An image in one of the shards."""

    key: str
    name: str  # of the member
    shard: int
    place: Place
    fields: dict[str, Any]  # what is said beside it


def cut(name: str) -> tuple[str, str]:
    """Return stem and extension of a member's name: a/0001.seg.png is a/0001 and seg.png."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension


def has_siblings(names: Iterable[str]) -> bool:
    """Whether some picture among the members of a tar has a .cls or .json of its own stem."""
    pictures, others = set(), set()
    for name in names:
        stem, extension = cut(name)
        if is_image(name):
            pictures.add(stem)
        elif extension.lower() in SIBLINGS:
            others.add(stem)
    return not pictures.isdisjoint(others)


def numbered(path: Path) -> list[Path]:
    """Return the shards that a path such as ``train-{000000..000146}.tar`` stands for; none if it has no braces.

    Raises Refused if one of them is missing.
    """
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", path.name)
    if not found or path.exists():
        return []
    before, first, last, after = found.groups()
    paths = [path.with_name(f"{before}{i:0{len(first)}d}{after}") for i in range(int(first), int(last) + 1)]
    missing = [p.name for p in paths if not p.is_file()]
    if missing or not paths:
        raise Refused(f"{path}: {len(missing)} of its {len(paths)} shards are not there ({', '.join(missing[:3])}); check "
                      "the numbers in the braces.")
    return paths


def open_shards(path: Path, shards: list[Path], group: str | None) -> Source:
    """Open tars as one data set; ``path`` is their folder, or the name with braces that stands for them.

    Splits are read from the shards' names (train-000000.tar) or from the folders they lie in.

    Raises Refused if a shard is damaged or compressed, or holds links or ways out.
    """
    root = path if path.is_dir() else path.parent
    names = [shard.relative_to(root).as_posix().removesuffix(".tar") for shard in shards]
    tars = {}
    for name, shard in zip(names, shards, strict=True):
        with open(shard, "rb") as file:
            tars[name] = tar_members(shard, file)

    @functools.lru_cache(OPEN)
    def content(number: int) -> np.ndarray:
        with open(shards[number], "rb") as file:
            return mapped(file)

    return from_tars(path, tars, content, group, split_names(shards, root))


def from_tars(path: Path, tars: Mapping[str, Mapping[str, Place]], content: Callable[[int], np.ndarray],
              group: str | None, shard_splits: list[str] | None = None) -> Source:
    """Make a source of the samples in tars.

    A key is the stem, behind its shard's name (train-000000/0001) if stems repeat.  Of a sample with several
    pictures those of a longer extension (0001.mask.png beside 0001.jpg) are left out; where several are left,
    each is an image and its key is its whole name.  Labels are the .cls (an index or a name) and what is a text,
    a number or yes or no in the .json; without any, folders in the stems.

    Args:
        tars: members and their places, by shard.
        content: gives the bytes of a shard by its number.
        shard_splits: one a shard.

    Raises Refused if a .json is broken, or there is no column ``group``.
    """
    found: list[Picture] = []
    for number, (shard, members) in enumerate(tars.items()):
        samples: dict[str, dict[str, Place]] = {}
        for name, place in sorted(members.items()):
            stem, extension = cut(name)
            if is_image(name):
                samples.setdefault(stem, {})[extension] = place
            elif extension.lower() in SIBLINGS:
                samples.setdefault(stem, {})[extension.lower()] = place
        for stem, parts in samples.items():
            pictures = [e for e in parts if e not in SIBLINGS]
            pictures = [e for e in pictures if "." not in e] or pictures
            if pictures:
                fields = _fields(f"{path}: {shard}/{stem}", parts, content(number))
                found += [Picture(stem if len(pictures) == 1 else f"{stem}.{e}", f"{stem}.{e}", number, parts[e], fields)
                          for e in pictures]
    _, order, folders, splits = layout([picture.name for picture in found])
    found = [found[i] for i in order]
    keys, shards = [picture.key for picture in found], list(tars)
    if len(set(keys)) < len(keys):
        keys = [f"{shards[picture.shard]}/{picture.key}" for picture in found]
    if shard_splits:
        splits = [shard_splits[picture.shard] for picture in found]
    names = dict.fromkeys(name for picture in found for name in picture.fields)
    table = pa.table({name: _column(name, [picture.fields.get(name) for picture in found]) for name in names})
    labels, groups, splits = describe(path, table, keys, group, splits)

    def read(i: int) -> np.ndarray:
        offset, size = found[i].place
        return content(found[i].shard)[offset : offset + size]

    source = Source(path, "webdataset", keys, read, labels or folders, groups=groups, splits=splits)
    return by_frames(source, [i for i, picture in enumerate(found) if suffix(picture.name) in DICOM])


def _fields(where: str, parts: Mapping[str, Place], content: np.ndarray) -> dict[str, Any]:
    """What is said of a sample beside its picture."""
    texts = {name: content[at : at + size].tobytes() for name, (at, size) in parts.items() if name in SIBLINGS}
    fields: dict[str, Any] = {}
    if "json" in texts:
        try:
            found = json.loads(texts["json"])
        except ValueError as error:
            raise Refused(f"{where}.json is not valid JSON ({error}); mend it or leave it out.") from error
        found = found if isinstance(found, dict) else {"json": found}
        fields = {name: value for name, value in found.items() if isinstance(value, str | int | float)}
    if "cls" in texts:
        fields["cls"] = texts["cls"].decode("utf-8", "backslashreplace").strip()
    return fields


def _column(name: str, values: list[Any]) -> pa.Array:
    """Values of one kind as they are, else all as texts; indices of classes as numbers; None is unknown."""
    if name == "cls" and all(value is None or re.fullmatch(r"-?\d{1,18}", str(value)) for value in values):
        values = [None if value is None else int(value) for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError):
        return pa.array([None if value is None else str(value) for value in values])
