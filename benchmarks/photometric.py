"""Photometric augmentation of a batch on the CPU: this project beside kornia and torchvision.

    python benchmarks/photometric.py --json photometric.json

All three do the same operations at the same strengths: colour jitter in random order (0.4, 0.4, 0.2, 0.1
with probability 0.8), grayscale 0.2, Gaussian blur, solarisation, normalisation; uint8 in, float32 out.
torchvision goes image by image, as data loaders call it; kornia and this project take the batch.  (kornia
draws one order of the colour operations for the whole batch, the others one for each image.)  They take turns,
so that whatever else the machine does falls on all; shown are medians over the rounds and their ratios to ours.

kornia is not a dependency: pip install kornia
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

from daybreak.data.philox import Random
from daybreak.data.photometric import augment
from daybreak.data.views import View

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOR = (0.4, 0.4, 0.2, 0.1)
SIGMA = (0.1, 2.0)  # pixels of a 224 px view


def make_ours(
    size: int, blur: float, solarize: float, order: Literal["fixed", "random"]
) -> Callable[[Tensor, int], Tensor]:
    view = View(
        size=size, color=COLOR, color_order=order, gray=0.2, blur=blur, blur_sigma=SIGMA, solarize=solarize
    )

    def run(images: Tensor, turn: int) -> Tensor:
        random = Random(0, turn, torch.arange(len(images)))
        return augment(images, view, random, MEAN, STD, view_index=0)

    return run


def blur_setting(size: int) -> tuple[int, tuple[float, float]]:
    """Kernel size in pixels and range of sigma that match ours."""
    low, high = (sigma * size / 224 for sigma in SIGMA)
    return 2 * -(-int(300 * high) // 100) + 1, (low, high)


def make_torchvision(size: int, blur: float, solarize: float) -> Callable[[Tensor, int], Tensor]:
    kernel, sigma = blur_setting(size)
    chain = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.ColorJitter(*COLOR)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, sigma)], p=blur),
            v2.RandomSolarize(0.5, p=solarize),
            v2.Normalize(MEAN, STD),
        ]
    )
    return lambda images, turn: torch.stack([chain(image) for image in images])


def make_kornia(size: int, blur: float, solarize: float) -> Callable[[Tensor, int], Tensor]:
    try:
        from kornia import augmentation as K
    except ImportError:
        sys.exit("kornia is not installed; it is only needed here: pip install kornia")
    kernel, sigma = blur_setting(size)
    chain = K.AugmentationSequential(
        K.ColorJitter(*COLOR, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((kernel, kernel), sigma, p=blur),
        K.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=solarize),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        same_on_batch=False,
    )
    return lambda images, turn: chain(images.float() / 255)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224], help="image sizes in pixels")
    parser.add_argument("--batch", type=int, default=256, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each, after one unmeasured")
    parser.add_argument("--threads", type=int, default=1, help="torch threads, the same for all")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    results = []
    for size in options.sizes:
        images = torch.randint(0, 256, (options.batch, 3, size, size), dtype=torch.uint8)
        for name, blur, solarize in [("first view", 1.0, 0.0), ("second view", 0.1, 0.2)]:
            contestants = {
                "ours": make_ours(size, blur, solarize, "random"),
                "ours, fixed order": make_ours(size, blur, solarize, "fixed"),
                "kornia": make_kornia(size, blur, solarize),
                "torchvision": make_torchvision(size, blur, solarize),
            }
            seconds: dict[str, list[float]] = {contestant: [] for contestant in contestants}
            for turn in range(options.rounds + 1):
                for contestant, run in contestants.items():
                    start = time.perf_counter()
                    run(images, turn)
                    if turn:
                        seconds[contestant].append(time.perf_counter() - start)
            ours = statistics.median(seconds["ours"])
            print(f"{size} px, {name} (blur {blur}, solarise {solarize}), {options.batch} images")
            for contestant, times in seconds.items():
                median = statistics.median(times)
                print(f"  {contestant:18} {median * 1e3:9.1f} ms  {median / ours:6.2f} x ours", flush=True)
                results.append(
                    {
                        "size": size,
                        "view": name,
                        "contestant": contestant,
                        "median_seconds": median,
                        "ratio": median / ours,
                        "seconds": times,
                    }
                )
    if options.json:
        setting = {"batch": options.batch, "threads": options.threads, "torch": torch.__version__}
        record = {**setting, "machine": platform.processor() or platform.machine(), "results": results}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
