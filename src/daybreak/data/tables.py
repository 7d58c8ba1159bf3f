"""Lists and tables of images: CSV, Parquet and Arrow files, and data sets saved by Hugging Face ``datasets``.

N images (rows).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ..errors import Refused, nearest
from .decode import Unreadable
from .sources import DICOM, SPLITS, SUFFIXES, Labels, Source, by_frames, read_file, suffix

MASK_NAMES = ("mask", "masks", "annotation", "segmentation")
PATH_NAMES = ("path", "file", "filename", "file_name", "filepath", "image_path", "image", "img", "key")

FEW = 20  # rows; in fewer, a column may hold no value twice and yet be a label


def open_table(paths: list[Path], group: str | None, root: Path | None = None) -> Source:
    """Open a list or table, or several of one form as one; ``root`` is the folder they were found in.

    Parquet columns are held in memory, for they can't be read in place; Arrow files are mapped.
    """
    try:
        found = [_read(path) for path in paths]
        table = pa.concat_tables(found, promote_options="default")
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise Refused(f"{root or paths[0]}: can't be read as a table ({reason}).") from error
    named = split_names(paths, root) if root else None
    splits = _repeat(named, found) if named else None
    base = root or paths[0].parent
    return _from_table(root or paths[0], "table", table, base, group, splits)


def is_saved(path: Path) -> bool:
    """Return whether ``datasets`` saved this folder, or ``pack`` did or began to."""
    begun = (path / "pack.json").is_file() and (path / "facts").is_dir()
    return begun or any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def split_names(paths: list[Path], root: Path) -> list[str] | None:
    """Return the split of each shard below ``root``, or None if any is of none.

    They are called train-00000-of-00002.parquet, or lie in folders train and test.
    """
    first = [path.relative_to(root).parts[0].split("-")[0].split(".")[0] for path in paths]
    if len(set(first)) == 1 and first[0] not in SPLITS:
        first = [path.name.split("-")[0].split(".")[0] for path in paths]
    return [SPLITS[name] for name in first] if all(name in SPLITS for name in first) else None


def open_saved(path: Path, group: str | None) -> Source:
    """Open a folder that ``datasets`` wrote with ``save_to_disk``, or ``pack`` did."""
    table, splits = read_saved(path)
    return _from_table(path, "saved", table, path, group, splits)


def read_saved(path: Path) -> tuple[pa.Table, list[str] | None]:
    """Map the Arrow streams named in ``state.json`` as one table; the splits if they are of several."""
    if (path / "pack.json").is_file() and not (path / "state.json").is_file():
        raise Refused(f"{path}: a pack that is not finished; the daybreak pack command that began it goes on.")
    try:
        parts = [path]
        splits: list[str] | None = None
        if (path / "dataset_dict.json").is_file():
            names = json.loads((path / "dataset_dict.json").read_text())["splits"]
            parts = [path / name for name in names]
        found = []
        for part in parts:
            files = json.loads((part / "state.json").read_text())["_data_files"]
            found.append(pa.concat_tables([_read(part / entry["filename"]) for entry in files]))
        if len(parts) > 1 and all(part.name in SPLITS for part in parts):
            splits = _repeat([part.name for part in parts], found)
        return pa.concat_tables(found), splits
    except (pa.ArrowException, OSError, KeyError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise Refused(f"{path}: a damaged saved data set ({reason}); save it again.") from error


def _repeat(names: list[str], parts: list[pa.Table]) -> list[str]:
    """The split of each row of tables that are each of one split."""
    return [SPLITS[name] for name, part in zip(names, parts, strict=True) for _ in range(part.num_rows)]


def _read(path: Path) -> pa.Table:
    kind = suffix(path.name)
    if kind in (".csv", ".tsv"):
        options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
        parse = pyarrow.csv.ParseOptions(delimiter="\t" if kind == ".tsv" else ",", newlines_in_values=True)
        table = pyarrow.csv.read_csv(path, parse_options=parse, convert_options=options)
        if odd := [field.name for field in table.schema if _is_binary(field.type)]:
            raise Refused(f"{path}: its column '{odd[0]}' is not UTF-8 text; save the list as UTF-8, or give the folder.")
        return table
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        return pq.read_table(path, memory_map=True)
    source = pa.memory_map(str(path))
    return (pa.ipc.open_file(source) if start == b"ARRO" else pa.ipc.open_stream(source)).read_all()


def _from_table(
    path: Path, kind: str, table: pa.Table, base: Path, group: str | None, splits: list[str] | None
) -> Source:
    features = _features(table)
    mask, masks = _mask_column(table, base)
    table = table if mask is None else table.drop_columns([mask])
    image = _image_column(table, features)
    if image is not None:
        reader, paths = encoded(table[image], base)
        if "key" in table.column_names and pa.types.is_string(table.schema.field("key").type):
            keys = table["key"].to_pylist()
        else:
            keys = paths or [f"{i:08d}" for i in range(table.num_rows)]
        used = {image, "key"}
    else:
        column = _path_column(path, table, base)
        keys, used = [str(key) for key in table[column].to_pylist()], {column}
        kind = "list"

        def reader(i: int) -> np.ndarray:
            return read_file(base / keys[i])

    rest = table.drop_columns([name for name in table.column_names if name in used])
    labels, groups, splits = describe(path, rest, keys, group, splits, features)
    in_use = json.loads((table.schema.metadata or {}).get(b"daybreak", b"{}")).get("label")
    source = Source(path, kind, keys, reader, labels, in_use, groups, splits, masks=masks)
    return by_frames(source, [i for i, key in enumerate(keys) if kind == "list" and suffix(key) in DICOM])


def describe(
    path: Path, table: pa.Table, keys: list[str], group: str | None, splits: list[str] | None,
    features: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[dict[str, Labels], list[str] | None, list[str] | None]:
    """Return labels by column, groups and splits: what a table (N rows) says of N images beside the images.

    Args:
        group: the column that says whose image it is; None takes one of that name, if there is.
        splits: known already; None takes a column ``split``, if all in it are splits.
        features: what Hugging Face wrote of the columns.

    Raises Refused if there is no column ``group``.
    """
    groups = None
    if group is not None and group not in table.column_names:
        raise Refused(f"{path}: no group column '{group}' ({nearest(group, table.column_names)}).")
    group = group or ("group" if "group" in table.column_names else None)
    if group is not None:
        whose = table[group].to_pylist()
        groups = [key if who is None else str(who) for who, key in zip(whose, keys, strict=True)]
    if splits is None and "split" in table.column_names:
        found = table["split"].to_pylist()
        if all(name in SPLITS for name in found):
            splits = [SPLITS[name] for name in found]
    rest = [name for name in table.column_names if name not in (group, "split", "height", "width")]
    labels = {name: made for name in rest if (made := _labels(table[name], features.get(name))) is not None}
    flags = [
        name for name, held in labels.items() if held.kind == "class" and set(held.classes) <= {"0", "1"}
    ]
    if len(flags) > 1 and "labels" not in labels:
        columns = [np.where(labels[name].values < 0, np.nan, _as_numbers(labels[name])) for name in flags]
        labels["labels"] = Labels("multi", np.stack(columns, 1).astype(np.float32), tuple(flags))
    return labels, groups, splits


def _features(table: pa.Table) -> dict[str, Any]:
    """What Hugging Face wrote beside the columns: names of classes, which column is an image."""
    text = (table.schema.metadata or {}).get(b"huggingface")
    try:
        return json.loads(text)["info"]["features"] if text else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _has_bytes(kind: pa.DataType) -> bool:
    """Whether a column is Hugging Face's form of an image: bytes and path."""
    return pa.types.is_struct(kind) and any(
        field.name == "bytes" and _is_binary(field.type) for field in kind
    )


