"""Vectors of images: those a backbone gives, and the raw pixels it has to beat.

N images, n of them with q views each, B batch, C channels, H W height and width, D width of the vectors.
"""

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from ..errors import Refused

if TYPE_CHECKING:
    from ..data.images import Images

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
VIEWED, VIEWS, VIEW_BATCH = 1000, 10, 50  # images and views of each that view_features takes


def features(encoder: nn.Module, images: "Images", *, size: tuple[int, int], batch_size: int = 256,
             device: str | torch.device = "cpu", precision: str = "32-true",
             mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
             threads: int | None = None, patches: bool = False) -> Tensor:
    """Return the pooled vector of every image, (N, D) float32 on the CPU, in the order of ``images``.

    Each image is seen once, through the evaluation view (the largest centred box of the size's aspect,
    resized), without augmentation. Weights, mode and every random generator are left as they were.

    Args:
        encoder: a module with ``pooled(images (B, C, H, W)) -> (B, D)``; it must be on ``device``.
        size: height and width in pixels.
        precision: "32-true", "bf16-mixed" or "16-mixed"; the vectors are float32 in any case.
        mean, std: C numbers for pixels in [0, 1]; None takes those of ``images``, which is right only for a
            backbone that was trained on them.
        patches: return every patch's vector instead, (N, D, h, w), of the whole image resized: a cut would miss objects.
    """
    from ..data.loader import evaluation_batches

    shift, scale = (torch.tensor(list(numbers), dtype=torch.float32, device=device)[:, None, None]
                    for numbers in (images.mean if mean is None else mean,
                                    images.std if std is None else std))
    found = []
    kind, narrow = torch.device(device).type, AUTOCAST.get(precision)
    with at_rest(encoder), torch.inference_mode(), torch.autocast(kind, narrow, enabled=narrow is not None):
        for _, batch in evaluation_batches(images, *size, batch_size, threads, fit="whole" if patches else "centre"):
            normalised = (unit(batch.to(device)) - shift) / scale  # (B, C, H, W)
            made = encoder.map(normalised) if patches else encoder.pooled(normalised)  # type: ignore[operator]  # any module with these two
            found.append(made.float().cpu())
    return torch.cat(found).clone()  # a tensor made in inference mode can't be trained on


def view_features(encoder: nn.Module, images: "Images", *, size: tuple[int, int], mean: Sequence[float], std: Sequence[float],
                  seed: int = 0, device: str | torch.device = "cpu", threads: int | None = None) -> Tensor:
    """Return the pooled vectors of 10 augmented views of at most 1,000 images at equal steps, (n, 10, D) float32 on the CPU.

    The views are the same whatever a backbone was trained with, so that numbers from them compare: crops of 20 to
    100 % of the area, flips, colour jitter and grayscale, drawn from the seed. Up to 49 images may be left out, for whole batches.

    Raises:
        Refused: fewer than 2 images.
    """
    from ..data.loader import Loader
    from ..data.philox import Random
    from ..data.photometric import augment
    from ..data.views import View, expand

    if len(images) < 2:
        raise Refused(f"{images.source.path}: {len(images)} image; views of 2 or more are compared.")
    chosen = images.subset(np.linspace(0, len(images) - 1, min(len(images), VIEWED)).astype(np.int64))
    views = expand([View(size=size, color=(0.4, 0.4, 0.2, 0.1), gray=0.2, count=VIEWS)])
    batch_size = min(VIEW_BATCH, len(chosen))
    loader, found = Loader(chosen, views, batch_size, seed=seed, threads=threads, labels=False), []
    try:
        with at_rest(encoder), torch.inference_mode():
            for _ in range(loader.steps_per_epoch):
                batch = next(loader)
                random = Random(seed, batch.epoch, batch.index.to(device))
                found.append(torch.stack([  # of any module with ``pooled``, which types can't say
                    encoder.pooled(augment(x.to(device), view, random, mean, std, view_index=i)).float().cpu()  # type: ignore[operator]
                    for i, (x, view) in enumerate(zip(batch.images, views, strict=True))], 1))
    finally:
        loader.close()
    return torch.cat(found).clone()


@contextmanager
def at_rest(encoder: nn.Module) -> Iterator[None]:
    """The encoder in evaluation mode, and each module in its own again afterwards."""
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():  # one by one: part of a model may be frozen in eval mode
            module.training = mode


