"""The loaders that ``data_loading.py`` compares: each as its own documentation tells users to set it up.

A contestant's ``start`` gives an iterator over batches, each a list of float32 tensors (B, 3, H, W), one a view,
normalised.  Peers are imported where they are used: what is not installed is left out, and said.

B images in a batch, H W pixels of a view.
"""

import importlib.util
import io
import random
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from daybreak.data.decode import resize
from daybreak.data.images import Images
from daybreak.data.loader import Loader
from daybreak.data.philox import Random
from daybreak.data.views import View, draw_boxes, expand
from daybreak.train.loop import on_device
from daybreak.train.timing import Spans

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INSTALL = {
    "webdataset": "pip install webdataset",
    "litdata": "pip install litdata",
    "nvidia.dali": "pip install nvidia-dali-cuda120",
    "spdl.io": "pip install spdl, and FFmpeg's libraries",
    "ffcv": "pip install ffcv numba, which builds against OpenCV's and libturbojpeg's headers",
}

Batches = Iterator[list[Tensor]]


@dataclass
class Contestant:
    """One loader on one form of the data."""

    name: str
    data: str  # "originals", "JPEG 256" or "raw 256"
    start: Callable[[], Batches]


@dataclass(frozen=True)
class Setting:
    """What all have in common."""

    batch: int
    threads: int
    views: tuple[View, ...]
    seed: int = 0

    @property
    def flat(self) -> list[View]:
        return expand(self.views)


def is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def ours(images: Images, form: str, setting: Setting, name: str = "ours") -> Contestant:
    """The loader of this project, and what it leaves to the device, done as training does it."""
    spans = Spans(torch.device("cpu"))

    def start() -> Batches:
        loader, batch = Loader(images, setting.views, setting.batch, seed=setting.seed, threads=setting.threads, labels=False), None
        try:
            for raw in loader:
                batch = on_device(raw, setting.flat, Random(setting.seed, raw.epoch, raw.index), images, spans, batch)
                yield batch.images
                spans.close()
        finally:
            loader.close()

    return Contestant(name, form, start)


def ceiling(images: Images, setting: Setting) -> Callable[[int], None]:
    """A bare loop on threads that decodes ``count`` images held in memory, cuts a box and resizes; nothing else."""
    data = [images.read(i) for i in range(len(images))]
    index = np.arange(len(images))
    boxes, _ = draw_boxes(setting.views, images.sizes, index, setting.seed, 0)
    cv2.setNumThreads(0)

    def work(mine: range) -> None:
        out = [np.empty((view.height, view.width, 3), np.uint8) for view in setting.flat]
        for i in mine:
            image = cv2.imdecode(data[i % len(data)], cv2.IMREAD_COLOR)
            for view, place in enumerate(out):
                top, left, height, width = boxes[view, i % len(data)]
                resize(image[top : top + height, left : left + width], *place.shape[:2], out=place,
                       grown=setting.flat[view].interpolation)

    def run(count: int) -> None:
        parts = [threading.Thread(target=work, args=(range(part, count, setting.threads),)) for part in range(setting.threads)]
        for part in parts:
            part.start()
        for part in parts:
            part.join()

    return run


def transform(view: View, *, to_image: bool = True) -> Callable[[Any], Tensor]:
    """torchvision's own operations for a view; on tensors instead of Pillow's images without ``to_image``."""
    steps: list[Any] = [v2.RandomResizedCrop((view.height, view.width), scale=view.scale, ratio=view.ratio, antialias=True),
                        v2.RandomHorizontalFlip(view.flip)]
    if any(view.color):
        steps.append(v2.RandomApply([v2.ColorJitter(*view.color)], p=view.color_probability))
    if view.gray:
        steps.append(v2.RandomGrayscale(view.gray))
    if view.blur:
        kernel = 2 * int(0.5 + 3 * view.blur_sigma[1] * view.height / 224) + 1
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel, view.blur_sigma)], p=view.blur))
    steps += [v2.ToImage()] if to_image else []
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


class Several:
    """All views of one decoded image."""

    def __init__(self, views: list[View]):
        self.transforms = [transform(view) for view in views]

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [make(image) for make in self.transforms]


