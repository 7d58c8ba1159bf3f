"""States of trainings that were interrupted, so that the same command goes on where it stopped."""

import hashlib
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import Failed
from ..train.checkpoint import write

SECONDS = 180.0  # between two states


class Unfinished:
    """A file for each training in a folder; its name is a hash of all that the training depends on.

    A training that ends leaves its last state too, since others of the same command may be interrupted after it;
    ``clear`` removes what was used.

    Args:
        seconds: after which a state ``is_due``; clock: seconds.
    """

    def __init__(self, folder: Path, *, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic):
        self.folder, self.seconds, self.clock = folder, seconds, clock
        self.used: list[Path] = []
        self.saved = clock()

    def path(self, identity: Mapping[str, Any]) -> Path:
        """The file of a training."""
        name = hashlib.sha256(repr(sorted(identity.items())).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self.used.append(self.folder / f"{name}.pt")
        self.saved = self.clock()
        return self.used[-1]

    def load(self, path: Path) -> dict[str, Any] | None:
        """The last state, on the CPU; None if there is none, or only a damaged one."""
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None

    @property
    def is_due(self) -> bool:
        return self.clock() - self.saved >= self.seconds

    def save(self, path: Path, state: dict[str, Any]) -> None:
        """Put a state in the place of the former one.

        Raises:
            Failed: the disk did not take it; the former one is whole.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(path, state)
        except (OSError, RuntimeError) as error:
            raise Failed(f"{path}: the state of the training could not be written ({error}); make room, and the same command goes "
                         "on from the last one.") from error
        self.saved = self.clock()

    def clear(self) -> None:
        """Remove the files that were used, and the folder if nothing else is in it."""
        for path in self.used:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
