"""The unit that training and evaluation work on: some images of a source, with what the survey knows of them.

N images, C channels, H W height and width in pixels.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Refused
from .decode import decode
from .sources import Labels, Source, open_source
from .store import stored_survey
from .survey import Survey, key_hash, survey

QUERY_SHARE = 0.1


@dataclass
class Images:
    """N images chosen from a source by ``indices`` (N,) int64; all properties are aligned with them."""

    source: Source
    survey: Survey
    indices: np.ndarray
    background: int = 255
    labels: Labels | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def keys(self) -> list[str]:
        return [self.source.keys[i] for i in self.indices]

    @property
    def groups(self) -> list[str] | None:
        """Whose image each is (a patient, a video), or None."""
        return None if self.source.groups is None else [self.source.groups[i] for i in self.indices]

    @property
    def splits(self) -> list[str] | None:
        """ "train", "val" or "test" for each, or None."""
        return None if self.source.splits is None else [self.source.splits[i] for i in self.indices]

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32 heights and widths of the upright images in pixels."""
        return self.survey.sizes[self.indices]

    @property
    def channels(self) -> int:
        return self.survey.channels

    @property
    def depth(self) -> int:
        """8 or 16 bits a channel."""
        return self.survey.depth

    @property
    def mean(self) -> tuple[float, ...]:
        """C numbers in [0, 1], of the whole source."""
        return self.survey.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.survey.std

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any image, key or label of the source."""
        return self.survey.fingerprint

    def decode(self, i: int, reduce: int = 1) -> np.ndarray:
        """Return image ``i`` as (H, W, C) uint8 or uint16, at 1 / ``reduce`` of its size if it may be."""
        return self.pixels(self.read(i), reduce)

    def read(self, i: int) -> np.ndarray:
        """Return the encoded bytes of image ``i``, (n,) uint8."""
        return self.source.read(self.indices[i])

    def pixels(self, data: np.ndarray, reduce: int = 1) -> np.ndarray:
        """Decode bytes as ``decode`` does those of an image of the set."""
        how = {"channels": self.channels, "depth": self.depth, "background": self.background}
        return decode(data, **how, reduce=reduce)

    def subset(self, indices: np.ndarray) -> "Images":
        """Return those of the images at ``indices``, positions in this set."""
        indices = np.asarray(indices, np.int64)
        labels = None if self.labels is None else self.labels.take(indices)
        return replace(self, indices=self.indices[indices], labels=labels)

    def of_split(self, *names: str) -> "Images":
        """Return the images of the first of these splits that any of them is in; all if there is no such split."""
        splits = self.splits or []
        name = next((name for name in names if name in splits), None)
        return self if name is None else self.subset(np.flatnonzero(np.array(splits) == name))

    def sentence(self) -> str:
        """Return what the survey found in the source, in one line."""
        return self.survey.sentence()


@dataclass
class Split:
    """What is pretrained on, and the two sides of the online evaluation."""

    train: Images
    bank: Images
    queries: Images
    seen: bool  # whether the queries were pretrained on, without their labels


def open_images(
    path: str | Path,
    *,
    label: str | None = None,
    group: str | None = None,
    channels: int | None = None,
    background: int = 255,
    max_bad: float = 0.05,
    threads: int | None = None,
) -> Images:
    """Open a source, survey it (a pack was, when it was made), and leave out what is unreadable.

    Arguments and refusals are those of ``sources.open_source`` and ``survey.survey``.
    """
    source = open_source(path, label=label, group=group)
    known: dict[str, Any] = {"channels": channels, "background": background}
    found = stored_survey(source, **known) or survey(source, **known, max_bad=max_bad, threads=threads)
    readable = np.setdiff1d(np.arange(len(source)), list(found.bad))
    labels = None if found.labels is None else found.labels.take(readable)
    return Images(source, found, readable, background, labels)


def split_images(images: Images, val: Images | None = None) -> Split:
    """Say what is pretrained on, what is the bank and what are the queries.

    With ``val``, those are the queries.  Otherwise the source's own splits serve: "train" is pretrained on,
    "val" (or else "test") are the queries.  Without splits all are pretrained on, and a fixed tenth by hash
    of the key, or of the group so that none stands on both sides, are the queries (a single group is divided).

    Raises Refused if the classes of ``val`` are all unknown, its channels differ, or a group stands on both sides.
    """
    splits = np.array(images.splits or ["train"] * len(images))
    train = images.subset(np.flatnonzero(splits == "train"))
    if val is not None:
        if val.channels != images.channels:
            raise Refused(
                f"{val.source.path}: {val.channels} channels, but {images.source.path} has {images.channels}"
                f"; set --channels {images.channels} for both."
            )
        train = train if len(train) else images
        if not val.source.frames:  # there the files are the groups, and those of another folder may have the same names
            _refuse_shared(train, val)
        return Split(train, train, _same_classes(val, images), seen=False)
    for name in ("val", "test"):
        if len(train) and (splits == name).any():
            queries = images.subset(np.flatnonzero(splits == name))
            _refuse_shared(train, queries)
            return Split(train, train, queries, seen=False)
    is_query = _fixed_tenth(images)
    bank, queries = (images.subset(np.flatnonzero(chosen)) for chosen in (~is_query, is_query))
    return Split(images, bank, queries, seen=True)


def _refuse_shared(train: Images, queries: Images) -> None:
    shared = sorted(set(train.groups or ()) & set(queries.groups or ()))
    if shared:
        raise Refused(
            f"{queries.source.path}: {len(shared):,} of its groups, such as {', '.join(shared[:3])}, stand both in what is "
            "trained on and in what is evaluated on; keep each on one side, or rename those that only share a name."
        )


def _fixed_tenth(images: Images) -> np.ndarray:
    """(N,) bool: a tenth by hash, at least one group and never all (unless there is one image)."""
    whose = images.groups or images.keys
    if len(set(whose)) == 1:
        whose = images.keys
    hashes = np.array([key_hash(name) for name in whose], np.uint64)
    is_query = hashes < np.uint64(int(QUERY_SHARE * 2**64))
    if is_query.all() and len(images) > 1:
        is_query = hashes < hashes.max()
    return is_query if is_query.any() else hashes == hashes.min()


def _same_classes(val: Images, images: Images) -> Images:
    """``val`` with its classes numbered as in ``images``; classes that are not there become unknown."""
    ours, theirs = images.labels, val.labels
    if (
        ours is None
        or theirs is None
        or {ours.kind, theirs.kind} != {"class"}
        or ours.classes == theirs.classes
    ):
        return val
    number = {name: i for i, name in enumerate(ours.classes)}
    known = np.array([number.get(name, -1) for name in theirs.classes] + [-1])  # the last for -1, unknown
    if (known < 0).all():
        raise Refused(
            f"{val.source.path}: its classes ({', '.join(theirs.classes[:3])} ...) are none of those of "
            f"{images.source.path} ({', '.join(ours.classes[:3])} ...); give the same label column for both."
        )
    return replace(val, labels=Labels("class", known[theirs.values], ours.classes))