def image_folder(folder: Path, form: str, setting: Setting) -> Contestant:
    """torchvision's ImageFolder and torch's DataLoader, one process a thread of ours; an endless sampler has no gaps."""
    images = ImageFolder(str(folder), Several(setting.flat))
    sampler = RandomSampler(images, replacement=True, num_samples=10**9)
    loader = DataLoader(images, setting.batch, sampler=sampler, num_workers=setting.threads, persistent_workers=True)

    def start() -> Batches:
        for views, _ in loader:
            yield views

    return Contestant("ImageFolder", form, start)


def webdataset(folder: Path, place: Path, setting: Setting) -> Contestant:
    import webdataset

    files, shards = sorted(folder.rglob("*.jpg")), 2 * setting.threads
    for shard in range(shards):
        with tarfile.open(place / f"{shard:03d}.tar", "w") as archive:
            for i, file in enumerate(files[shard::shards]):
                archive.add(file, f"{shard:03d}{i:06d}.jpg")
    made = (webdataset.WebDataset(str(place / f"{{000..{shards - 1:03d}}}.tar"), resampled=True, shardshuffle=False)
            .shuffle(500).decode("pil").to_tuple("jpg").map_tuple(transform(setting.flat[0])).batched(setting.batch))
    loader = DataLoader(made, batch_size=None, num_workers=setting.threads, persistent_workers=True)

    def start() -> Batches:
        for (images,) in loader:
            yield [images]

    return Contestant("WebDataset", "JPEG 256", start)


def open_jpeg(path: str) -> Image.Image:
    return Image.open(path)


def litdata(folder: Path, place: Path, setting: Setting) -> Contestant:
    import litdata

    litdata.optimize(open_jpeg, [str(file) for file in sorted(folder.rglob("*.jpg"))], str(place), chunk_bytes="16MB",
                     num_workers=1, verbose=False)
    images = litdata.StreamingDataset(str(place), shuffle=True, drop_last=True,
                                      transform=transform(setting.flat[0], to_image=False))
    loader = litdata.StreamingDataLoader(images, batch_size=setting.batch, num_workers=setting.threads, drop_last=True)

    def start() -> Batches:
        while True:
            for batch in loader:
                yield [batch]

    return Contestant("LitData", "JPEG 256", start)


def dali(folder: Path, setting: Setting) -> Contestant:
    from nvidia.dali import fn, pipeline_def, types

    files = [str(file) for file in sorted(folder.rglob("*.jpg"))]
    flat = setting.flat
    mean, std = [255 * m for m in MEAN], [255 * s for s in STD]

    def finished(images: Any, view: View) -> Any:
        if any(view.color):
            low = [max(0.0, 1 - strength) for strength in view.color[:3]]
            factors = [fn.random.uniform(range=[a, 2 - a]) for a in low]
            turn = fn.random.uniform(range=[-360 * view.color[3], 360 * view.color[3]])
            on = fn.cast(fn.random.coin_flip(probability=view.color_probability), dtype=types.FLOAT)
            gray = fn.cast(fn.random.coin_flip(probability=view.gray), dtype=types.FLOAT)
            bright, contrast, saturation = (1 + on * (factor - 1) for factor in factors)
            images = fn.color_twist(images, brightness=bright, contrast=contrast, saturation=saturation * (1 - gray), hue=on * turn)
        if view.blur:  # a blur of almost no width for the others: DALI's own remedy where a whole batch is treated alike
            on = fn.cast(fn.random.coin_flip(probability=view.blur), dtype=types.FLOAT)
            sigma = on * fn.random.uniform(range=list(view.blur_sigma)) + (1 - on) * 0.01
            images = fn.gaussian_blur(images, sigma=sigma)
        return fn.crop_mirror_normalize(images, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std,
                                        mirror=fn.random.coin_flip(probability=view.flip))

    @pipeline_def
    def pipeline() -> Any:
        data, _ = fn.readers.file(files=files, random_shuffle=True, initial_fill=256, seed=setting.seed)
        crop: dict[str, Any]
        if len(flat) == 1:  # only the box is decoded
            crop = dict(random_area=list(flat[0].scale), random_aspect_ratio=list(flat[0].ratio), num_attempts=10)
            image = fn.decoders.image_random_crop(data, device="cpu", output_type=types.RGB, **crop)
            return finished(fn.resize(image, resize_x=flat[0].width, resize_y=flat[0].height), flat[0])
        image = fn.decoders.image(data, device="cpu", output_type=types.RGB)
        made = []
        for view in flat:
            crop = dict(random_area=list(view.scale), random_aspect_ratio=list(view.ratio), num_attempts=10)
            made.append(finished(fn.random_resized_crop(image, size=[view.height, view.width], **crop), view))
        return tuple(made)

    made = pipeline(batch_size=setting.batch, num_threads=setting.threads, device_id=None, seed=setting.seed)
    made.build()

    def start() -> Batches:
        while True:
            yield [torch.from_numpy(np.asarray(out.as_tensor())) for out in made.run()]

    return Contestant("DALI (CPU)", "JPEG 256", start)


