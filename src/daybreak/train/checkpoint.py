"""Checkpoints that survive a crash: written beside, synced, renamed; tensors, numbers, strings, lists and dicts only."""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

from ..errors import Failed, Refused

KEPT = 2  # the last ones that stay on disk


def save(folder: Path, state: dict[str, Any], images_seen: int, *, best: bool = False) -> Path:
    """Write ``images-NNN.pt``; the former ones are deleted only once it is whole. ``best.pt`` is a second name.

    Raises:
        Failed: the disk is full or the folder cannot be written; the former checkpoint is untouched.
    """
    path = folder / f"images-{images_seen:012d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(path, state)
        if best:
            link = folder / "best.part"
            link.unlink(missing_ok=True)
            os.link(path, link)
            os.replace(link, folder / "best.pt")
            _sync(folder)
    except (OSError, RuntimeError) as error:
        raise Failed(f"{path}: could not be written ({error}); the former checkpoint is whole. "
                     f"Make room and go on with: daybreak pretrain --resume {folder.parent}") from error
    for old in every(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a state beside ``path``, sync it and rename it: a former file there stays until this one is whole.

    Raises:
        OSError, RuntimeError: it could not be written; nothing is left beside.
    """
    beside = path.with_suffix(".part")
    try:
        with open(beside, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync(path.parent)
    except (OSError, RuntimeError):
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def every(folder: Path) -> list[Path]:
    """All numbered checkpoints, oldest first."""
    return sorted(folder.glob("images-*.pt"))


def images_seen(path: Path) -> int:
    """The number in the name of a checkpoint."""
    return int(path.stem.removeprefix("images-"))


def load_last(folder: Path, *, mmap: bool = False) -> dict[str, Any]:
    """The newest checkpoint, on the CPU.

    Args:
        mmap: leave the tensors on the disk until they are read, for a look at the rest.

    Raises:
        Refused: there is none.
    """
    paths = every(folder)
    if not paths:
        raise Refused(f"{folder}: holds no checkpoint, so there is nothing to resume; start again with another --out.")
    return torch.load(paths[-1], map_location="cpu", weights_only=True, mmap=mmap)
