"""A look at every image before training: sizes, channels, depth, statistics, bad files, a fingerprint.

N images, C channels.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import Refused
from .decode import Unreadable, decode, probe
from .sources import Labels, Source, printable
from .threads import default_threads, quiet_opencv

DECODE_ALL = 100_000  # more images than this are decoded in part; headers and bytes are read of all
SAMPLE = 20_000
CHUNK = 64  # images a task: fewer cost time in the pool, more leave threads without work
BLOCK = 65_536  # rows handled at once where all of them together would fill the memory
NOTHING = bytes(16)  # the digest of an image that could not be read


@dataclass
class Survey:
    """What is known of N images after one look at each."""

    path: Path
    kind: str
    keys: list[str]
    sizes: np.ndarray  # (N, 2) int32 upright height and width, 0 where unreadable
    bad: dict[int, str]  # position: reason
    channels: int
    depth: int  # 8 or 16
    mean: tuple[float, ...]  # C numbers in [0, 1]; every image weighs the same
    std: tuple[float, ...]
    duplicates: int  # images whose bytes stand earlier in the set
    decoded: int  # images decoded in full; the others' headers and ends were read
    fingerprint: str  # 16 hexadecimal digits of SHA-256 over sorted (key, bytes, label)
    formats: dict[str, int]
    label: str | None  # the label column in use
    labels: Labels | None
    label_columns: list[str]  # what could be chosen

    def sentence(self) -> str:
        """Return what was found, such as "48,211 images in 312 folders; 96 unreadable; no labels"."""
        folders = len({key.rsplit("/", 1)[0] for key in self.keys if "/" in key})
        where = f" in {folders:,} folder{'s' * (folders > 1)}" if folders else ""
        low, high = self.sizes[self.sizes[:, 0] > 0].min(0).tolist(), self.sizes.max(0).tolist()
        size = " to ".join(f"{width} x {height}" for height, width in ([low] if low == high else [low, high]))
        colour = {1: "grey", 3: "colour", 4: "colour with alpha"}[self.channels]
        bits = ", 16 bits" if self.depth == 16 else ""
        parts = [f"{len(self.keys):,} images{where}", f"{size} pixels, {colour}{bits}"]
        parts += [f"{len(self.bad):,} unreadable"] if self.bad else []
        parts += [f"{self.duplicates:,} exact duplicates"] if self.duplicates else []
        if self.labels is None:
            choice = f" chosen; --label takes {', '.join(self.label_columns)}" if self.label_columns else ""
            parts.append(f"no labels{choice}")
        elif self.labels.kind == "value":
            parts.append(f"values in '{self.label}'")
        else:
            several = " (several an image)" if self.labels.kind == "multi" else ""
            parts.append(f"{len(self.labels.classes):,} classes from '{self.label}'{several}")
        return "; ".join(parts)

    def told(self) -> dict[str, Any]:
        """Return all but the lists of images, as ``survey.json`` holds it."""
        readable = self.sizes[self.sizes[:, 0] > 0]
        counts: dict[str, int] = {}
        if self.labels is not None and self.labels.kind == "class":
            found = np.bincount(self.labels.values + 1, minlength=len(self.labels.classes) + 1).tolist()
            counts = dict(zip([*self.labels.classes, "(unknown)"], [*found[1:], found[0]], strict=True))
        return {
            "path": str(self.path),
            "kind": self.kind,
            "sentence": self.sentence(),
            "images": len(self.keys),
            "unreadable": len(self.bad),
            "duplicates": self.duplicates,
            "decoded": self.decoded,
            "height": _range(readable[:, 0]),
            "width": _range(readable[:, 1]),
            "aspect": _range(readable[:, 1] / readable[:, 0]),
            "channels": self.channels,
            "depth": self.depth,
            "mean": list(self.mean),
            "std": list(self.std),
            "formats": self.formats,
            "label": self.label,
            "labels": self.labels.kind if self.labels else "none",
            "classes": counts,
            "fingerprint": self.fingerprint,
        }

    def write(self, folder: Path) -> None:
        """Write ``survey.json`` and ``bad.csv``."""
        # A byte of a name that is not UTF-8 becomes JSON's own escape of it; a list of paths keeps the byte.
        (folder / "survey.json").write_text(as_json(self.told()), encoding="utf-8", errors="backslashreplace")
        with open(folder / "bad.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            write_bad(file, ((self.keys[i], reason) for i, reason in sorted(self.bad.items())))


def as_json(told: Any) -> str:
    """Return the text of one of the files that say what is in a folder."""
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


def write_bad(file: TextIO, rows: Iterable[tuple[str, str]]) -> None:
    """Write (path, reason) of what could not be read."""
    writer = csv.writer(file)
    writer.writerow(["path", "reason"])
    writer.writerows(rows)


def look_type(channels: int | None = None) -> np.dtype:
    """What one look at an image gives, as a row of a structured array; ``channels`` as in ``survey``."""
    return np.dtype(
        [
            ("size", np.int32, 2),  # upright height and width, 0 where unreadable
            ("moments", np.float64, (2, channels or 3)),  # mean and mean square in [0, 1], NaN if not decoded
            ("grey", np.bool_),  # for all that is known: what is not decoded says nothing
            ("deep", np.bool_),  # 16 bits
            ("alpha", np.bool_),
            ("digest", np.uint8, 16),  # BLAKE2b of the bytes
            ("format", "S12"),
        ]
    )


def look(
    row: np.void, data: np.ndarray, *, channels: int | None = None, background: int = 255, pixels: bool = True
) -> None:
    """Fill a row of ``look_type(channels)`` from encoded bytes ``data`` (n,) uint8.

    With ``pixels`` False the bytes, header and end are read, and nothing is decoded.  Raises Unreadable; the
    digest is there all the same, for what is no image is part of the data too.
    """
    row["digest"] = np.frombuffer(hashlib.blake2b(data.data, digest_size=16).digest(), np.uint8)
    row["moments"], row["grey"] = np.nan, True
    header = probe(data)
    if not header.complete:
        raise Unreadable("the file is truncated: its end is missing")
    stored = channels or (1 if header.channels == 1 else 3)
    depth = header.depth if header.channels == 1 and stored == 1 else 8
    if pixels:
        image = decode(data, channels=stored, depth=depth, background=background)
        row["moments"], row["grey"] = _measure(image)
    row["deep"], row["alpha"], row["format"] = depth == 16, header.channels in (2, 4), header.format.encode()
    row["size"] = header.height, header.width


def survey(
    source: Source,
    *,
    channels: int | None = None,
    background: int = 255,
    max_bad: float = 0.05,
    threads: int | None = None,
) -> Survey:
    """Read every image's bytes, header and end, and decode all of them (20,000 where there are over 100,000).

    Args:
        channels: 1, 3 or 4; None takes 1 if every image is grey (also those stored in colour), else 3.
        background: grey level under transparent pixels.
        max_bad: largest share of unreadable images, in [0, 1].
        threads: None takes one for each processor.

    Statistics are the mean over images of each image's own, summed in the order of the set, so that no number
    of threads changes a bit.  Raises Refused if too many images, or all, are unreadable.
    """
    if channels not in (None, 1, 3, 4):
        raise Refused(f"{channels} channels; expected 1 (grey), 3 (colour) or 4 (colour with alpha).")
    quiet_opencv()
    n = len(source)
    is_sampled = np.ones(n, bool)
    if n > DECODE_ALL:
        hashes = np.fromiter(map(key_hash, source.keys), np.uint64, n)
        is_sampled[np.argsort(hashes, kind="stable")[SAMPLE:]] = False
    looks = np.zeros(n, look_type(channels))
    bad: dict[int, str] = {}

    def look_at(start: int) -> None:
        for i in range(start, min(start + CHUNK, n)):
            try:
                data = source.read(i)
                look(looks[i], data, channels=channels, background=background, pixels=bool(is_sampled[i]))
            except Unreadable as reason:
                bad[i] = str(reason)

    with ThreadPoolExecutor(threads or default_threads(), "survey") as pool:
        list(pool.map(look_at, range(0, n, CHUNK)))
    if bad:
        first = min(bad)
        refuse_bad(source, len(bad), max_bad, source.keys[first], bad[first])
    return summarise(source, looks, bad=dict(sorted(bad.items())), channels=channels)


def summarise(
    source: Source, looks: np.ndarray, *, bad: dict[int, str] | None = None, channels: int | None = None
) -> Survey:
    """Return the survey of a source whose N images gave ``looks`` (N,) of ``look_type(channels)``.

    Nothing here grows faster than the arrays: a pack of millions is surveyed too.
    """
    bad = bad or {}
    good = looks["size"][:, 0] > 0
    decoded = good & ~np.isnan(looks["moments"][:, 0, 0])
    if channels is None:
        channels = 1 if looks["grey"][decoded].all() else 3
    depth = 16 if channels == 1 and looks["deep"][good].all() else 8
    mean, square = _average(looks["moments"], decoded)[:, :channels]  # each (C,)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    labels = source.labels[source.label] if source.label else None
    contents = np.ascontiguousarray(looks["digest"])  # (N, 16)
    ordered = contents[good].view("S16")
    ordered.sort(axis=0)
    return Survey(
        path=source.path,
        kind=source.kind,
        keys=source.keys,
        sizes=np.ascontiguousarray(looks["size"]),
        bad=bad,
        channels=channels,
        depth=depth,
        mean=tuple(mean.tolist()),
        std=tuple(np.where(std > 0, std, 1.0).tolist()),  # one flat colour everywhere is divided by nothing
        duplicates=int((ordered[1:] == ordered[:-1]).sum()),
        decoded=int(decoded.sum()),
        fingerprint=fingerprint(source.keys, contents, labels),
        formats=_count(looks["format"], good),
        label=source.label,
        labels=labels,
        label_columns=list(source.labels),
    )


def key_hash(key: str) -> int:
    """Return a 64-bit number that depends on the key alone: what puts it in a sample or a split."""
    content = key.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _measure(image: np.ndarray) -> tuple[np.ndarray, bool]:
    """Mean and mean square (2, C) of pixels in [0, 1], and whether they are grey."""
    mean, std = (x[:, 0] / (255 if image.dtype == np.uint8 else 65535) for x in cv2.meanStdDev(image))
    grey = image.shape[2] == 1 or (
        image.shape[2] == 3
        and mean[0] == mean[1] == mean[2]  # a cheap test that settles nearly all colour images
        and bool((image[:, :, 0] == image[:, :, 1]).all() and (image[:, :, 1] == image[:, :, 2]).all())
    )
    return np.stack([mean, std**2 + mean**2]), grey


def _blocks(n: int) -> Iterator[slice]:
    """The rows in parts, where work on all of them at once would take several times their memory."""
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


def _average(moments: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean of the chosen rows of (N, 2, C), in the order of the set."""
    total = np.zeros(moments.shape[1:])
    for part in _blocks(len(moments)):
        total += moments[part][chosen[part]].sum(0)
    return total / chosen.sum()


