"""Labelled vectors made ready for a protocol: what can be judged is kept, what can't is said.

N bank or training images, n queries, m OOD images, D width, C classes.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..data.sources import Labels

KINDS = {"class": "one class an image", "multi": "several labels an image", "value": "numbers for labels"}


class Outside(NamedTuple):
    """Vectors of images that are of none of the classes."""

    vectors: Tensor  # (m, D)
    groups: list[str] | None
    data: str  # fingerprint


class Task(NamedTuple):
    """Vectors with known classes, ready for a protocol."""

    train: Tensor  # (N, D)
    train_labels: Tensor  # (N,) int64 in [0, C), or (N, C) float32 of 0, 1 and NaN, or empty
    queries: Tensor  # (n, D)
    query_labels: Tensor  # (n,) or (n, C)
    num_classes: int
    train_groups: list[str] | None
    query_groups: list[str] | None
    classes: tuple[str, ...] = ()  # C names
    outside: Outside | None = None
    views: Tensor | None = None  # (n, q, D): q augmented views of n training images


def make_task(kind: str, bank: Tensor, bank_labels: "Labels | None", queries: Tensor, query_labels: "Labels | None",
              bank_groups: list[str] | None, query_groups: list[str] | None,
              outside: Outside | None = None, views: Tensor | None = None) -> tuple[Task | None, list[str]]:
    """The task of a protocol that needs labels of ``kind`` ("class", "multi" or "none"), and what was left out, in sentences.

    None where nothing can be judged; one sentence says why.
    """
    if kind == "none":
        if len(bank) < 2:
            return None, [f"The bank has {len(bank)} image; 2 are needed."]
        nothing = torch.empty(0, dtype=torch.int64)
        return Task(bank.float(), nothing, queries.float(), nothing, 0, bank_groups, query_groups, views=views), []
    reason = why_not(bank_labels, kind, "images of the bank") or why_not(query_labels, kind, "queries")
    if reason or bank_labels is None or query_labels is None:
        return None, [reason]
    choose = choose_classes if kind == "class" else choose_labels
    keep, tables, classes, notes = choose(bank_labels, query_labels)
    if not classes:
        return None, notes
    (train, train_labels, train_groups), (test, test_labels, test_groups) = (
        (vectors[torch.from_numpy(rows)].float(), torch.from_numpy(values[rows]),
         None if groups is None else [groups[i] for i in rows])
        for vectors, values, rows, groups in zip((bank, queries), tables, keep, (bank_groups, query_groups), strict=True))
    return Task(train, train_labels, test, test_labels, len(classes), train_groups, test_groups, classes, outside), notes


def why_not(labels: "Labels | None", kind: str = "class", whose: str = "images") -> str:
    """Why the labels of ``whose`` ("queries") give no number, as a sentence; empty if they do."""
    if labels is None:
        return f"The {whose} have no labels, so nothing can be right or wrong; give a folder for each class, or --label COLUMN."
    return "" if labels.kind == kind else f"The {whose} have {KINDS[labels.kind]}; this protocol needs {KINDS[kind]}."


def not_finite(vectors: Tensor, whose: str) -> str:
    """Why vectors (N, D) of ``whose`` ("bank") give no number, as a sentence; empty if all are finite."""
    bad = torch.nonzero(~vectors.isfinite().all(1))
    return "" if not len(bad) else (
        f"{len(bad)} of {len(vectors)} vectors of the {whose} are not finite (the first is that of image {int(bad[0])}, from 0); "
        "the backbone is broken or its precision too narrow: try 32-true.")


Chosen = tuple[list[np.ndarray], list[np.ndarray], tuple[str, ...], list[str]]


def choose_classes(bank: "Labels", queries: "Labels") -> Chosen:
    """Which images of bank and queries can be judged, all images' classes, their names, and sentences.

    Images of unknown class are left out, and of classes of fewer than two images. No names: nothing can be judged.
    """
    names = list(dict.fromkeys([*bank.classes, *queries.classes]))
    place = {name: i for i, name in enumerate(names)}
    table = [np.array([*map(place.get, labels.classes), -1])[np.asarray(labels.values, dtype=np.int64)]
             for labels in (bank, queries)]  # an unknown class, -1, reads the last entry
    counts = np.bincount(np.concatenate(table) + 1, minlength=len(names) + 1)[1:]
    rare = [name for name, count in zip(names, counts, strict=True) if count == 1]
    kept = np.append(counts > 1, False)  # the last entry is the unknown class
    renamed = np.append(np.cumsum(counts > 1) - 1, -1)
    keep = [np.flatnonzero(kept[values]) for values in table]
    classes = tuple(name for name, count in zip(names, counts, strict=True) if count > 1)
    tables = [renamed[values] for values in table]
    notes = []
    if rare:
        notes.append(f"{len(rare)} of {len(names)} classes have fewer than 2 images; left out: {few(rare)}.")
    if len(classes) < 2 or min(map(len, keep)) == 0 or len(keep[0]) < 2:
        return keep, tables, (), [f"{len(classes)} of {len(names)} classes have at least 2 images, with {len(keep[0])} "
                                  f"in the bank and {len(keep[1])} queries; 2 classes, 2 images and 1 query are needed."]
    held, asked = (np.unique(values[rows]) for values, rows in zip(tables, keep, strict=True))
    lacking = np.setdiff1d(asked, held)
    if len(lacking) == len(asked):
        return keep, tables, (), [f"No class of the queries ({few([classes[i] for i in asked])}) is in the bank "
                                  f"({few([classes[i] for i in held])}); give the same label column for both."]
    if len(held) < 2:
        return keep, tables, (), [f"The bank holds one class only, {classes[held[0]]}; 2 are needed."]
    if len(lacking):
        many = int(np.isin(tables[1][keep[1]], lacking).sum())
        notes.append(f"{len(lacking)} of {len(asked)} classes of the queries are not in the bank; their {many} images count as "
                     f"errors: {few([classes[i] for i in lacking])}.")
    return keep, tables, classes, notes


def choose_labels(bank: "Labels", queries: "Labels") -> Chosen:
    """As ``choose_classes`` for several labels an image, of 0, 1 and NaN.

    Labels that only one side has are left out, and those of one value only in bank or queries, where neither a
    classifier nor an AUC is; so are images of which nothing is known.
    """
    notes = []
    shared = [name for name in bank.classes if name in queries.classes]
    single = [name for name in dict.fromkeys([*bank.classes, *queries.classes]) if name not in shared]
    if single and shared:
        notes.append(f"{len(single)} labels are those of one side only; left out: {few(single)}.")
    table = [labels.values[:, [labels.classes.index(name) for name in shared]].astype(np.float32)
             for labels in (bank, queries)]
    both = np.all([(values == value).any(0) for values in table for value in (0, 1)], axis=0)
    constant = [name for name, varies in zip(shared, both, strict=True) if not varies]
    if constant:
        notes.append(f"{len(constant)} of {len(shared)} labels have one value only, in the bank or in the queries; left out: "
                     f"{few(constant)}.")
    classes = tuple(name for name, varies in zip(shared, both, strict=True) if varies)
    if not shared:
        notes = [f"No label of the queries ({few(list(queries.classes))}) is in the bank ({few(list(bank.classes))}); "
                 "give the same label column for both."]
    elif not classes:
        notes = [f"None of {len(shared)} labels has both values in the bank and in the queries; both are needed to measure."]
    tables = [values[:, both] for values in table]
    return [np.flatnonzero(~np.isnan(values).all(1)) for values in tables], tables, classes, notes


def few(names: list[str]) -> str:
    """The first five of some names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