def _image_column(table: pa.Table, features: dict[str, Any]) -> str | None:
    declared = [
        name for name, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == "Image"
    ]
    held = [field.name for field in table.schema if _is_binary(field.type) or _has_bytes(field.type)]
    usual = [name for name in ("image", "img") if name in held]
    return next((name for name in [*declared, *usual, *held] if name in held), None)


def _mask_column(table: pa.Table, base: Path) -> tuple[str | None, Callable[[int], np.ndarray] | None]:
    """The column of masks, as encoded images or paths in ``base``, and a reader of it; None twice if there is none."""
    for name in (name for name in MASK_NAMES if name in table.column_names):
        kind = table.schema.field(name).type
        if _is_binary(kind) or _has_bytes(kind):
            return name, encoded(table[name], base)[0]
        paths = table[name].to_pylist() if pa.types.is_string(kind) or pa.types.is_large_string(kind) else []
        if suffix(next(filter(None, paths), "")) in SUFFIXES:

            def reader(i: int, paths: list[str | None] = paths) -> np.ndarray:
                if not paths[i]:
                    raise Unreadable("the table has no path in this row")
                return read_file(base / str(paths[i]))

            return name, reader
    return None, None


def _path_column(path: Path, table: pa.Table, base: Path) -> str:
    texts = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    for name in [*(n for n in PATH_NAMES if n in texts), *texts]:
        first = table[name].slice(0, 1).to_pylist()
        if first and first[0] and (Path(first[0]).suffix.lower() in SUFFIXES or (base / first[0]).is_file()):
            return name
    raise Refused(
        f"{path}: no column holds images or their paths; expected encoded images, or paths in {base} "
        f"such as 'a/1.jpg'; there are: {', '.join(table.column_names) or 'no columns'}."
    )