def _count(formats: np.ndarray, chosen: np.ndarray) -> dict[str, int]:
    """How many of the chosen there are of each, the commonest first; of equally many, the one that was met first."""
    counts: Counter[str] = Counter()
    for part in _blocks(len(formats)):
        names, first, found = np.unique(formats[part][chosen[part]], return_index=True, return_counts=True)
        for i in np.argsort(first):
            counts[names[i].decode()] += int(found[i])
    return dict(counts.most_common())


def refuse_bad(source: Source, num_bad: int, max_bad: float, key: str, reason: str) -> None:
    """Raise Refused if ``num_bad`` unreadable images, such as ``key``, are too many, or all."""
    if num_bad == len(source) or num_bad > max_bad * len(source):
        raise Refused(
            f"{source.path}: {num_bad:,} of {len(source):,} images are unreadable, more than --max-bad "
            f"{max_bad:g} allows; the first is {printable(key)}: {reason}."
        )


def fingerprint(keys: Sequence[str], contents: np.ndarray, labels: Labels | None) -> str:
    """Return 16 hexadecimal digits: a hash of what the data are, whatever their order or container.

    ``contents`` (N, 16) uint8 are the digests of the images' bytes, 0 where they could not be had.
    """
    encoded = pa.concat_arrays(
        [
            pa.array([key.encode("utf-8", "surrogateescape") for key in keys[part]], pa.large_binary())
            for part in _blocks(len(keys))
        ]
    )
    order = pc.array_sort_indices(encoded).to_numpy()
    del encoded

    def row(i: int) -> bytes:
        content = contents[i].tobytes()
        read = content.hex() if content != NOTHING else ""
        label = "" if labels is None else _label_text(labels, i)
        return f"{keys[i]}\0{read}\0{label}\n".encode("utf-8", "surrogateescape")

    hashed = hashlib.sha256()
    for _, same in groupby(map(row, order), key=lambda row: row.partition(b"\0")[0]):
        hashed.update(b"".join(sorted(same)))  # the order of all rows, for no key holds a zero byte
    return hashed.hexdigest()[:16]


def _label_text(labels: Labels, i: int) -> str:
    if labels.kind == "class":
        number = int(labels.values[i])
        return labels.classes[number] if number >= 0 else ""
    return repr(labels.values[i].tolist())


def _range(values: np.ndarray) -> dict[str, float]:
    return {"min": values.min().item(), "median": float(np.median(values)), "max": values.max().item()}
