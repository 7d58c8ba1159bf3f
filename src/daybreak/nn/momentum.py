"""A teacher whose weights are a moving average of the student's."""

import copy
import math
from typing import Any

import torch
from timm.layers import DropPath
from torch import nn


def cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at 1 along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


class Teacher(nn.ModuleDict):
    """Copies of modules, without gradient and without drop path, that follow their students.

    Parameters are averaged after each step; the momentum goes from ``start`` to ``end`` along a cosine of the
    run's progress. It stays in train mode, so batch normalisation uses the batch's own statistics; buffers are
    its own (``buffers="own"``) or copied from the student (``buffers="copy"``).

    Args:
        modules: name to student module; the copy is reached as ``teacher[name]``.
    """

    def __init__(self, modules: dict[str, nn.Module], *, start: float, end: float = 1.0, buffers: str = "own"):
        super().__init__({name: copy.deepcopy(module) for name, module in modules.items()})
        self.start, self.end, self.buffers_from = start, end, buffers
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0

    def __getitem__(self, name: str) -> Any:
        """The copy of that name, with the methods of its own class."""
        return super().__getitem__(name)

    @torch.no_grad()
    def follow(self, modules: dict[str, nn.Module], progress: float) -> None:
        """phi <- m phi + (1 - m) theta, with m at this progress in [0, 1]."""
        weight = 1 - cosine(self.start, self.end, progress)
        for name, student in modules.items():
            torch._foreach_lerp_(list(self[name].parameters()), [p.detach() for p in student.parameters()], weight)
            if self.buffers_from == "copy":
                for mine, theirs in zip(self[name].buffers(), student.buffers(), strict=True):
                    mine.copy_(theirs)