def encoded(column: pa.ChunkedArray, base: Path) -> tuple[Callable[[int], np.ndarray], list[str] | None]:
    """Return a reader of encoded images, (n,) uint8 views that copy nothing, and their paths if no two are alike.

    ``base`` is the folder of the paths in rows that hold no bytes.
    """
    paths: list[str | None] | None = None
    if pa.types.is_struct(column.type):
        if "path" in [field.name for field in column.type]:
            held = pc.struct_field(column, "path")
            paths = held.to_pylist() if held.null_count < len(held) else None
        column = pc.struct_field(column, "bytes")
    contents: list[np.ndarray] = []
    which, bounds = [], []
    for chunk in column.chunks:
        valid, offsets, data = chunk.buffers()
        kind = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
        ends = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1].astype(np.int64)
        places = np.stack([ends[:-1], ends[1:]], 1)
        if valid is not None:
            places[np.asarray(chunk.is_null())] = -1
        which.append(np.full(len(chunk), len(contents), np.int32))
        bounds.append(places)
        contents.append(np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8))
    chunk_of = np.concatenate(which) if which else np.empty(0, np.int32)
    bound = np.concatenate(bounds) if bounds else np.empty((0, 2), np.int64)

    def read(i: int) -> np.ndarray:
        start, end = bound[i].tolist()
        if start < 0:
            if not paths or not paths[i]:
                raise Unreadable("the table has no bytes in this row")
            return read_file(base / str(paths[i]))
        return contents[chunk_of[i]][start:end]

    is_named = paths is not None and None not in paths and len(set(paths)) == len(paths)
    return read, [str(path) for path in paths] if paths and is_named else None


def _labels(column: pa.ChunkedArray, feature: Any) -> Labels | None:
    """A column as labels: names and whole numbers are classes, other numbers values; None if neither."""
    kind = column.type
    named = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    if named and pa.types.is_integer(kind):
        values = column.fill_null(-1).to_numpy().astype(np.int64)
        return Labels("class", values, tuple(feature["names"]))
    if isinstance(feature, list):  # datasets wrote lists of classes in this form up to version 3
        feature = {"feature": feature[0]} if feature else None
    inner = feature.get("feature") if isinstance(feature, dict) else None
    if (
        (pa.types.is_list(kind) or pa.types.is_large_list(kind))
        and isinstance(inner, dict)
        and "names" in inner
    ):
        many = np.zeros((len(column), len(inner["names"])), np.float32)
        for row, present in enumerate(column.to_pylist()):
            many[row, present if present is not None else slice(None)] = 1 if present is not None else np.nan
        return Labels("multi", many, tuple(inner["names"]))
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_boolean(kind):
        column, kind = column.cast(pa.int64()), pa.int64()
    if pa.types.is_floating(kind):
        numbers = column.to_numpy().astype(np.float64)
        if not set(np.unique(numbers[~np.isnan(numbers)]).tolist()) <= {-1.0, 0.0, 1.0}:
            return Labels("value", numbers)
        whole = pa.array(np.nan_to_num(numbers, nan=-1).astype(np.int64))
        column, kind = pa.chunked_array([whole]), pa.int64()
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return None
    rows = column.to_pylist()
    unknown = {None, -1, ""}
    classes = sorted({row for row in rows if row not in unknown})
    if len(rows) > FEW and len(classes) == len(rows):  # a name for each image, not a class
        return None
    number = {name: i for i, name in enumerate(classes)} | dict.fromkeys(unknown, -1)
    return Labels("class", np.array([number[row] for row in rows], np.int64), tuple(map(str, classes)))


def _as_numbers(labels: Labels) -> np.ndarray:
    """The 0s and 1s that classes called "0" and "1" stand for."""
    return np.array([int(name) for name in labels.classes] + [0])[labels.values]