def pixels(images: "Images", size: tuple[int, int], *, batch_size: int = 256,
           threads: int | None = None) -> Tensor:
    """Return the raw pixels of the evaluation view in [0, 1], (N, C * H * W) float32."""
    from ..data.loader import evaluation_batches

    batches = evaluation_batches(images, *size, batch_size, threads)
    return torch.cat([unit(batch).flatten(1) for _, batch in batches])


def unit(images: Tensor) -> Tensor:
    """uint8 or uint16 images as float32 in [0, 1]."""
    return images.float() / (255 if images.dtype == torch.uint8 else 65535)


def fingerprint(encoder: nn.Module) -> str:
    """16 hexadecimal digits of SHA-256 over the weights (name, type, shape, bytes) and the pooling of a backbone."""
    found = hashlib.sha256(str(getattr(encoder, "pooling", "")).encode())
    for name, value in sorted(encoder.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def identity(encoder: nn.Module, images: "Images", size: tuple[int, int], mean: Sequence[float],
             std: Sequence[float]) -> dict[str, str]:
    """What vectors depend on, in words: the weights, the data (fingerprint, channels, bits, order of the keys), the transform."""
    return {"backbone": fingerprint(encoder), "data": images.fingerprint,
            "images": f"{images.channels} channels, {images.depth} bits, background {images.background}, keys "
                      + hashlib.sha256("\0".join(images.keys).encode("utf-8", "surrogateescape")).hexdigest()[:16],
            "transform": f"{size[0]} x {size[1]} pixels, mean {list(mean)}, std {list(std)}"}


def kept_features(folder: Path, encoder: nn.Module, images: "Images", *, size: tuple[int, int], mean: Sequence[float],
                  std: Sequence[float], device: str | torch.device = "cpu", threads: int | None = None) -> tuple[Tensor, str]:
    """As ``features`` in float32, read from a file in ``folder`` if the same vectors were computed before, else written there.

    The name of the file is a hash of ``identity``, so what changes any of it is computed anew; a file that is damaged
    is replaced.

    Returns:
        The vectors (N, D), and a sentence on where they are or come from.
    """
    key = identity(encoder, images, size, mean, std)
    path = folder / f"{hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:16]}.arrow"
    if path.is_file():
        try:
            return read_vectors(path), f"{len(images):,} vectors computed before: {path}"
        except (pa.ArrowException, OSError, ValueError):
            pass  # a file cut short by another cause than this function, which renames whole ones
    found = features(encoder, images, size=size, mean=mean, std=std, device=device, threads=threads)
    beside = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_vectors(beside, found, key)
        os.replace(beside, path)
    except (OSError, pa.ArrowException) as error:
        return found, f"{len(images):,} vectors, which could not be kept ({error}); the next call computes them again"
    return found, f"{len(images):,} vectors kept: {path}"


def write_vectors(path: Path, vectors: Tensor, facts: Mapping[str, str]) -> None:
    """Write vectors (N, D) as an Arrow file of one column, "vector", of D numbers a row; ``facts`` are its schema's metadata."""
    rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.contiguous().numpy().ravel()), vectors.shape[1])
    table = pa.table({"vector": rows}).replace_schema_metadata(dict(facts))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)  # one batch, so that all rows lie side by side


def read_vectors(path: Path) -> Tensor:
    """The vectors (N, D) of a file that ``write_vectors`` wrote.

    They stay in the file until they are read, and what is changed in the tensor does not reach it.

    Raises:
        pyarrow.ArrowException: no whole Arrow file of vectors. ValueError: an empty file. OSError: it can't be read.
    """
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants memory that may be written to
    whole = pa.py_buffer(mapped)
    table = pa.ipc.open_file(whole).read_all()
    if table.schema.names != ["vector"] or table["vector"].num_chunks != 1:
        raise pa.ArrowInvalid(f"{path}: columns {table.schema.names}; expected 'vector' alone, in one batch.")
    (rows,) = table["vector"].chunks
    place = rows.values.buffers()[1].address - whole.address  # from_numpy of it would not be writable
    return torch.frombuffer(mapped, dtype=torch.float32, count=len(rows.values), offset=place).view(len(rows), -1)
