"""A pack on disk: Arrow streams that ``datasets.load_from_disk`` opens, their checksums and their survey.

    data-00000-of-00003.arrow ...  the images and what is known of each; a shard is a fixed range of the source
    dataset_info.json, state.json  what ``datasets`` reads; state.json is written last, so with it a pack is whole
    pack.json                      settings and versions; once whole, size and SHA-256 of each shard
    survey.json, bad.csv           what was packed, and what was left out and why
    facts/                         a row for each image, from which an interrupted pack goes on

N images.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from ..errors import Refused
from .sources import Labels, Source
from .survey import Survey, as_json
from .tables import read_saved

RESERVED = ("image", "height", "width", "key", "group", "split")
TEXT = {"dtype": "string", "_type": "Value"}
PIXELS = {"dtype": "int32", "_type": "Value"}
BINARY = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

Progress = Callable[[int, int], None]  # done, of how many


@dataclass
class Column:
    """One column beside the images: its type, for Arrow and for ``datasets``, and its values at (n,) positions."""

    name: str
    kind: pa.DataType
    feature: dict[str, Any]
    take: Callable[[np.ndarray], pa.Array]


def label_names(source: Source) -> dict[str, str]:
    """Return what each label column is called in a pack: as in the source, but class folders are "label".

    Names that a pack needs itself get an underscore.
    """
    names: dict[str, str] = {}
    for name in source.labels:
        called = "label" if name == "folder" and source.kind in ("folder", "zip", "tar") else name
        while called in RESERVED or called in names.values():
            called += "_"
        names[name] = called
    return names


def columns_of(source: Source) -> list[Column]:
    """Return labels, keys, groups and splits of a source as the columns of a pack.

    Raises Refused for several labels an image of which only some are known: a list has no form for them.
    """
    names = label_names(source)
    made = [_label(source, names[name], held) for name, held in source.labels.items() if not _is_derived(source, name)]
    texts = {"key": source.keys, "group": source.groups, "split": source.splits}
    return made + [_text(name, held) for name, held in texts.items() if held is not None]


def _text(name: str, held: list[str]) -> Column:
    return Column(name, pa.string(), TEXT, lambda rows: pa.array([held[i] for i in rows], pa.string()))


def _label(source: Source, name: str, held: Labels) -> Column:
    values, classes = held.values, {"names": list(held.classes), "_type": "ClassLabel"}
    if held.kind == "class":
        return Column(name, pa.int64(), classes, lambda rows: pa.array(values[rows], mask=values[rows] < 0))
    if held.kind == "value":
        number = {"dtype": "float64", "_type": "Value"}
        return Column(name, pa.float64(), number, lambda rows: pa.array(values[rows], pa.float64()))
    unknown = np.isnan(values)
    if (unknown.any(1) & ~unknown.all(1)).any():
        raise Refused(
            f"{source.path}: '{name}' has images of which only some classes are known; "
            "a pack takes such labels as one column of 0 and 1 for each class."
        )
    kind, several = pa.list_(pa.int64()), {"feature": classes, "length": -1, "_type": "Sequence"}

    def take(rows: np.ndarray) -> pa.Array:
        return pa.array([None if np.isnan(row).any() else np.flatnonzero(row) for row in values[rows]], kind)

    return Column(name, kind, several, take)


def _is_derived(source: Source, name: str) -> bool:
    """Whether reading a pack makes this column again, from those of 0 and 1 that are packed with it."""
    held = source.labels[name]
    flags = [source.labels.get(name) for name in held.classes]
    return (name, held.kind) == ("labels", "multi") and all(
        flag is not None and flag.kind == "class" and set(flag.classes) <= {"0", "1"} for flag in flags
    )


def features(columns: list[Column]) -> dict[str, Any]:
    """Return the columns as ``datasets`` describes them."""
    known: dict[str, Any] = {"image": {"_type": "Image"}, "height": PIXELS, "width": PIXELS}
    return known | {column.name: column.feature for column in columns}


def schema(columns: list[Column], label: str | None) -> pa.Schema:
    """Return the schema of all shards, with the names of classes and the label column in use."""
    told = {"huggingface": json.dumps({"info": {"features": features(columns)}}), "daybreak": json.dumps({"label": label})}
    fields = [("image", BINARY), ("height", pa.int32()), ("width", pa.int32())]
    return pa.schema(fields + [(column.name, column.kind) for column in columns], told)


def batch(
    form: pa.Schema, columns: list[Column], rows: np.ndarray, contents: list[np.ndarray], sizes: np.ndarray
) -> pa.RecordBatch:
    """Return the images ``contents`` that stand at ``rows`` (n,) of the source, of ``sizes`` (n, 2), as one batch."""
    ends = np.concatenate([[0], np.cumsum([len(data) for data in contents])]).astype(np.int32)
    joined = b"".join([data.data for data in contents])
    held = pa.Array.from_buffers(pa.binary(), len(rows), [None, pa.py_buffer(ends), pa.py_buffer(joined)])
    image = pa.StructArray.from_arrays([held, pa.nulls(len(rows), pa.string())], fields=list(BINARY))
    height, width = (pa.array(np.ascontiguousarray(sizes[:, i]), pa.int32()) for i in (0, 1))
    return pa.RecordBatch.from_arrays([image, height, width, *(column.take(rows) for column in columns)], schema=form)


def shard_name(number: int, count: int) -> str:
    return f"data-{number:05d}-of-{count:05d}.arrow"


def part_name(path: Path) -> Path:
    """Return where a file is written before it has its name."""
    return path.with_name(f".{path.name}.part")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that gets its name once it is whole and on the disk."""
    with open(part_name(path), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    rename(path)


def rename(path: Path) -> None:
    """Give a file that is whole and on the disk its name, and put the name on the disk too."""
    os.replace(part_name(path), path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, told: Any) -> None:
    with whole(path) as file:
        file.write(as_json(told).encode())


def read_pack(folder: Path) -> dict[str, Any]:
    """Return what ``pack.json`` says of a whole pack.

    Raises Refused if the folder is no pack, or one that is not finished.
    """
    try:
        told = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        if "shards" in told and (folder / "state.json").is_file():
            return told
    except FileNotFoundError as error:
        raise Refused(f"{folder}: no pack.json in it, so it is no pack; give the folder that daybreak pack wrote.") from error
    except (ValueError, TypeError) as error:
        raise Refused(f"{folder / 'pack.json'}: damaged ({error}); pack again into another folder.") from error
    raise Refused(f"{folder}: a pack that is not finished; the daybreak pack command that began it goes on.")


def checksum(path: Path) -> str:
    """Return SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(shards: list[dict[str, Any]]) -> str:
    """Return a hash of the shards' names, sizes and checksums: what ties ``survey.json`` to them."""
    return hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()


def verify_pack(folder: Path, progress: Progress) -> list[str]:
    """Read every byte of a pack again; return a sentence for each shard that is damaged, none if all are whole.

    ``progress`` is told bytes.  Raises Refused as ``read_pack`` does.
    """
    shards = read_pack(folder)["shards"]
    damaged, done, total = [], 0, sum(shard["bytes"] for shard in shards)
    progress(done, total)
    for shard in shards:
        path = folder / shard["file"]
        if not path.is_file():
            damaged.append(f"{path}: missing")
        elif path.stat().st_size != shard["bytes"]:
            damaged.append(f"{path}: {path.stat().st_size:,} bytes, {shard['bytes']:,} were written")
        elif checksum(path) != shard["sha256"]:
            damaged.append(f"{path}: its bytes are not those that were written")
        done += shard["bytes"]
        progress(done, total)
    return damaged


def stored_survey(source: Source, *, channels: int | None = None, background: int = 255) -> Survey | None:
    """Return the survey that ``pack`` wrote, with the sizes from the Arrow columns; nothing is decoded.

    None if the source is no pack, the survey is of other shards, or it was made for another number of channels,
    another background under transparent pixels, or without the label column in use.

    Raises Refused if a shard has not the size that was written.
    """
    told = _read_survey(source.path) if source.kind == "saved" else None
    if told is None:
        return None
    shards = read_pack(source.path)["shards"]
    for shard in shards:
        path = source.path / shard["file"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            raise Refused(f"{path}: not the file that was written; daybreak pack --verify {source.path} names all such.")
    prints = told["fingerprints"]
    if told["shards"] != seal(shards) or (source.label or "") not in prints or told["images"] != len(source):
        return None
    if channels not in (None, told["channels"]) or (told["alpha"] and background != told["background"]):
        return None
    table, _ = read_saved(source.path)
    return Survey(
        path=source.path,
        kind=source.kind,
        keys=source.keys,
        sizes=np.stack([table[name].to_numpy() for name in ("height", "width")], 1),
        bad={},
        channels=told["channels"],
        depth=told["depth"],
        mean=tuple(told["mean"]),
        std=tuple(told["std"]),
        duplicates=told["duplicates"],
        decoded=told["decoded"],
        fingerprint=prints[source.label or ""],
        formats=told["formats"],
        label=source.label,
        labels=source.labels[source.label] if source.label else None,
        label_columns=list(source.labels),
    )


def _read_survey(folder: Path) -> dict[str, Any] | None:
    """What ``survey.json`` of a pack says; None where there is none."""
    if not (folder / "pack.json").is_file() or not (folder / "survey.json").is_file():
        return None
    try:
        told = json.loads((folder / "survey.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refused(f"{folder / 'survey.json'}: damaged ({error}); remove it, and the images are surveyed again.") from error
    return told if "fingerprints" in told else None