def spdl(folder: Path, setting: Setting) -> Contestant:
    """FFmpeg's decoder and filters, of which the first cuts the box; normalisation by torch on the batch."""
    import spdl.io
    from spdl.dataloader import DataLoader as Pipeline

    view = setting.flat[0]
    sizes = {}
    for file in sorted(folder.rglob("*.jpg")):
        with Image.open(file) as image:  # known beforehand, which spares it a look at each header
            sizes[str(file)] = image.size
    files, chance = list(sizes), random.Random(setting.seed)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))

    def endless() -> Iterator[str]:
        while True:
            yield chance.choice(files)

    def decode(path: str) -> Any:
        left, top, width, height = random_box(sizes[path], view, chance)
        flip = "hflip," * (chance.random() < view.flip)
        steps = f"crop={width}:{height}:{left}:{top},scale={view.width}:{view.height}:flags=bilinear,{flip}format=pix_fmts=rgb24"
        return spdl.io.decode_packets(spdl.io.demux_image(path), filter_desc=steps)

    def together(frames: list[Any]) -> Tensor:
        pixels = spdl.io.to_torch(spdl.io.convert_frames(frames)).permute(0, 3, 1, 2)
        return pixels.float().div_(255).sub_(mean).div_(std)

    decode(files[0])  # without FFmpeg's libraries this fails, where the pipeline would try for ever

    def start() -> Batches:
        for batch in Pipeline(endless(), preprocessor=decode, batch_size=setting.batch, aggregator=together,
                              num_threads=setting.threads):
            yield [batch]

    return Contestant("SPDL", "JPEG 256", start)


def random_box(size: tuple[int, int], view: View, chance: random.Random) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels, as torchvision draws them."""
    width, height = size
    for _ in range(10):
        area = width * height * chance.uniform(*view.scale)
        ratio = np.exp(chance.uniform(*np.log(view.ratio)))
        wide, tall = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < wide <= width and 0 < tall <= height:
            return chance.randint(0, width - wide), chance.randint(0, height - tall), wide, tall
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


class Pictures:
    """A folder's JPEGs as FFCV's writer wants them, for processes that it starts."""

    def __init__(self, folder: Path):
        self.files = sorted(folder.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Image.Image]:
        return (Image.open(io.BytesIO(self.files[i].read_bytes())).convert("RGB"),)


def ffcv(folder: Path, place: Path, mode: str, setting: Setting) -> Contestant:
    """Its own file of the same images: it encodes JPEGs itself, at quality 90, from their pixels."""
    from ffcv.fields import RGBImageField
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader as Reader
    from ffcv.loader import OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter

    path, view = place / f"{mode}.beton", setting.flat[0]
    writer = DatasetWriter(str(path), {"image": RGBImageField(write_mode=mode, jpeg_quality=90)}, num_workers=1)
    writer.from_indexed_dataset(Pictures(folder))
    steps = [RandomResizedCropRGBImageDecoder((view.height, view.width), view.scale, view.ratio), RandomHorizontalFlip(view.flip),
             NormalizeImage(255 * np.array(MEAN), 255 * np.array(STD), np.float32), ToTensor(), ToTorchImage()]
    loader = Reader(str(path), batch_size=setting.batch, num_workers=setting.threads, order=OrderOption.RANDOM, os_cache=True,
                    drop_last=True, pipelines={"image": steps})

    def start() -> Batches:
        while True:
            for (images,) in loader:
                yield [images]

    return Contestant("FFCV", "JPEG 256" if mode == "jpg" else "raw 256", start)
