"""Daybreak: a folder of unlabelled images in, an evaluated vision backbone out.

>>> import daybreak
>>> run = daybreak.pretrain("photos/", method="mae", minutes=10)  # doctest: +SKIP
>>> backbone = daybreak.load("runs/mae-1")  # doctest: +SKIP
"""

import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .verbs import Plan, Run, compare, demo, embed, evaluate, explain, export, load, pack, plan, pretrain

__version__ = importlib.metadata.version("daybreak")
__all__ = ["Plan", "Run", "compare", "demo", "embed", "evaluate", "explain", "export", "load", "pack", "plan", "pretrain"]


def __getattr__(name: str) -> Any:
    """Import the verbs when one is used: torch and its friends take seconds that ``--help`` need not wait for."""
    if name in __all__:
        from . import verbs

        # Kept, because the rooms that verbs imports (evaluate, explain, export) have taken the names of these verbs.
        globals().update({verb: getattr(verbs, verb) for verb in __all__})
        return globals()[name]
    raise AttributeError(f"module 'daybreak' has no attribute '{name}'")
