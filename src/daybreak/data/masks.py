"""Masks beside images: for each pixel the number of its class or object, as it is stored.

n images, K values, H W height and width of the upright image.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..errors import Refused
from .decode import Unreadable, _opened, _said
from .images import Images
from .sources import Labels, printable
from .threads import default_threads

VOID = (255,)  # what VOC, ADE20K and Cityscapes write where there is no class
COVERED = 0.01  # share of an image from which on a class is said to be in it
NUMBERS = ("1", "L", "P", "I", "I;16", "I;16B")  # modes of Pillow with one number a pixel


@dataclass
class Masks:
    """The masks of n images, read when they are asked for."""

    images: Images
    values: tuple[int, ...]  # K pixel values that occur, rising, without the void ones
    void: tuple[int, ...]
    fingerprint: str  # 16 hexadecimal digits of SHA-256 over sorted (key, bytes) and the void values

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int, classes: Sequence[int] | None = None) -> np.ndarray:
        """Return the mask of image ``i``, (H, W) int64: positions in ``classes`` (rising; None: ``values``), -1 for others."""
        known = np.asarray(self.values if classes is None else classes)
        mask = decode_mask(encoded_mask(self.images, i))
        place = np.searchsorted(known, mask).clip(max=len(known) - 1)
        return np.where(known[place] == mask, place, -1)


def open_masks(images: Images, void: Sequence[int] = VOID, threads: int | None = None) -> Masks:
    """Look at the mask of every image.

    Args:
        void: values of pixels that are of no class.

    Raises Refused if the data have no masks, one is missing, unreadable or not of its image's size, or they hold
    fewer than two values.
    """
    source, sizes, keys = images.source, images.sizes, images.keys
    if source.masks is None:
        raise Refused(
            f"{source.path}: no masks in this {source.kind}; expected a folder 'masks' beside 'images' with a file of each "
            "image's name, or a table with a column 'mask' beside 'image' (a pack keeps none: give what was packed)."
        )

    def look(i: int) -> tuple[np.ndarray, str]:
        try:
            data = encoded_mask(images, i)
            mask = decode_mask(data)
        except Unreadable as reason:
            raise Refused(f"{source.path}: the mask of {printable(keys[i])} can't be read: {reason}.") from reason
        if mask.shape != tuple(sizes[i]):
            raise Refused(
                f"{source.path}: the mask of {printable(keys[i])} has {mask.shape[1]} x {mask.shape[0]} pixels and its image "
                f"{sizes[i][1]} x {sizes[i][0]}; store each mask at the size of its image."
            )
        return np.unique(mask), hashlib.blake2b(data.data, digest_size=16).hexdigest()

    with ThreadPoolExecutor(threads or default_threads(), "masks") as pool:
        looks = list(pool.map(look, range(len(images))))
    held = {int(value) for values, _ in looks for value in values}
    values = tuple(sorted(held - set(void)))
    if len(values) < 2:
        left = f"one class only, {values[0]}" if values else "no class"
        apart = ", ".join(map(str, sorted(held & set(void))))
        raise Refused(
            f"{source.path}: its masks hold {left}{f', beside the void {apart}' if apart else ''}; 2 are needed"
            f"{': if what is void is a class, say what else is with --void (-1: nothing)' if apart else ''}."
        )
    hashed = hashlib.sha256(repr(sorted(void)).encode())
    for key, (_, digest) in sorted(zip(keys, looks, strict=True), key=lambda pair: pair[0]):
        hashed.update(f"{key}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return Masks(images, values, tuple(void), hashed.hexdigest()[:16])


def labels_of(masks: Masks, share: float = COVERED, threads: int | None = None) -> Labels:
    """Several labels an image, "class V" for each value V of the masks: 1 where it covers that share of the image or more.

    An image that is void all over has unknown labels.

    Returns:
        Values (n, K) float32 of 0, 1 and NaN.
    """
    def look(i: int) -> np.ndarray:
        mask = masks.read(i)
        counts = np.bincount(mask.ravel() + 1, minlength=len(masks.values) + 1)[1:]  # without what is void
        return np.where(counts >= share * mask.size, 1, 0) if counts.any() else np.full(len(counts), np.nan)

    with ThreadPoolExecutor(threads or default_threads(), "masks") as pool:
        rows = list(pool.map(look, range(len(masks))))
    return Labels("multi", np.array(rows, np.float32), tuple(f"class {value}" for value in masks.values))


def encoded_mask(images: Images, i: int) -> np.ndarray:
    """Return the encoded bytes (n,) uint8 of the mask of image ``i`` of a set that has masks; or raise Unreadable."""
    assert images.source.masks is not None
    return images.source.masks(int(images.indices[i]))


def decode_mask(data: np.ndarray) -> np.ndarray:
    """Decode a mask into (H, W) int32; of a palette the numbers, not the colours.

    Raises Unreadable for what is no image, holds colours, or is a JPEG, whose losses make numbers that were not stored.
    """
    if not len(data):
        raise Unreadable("the file is empty")
    with _opened(data) as image:
        if image.format == "JPEG":
            raise Unreadable("a JPEG, which does not keep numbers as they were; expected a PNG")
        if image.mode not in NUMBERS:
            raise Unreadable(f"its pixels are {image.mode}; expected one number a pixel, as in a grey or palette PNG")
        try:
            image.load()
        except Exception as error:  # Pillow's readers of damaged files raise nearly anything
            raise Unreadable(f"Pillow can't decode it: {_said(error)}") from error
        return np.asarray(image).astype(np.int32)
