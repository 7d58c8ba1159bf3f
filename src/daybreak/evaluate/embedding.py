"""Vectors of many images, written to a file chunk by chunk, so that an interruption costs one chunk at most.

The file is a line of JSON that says whose vectors these are, then for each chunk its rows (float32, in this machine's
order of bytes) and the CRC-32 of their bytes. What a crash has left half written fails the sum and is computed again.

N images, D width of the vectors.
"""

import json
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..nn.encoder import Encoder
from .features import features, identity

if TYPE_CHECKING:
    from ..data.images import Images

CHUNK = 1024  # images; whole batches, so that how a batch is made up does not depend on where an interruption fell
SUM = 4  # bytes of a CRC-32


def features_through(path: Path, encoder: Encoder, images: "Images", *, size: tuple[int, int], mean: Sequence[float],
                     std: Sequence[float], device: str = "cpu", threads: int | None = None,
                     say: Callable[[str], object] | None = None, progress: Callable[[int, int], object] | None = None) -> Tensor:
    """As ``features``, (N, D) float32, going on with what ``path`` holds of the same weights, data, transform and device.

    The file stays when all is done: who has the vectors safe elsewhere removes it.

    Args:
        say: told, in a sentence, what is gone on with or why nothing is.
        progress: told images done and N after each chunk.
    """
    whose = identity(encoder, images, size, mean, std) | {"device": torch.device(device).type, "order": sys.byteorder,
                                                           "rows": f"{len(images)} of {encoder.dim}, {CHUNK} at a time"}
    header, found = f"{json.dumps(whose)}\n".encode(), np.empty((len(images), encoder.dim), np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "r+b" if path.is_file() else "w+b") as file:
        there = file.readline(len(header) + 1)
        done = read_chunks(file, found) if there == header else 0
        if say and done:
            say(f"going on after {done:,} of {len(images):,} vectors in {path}")
        elif say and there:
            say(f"{path}: holds {'no whole chunk' if there == header else 'vectors of other weights, data or device'}; begun anew")
        file.seek(len(header) + done * encoder.dim * found.itemsize + -(-done // CHUNK) * SUM if done else 0)
        file.truncate()
        if not done:
            file.write(header)
        for start in range(done, len(images), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(images)))
            found[rows] = features(encoder, images.subset(rows), size=size, device=device, mean=mean, std=std,
                                   threads=threads).numpy()
            data = found[rows].tobytes()
            file.write(data + checksum(data))
            file.flush()
            os.fsync(file.fileno())  # a chunk counts as done only when the disk has it
            if progress:
                progress(int(rows[-1]) + 1, len(images))
    return torch.from_numpy(found)


def read_chunks(file: BinaryIO, found: np.ndarray) -> int:
    """Fill ``found`` (N, D) from the file, behind its header, up to the first chunk that is not whole; return how many rows."""
    for start in range(0, len(found), CHUNK):
        part = found[start : start + CHUNK]
        data, kept = file.read(part.nbytes), file.read(SUM)
        if len(data) < part.nbytes or kept != checksum(data):
            return start
        part[:] = np.frombuffer(data, np.float32).reshape(part.shape)
    return len(found)


def checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(SUM, "little")
