"""A look at every image before training: sizes, channels, depth, statistics, bad files, a fingerprint.

N images, C channels.
"""

import csv
import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import Refused
from .decode import Unreadable, decode, probe
from .sources import Labels, Source, printable
from .threads import default_threads, quiet_opencv

DECODE_ALL = 100_000  # more images than this are decoded in part; headers and bytes are read of all
SAMPLE = 20_000
CHUNK = 64  # images a task: fewer cost time in the pool, more leave threads without work


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

    def write(self, folder: Path) -> None:
        """Write ``survey.json`` (all but the lists of images) and ``bad.csv`` (path, reason)."""
        readable = self.sizes[self.sizes[:, 0] > 0]
        counts: dict[str, int] = {}
        if self.labels is not None and self.labels.kind == "class":
            found = np.bincount(self.labels.values + 1, minlength=len(self.labels.classes) + 1).tolist()
            counts = dict(zip([*self.labels.classes, "(unknown)"], [*found[1:], found[0]], strict=True))
        told = {
            "path": str(self.path),
            "kind": self.kind,
            "sentence": self.sentence(),
            "images": len(self.keys),
            "unreadable": len(self.bad),
            "duplicates": self.duplicates,
            "decoded": self.decoded,
            "height": _range(readable[:, 0]),
            "width": _range(readable[:, 1]),
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
        text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
        # A byte of a name that is not UTF-8 becomes JSON's own escape of it; a list of paths keeps the byte.
        (folder / "survey.json").write_text(text, encoding="utf-8", errors="backslashreplace")
        with open(folder / "bad.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "reason"])
            writer.writerows([self.keys[i], reason] for i, reason in sorted(self.bad.items()))


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
        order = np.argsort([key_hash(key) for key in source.keys], kind="stable")
        is_sampled[order[SAMPLE:]] = False
    sizes = np.zeros((n, 2), np.int32)
    moments = np.full((n, 2, channels or 3), np.nan)  # mean and mean square of each channel, in [0, 1]
    is_grey = np.ones(n, bool)  # for all that is known: what is not decoded says nothing
    is_deep = np.zeros(n, bool)
    contents = [b""] * n
    formats = [""] * n
    bad: dict[int, str] = {}

    def look(i: int) -> None:
        try:
            data = source.read(i)
            contents[i] = hashlib.blake2b(data.data, digest_size=16).digest()
            header = probe(data)
            formats[i] = header.format
            if not header.complete:
                raise Unreadable("the file is truncated: its end is missing")
            stored = channels or (1 if header.channels == 1 else 3)
            depth = header.depth if header.channels == 1 and stored == 1 else 8
            is_deep[i] = depth == 16
            if is_sampled[i]:
                image = decode(data, channels=stored, depth=depth, background=background)
                moments[i], is_grey[i] = _measure(image)
            sizes[i] = header.height, header.width
        except Unreadable as reason:
            bad[i] = str(reason)

    def look_at(start: int) -> None:
        for i in range(start, min(start + CHUNK, n)):
            look(i)

    with ThreadPoolExecutor(threads or default_threads(), "survey") as pool:
        list(pool.map(look_at, range(0, n, CHUNK)))
    _refuse_bad(source, bad, max_bad)
    good = np.ones(n, bool)
    good[list(bad)] = False
    if channels is None:
        channels = 1 if is_grey[good].all() else 3
    depth = 16 if channels == 1 and is_deep[good].all() else 8
    mean, square = moments[good & is_sampled][:, :, :channels].mean(0)  # each (C,)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    labels = source.labels[source.label] if source.label else None
    return Survey(
        path=source.path,
        kind=source.kind,
        keys=source.keys,
        sizes=sizes,
        bad=dict(sorted(bad.items())),
        channels=channels,
        depth=depth,
        mean=tuple(mean.tolist()),
        std=tuple(np.where(std > 0, std, 1.0).tolist()),  # one flat colour everywhere is divided by nothing
        duplicates=n - len(bad) - len({contents[i] for i in np.flatnonzero(good)}),
        decoded=int((good & is_sampled).sum()),
        fingerprint=_fingerprint(source.keys, contents, labels),
        formats=dict(Counter(formats[i] for i in np.flatnonzero(good)).most_common()),
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


def _refuse_bad(source: Source, bad: dict[int, str], max_bad: float) -> None:
    if bad and (len(bad) == len(source) or len(bad) > max_bad * len(source)):
        first = min(bad)
        raise Refused(
            f"{source.path}: {len(bad):,} of {len(source):,} images are unreadable, more than --max-bad "
            f"{max_bad:g} allows; the first is {printable(source.keys[first])}: {bad[first]}."
        )


def _fingerprint(keys: list[str], contents: list[bytes], labels: Labels | None) -> str:
    """Hash of what the data are, whatever their order or container."""
    rows = []
    for i, (key, content) in enumerate(zip(keys, contents, strict=True)):
        label = "" if labels is None else _label_text(labels, i)
        rows.append(f"{key}\0{content.hex()}\0{label}\n".encode("utf-8", "surrogateescape"))
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()[:16]


def _label_text(labels: Labels, i: int) -> str:
    if labels.kind == "class":
        number = int(labels.values[i])
        return labels.classes[number] if number >= 0 else ""
    return repr(labels.values[i].tolist())


def _range(values: np.ndarray) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
