"""Daybreak: a folder of unlabelled images in, an evaluated vision backbone out.

>>> import daybreak
>>> run = daybreak.pretrain("photos/", method="mae", minutes=10)  # doctest: +SKIP
>>> backbone = daybreak.load("runs/mae-1")  # doctest: +SKIP
"""

import importlib.metadata
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .verbs import Plan, Run, compare, demo, embed, evaluate, explain, export, load, pack, plan, pretrain, rank

__version__ = importlib.metadata.version("daybreak")
__all__ = ["Plan", "Run", "compare", "demo", "embed", "evaluate", "explain", "export", "load", "pack", "plan", "pretrain",
           "rank"]


def __getattr__(name: str) -> Any:
    """Import the verbs when one is used: torch and its friends take seconds that ``--help`` need not wait for."""
    if name in __all__:
        from . import verbs

        return getattr(verbs, name)
    raise AttributeError(f"module 'daybreak' has no attribute '{name}'")


class Package(ModuleType):
    """Keeps the names of verbs for the verbs: importing a room (evaluate, explain, export) would else take its own."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = Package
