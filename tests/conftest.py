"""Fixtures that many tests share: real images where they are, textures made here, batches of noise."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in a process a core; read as numpy, torch and scikit-learn load
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import cv2
import numpy as np
import pytest
import torch

from daybreak import verbs
from daybreak.data.batch import Batch
from daybreak.data.philox import Random
from daybreak.data.views import expand
from daybreak.methods.base import Step, find
from daybreak.nn.encoder import Encoder

# Settings of methods with narrow heads, for tests.
NARROW: dict[str, dict[str, int]] = {
    "devae": {"latents": 4},
    "dino": {"prototypes": 32, "hidden": 32, "bottleneck": 16, "local_views": 2},
    "hydra": {"hidden": 32, "output": 16, "embedding": 32, "gate_hidden": 32},
    "mae": {"decoder_width": 32, "decoder_depth": 1},
    "mcssl": {"prototypes": 32, "hidden": 32, "bottleneck": 16, "local_views": 2},
    "mmc": {"prototypes": 32, "hidden": 32, "bottleneck": 16, "contrast_hidden": 32, "contrast_output": 16},
    "pseudo_mae": {"folds": 2, "decoder_width": 32, "decoder_depth": 1, "prototypes": 32, "hidden": 32, "bottleneck": 16},
    "simclr": {"hidden": 32, "output": 16},
    "sit": {"hidden": 32, "output": 16},
}
CLASSES = 4  # of the labels in a batch of noise, for methods that learn from labels
TEXTURES = ("across", "checks", "diagonal", "dots", "upright")


@pytest.fixture(scope="session", autouse=True)
def _threads():
    torch.set_num_threads(1)  # the tests run in a process a core


@pytest.fixture(autouse=True)
def _no_forecast(request, monkeypatch):
    """Runs begin at once: the steps that a forecast tries take longer than most runs here. Marked ``forecast``, a test keeps it."""
    if "forecast" not in request.keywords:
        monkeypatch.setattr(verbs, "say_forecast", lambda *_: None)


@pytest.fixture(scope="session")
def shared():
    """Path of a file of real images, or a skip where they are not."""
    root = Path(os.environ.get("DAYBREAK_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"

    def find_file(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"no {name} here")
        return root / name

    return find_file


def pattern(kind: str, random: np.random.Generator, side: int) -> np.ndarray:
    """(side, side) in [-1, 1]: a texture of random phase and period, so that no pixel says which."""
    y, x = np.mgrid[:side, :side].astype(float)
    period, (a, b) = random.uniform(3.5, 6), random.uniform(0, 2 * np.pi, 2)
    wave = 2 * np.pi / period
    return {
        "across": np.sin(wave * y + a), "upright": np.sin(wave * x + a), "diagonal": np.sin(wave * (x + y) * 0.7 + a),
        "checks": np.sign(np.sin(wave * y + a) * np.sin(wave * x + b)),
        "dots": 2 * ((np.sin(wave * y + a) > 0.4) & (np.sin(wave * x + b) > 0.4)) - 1.0,
    }[kind]


@pytest.fixture(scope="session")
def textures(tmp_path_factory) -> Path:
    """A folder of 5 class folders of 120 coloured textures each, 16 x 16."""
    folder, random = tmp_path_factory.mktemp("textures"), np.random.default_rng(0)
    for kind in TEXTURES:
        (folder / kind).mkdir()
        for i in range(120):
            dark, light = random.uniform(0, 110, 3), random.uniform(145, 255, 3)
            image = dark + (pattern(kind, random, 16)[..., None] + 1) / 2 * (light - dark)
            image += random.normal(0, 12, image.shape)
            cv2.imwrite(str(folder / kind / f"{i:03d}.png"), image.clip(0, 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="session")
def noisy_textures(tmp_path_factory) -> Path:
    """Grey, noisy textures, 16 x 16, of either sign of contrast: 1,200 to learn from in ``train``, 1,000 in ``val``."""
    folder, random = tmp_path_factory.mktemp("noisy"), np.random.default_rng(0)
    for split, count in (("train", 240), ("val", 200)):
        for kind in TEXTURES:
            (folder / split / kind).mkdir(parents=True)
            for i in range(count):
                contrast, level = random.uniform(40, 90) * random.choice([-1, 1]), random.uniform(100, 156)
                image = level + contrast * pattern(kind, random, 16) + random.normal(0, 30, (16, 16))
                cv2.imwrite(str(folder / split / kind / f"{i:03d}.png"), image.clip(0, 255).astype(np.uint8))
    return folder


def tiny_method(name: str, *, size=(16, 16), channels: int = 3, seed: int = 0, encoder: str = "vit_micro", **settings):
    """A method on a ViT of width 64 and 2 blocks, patch 4, with heads to match."""
    cls = find(name)
    small = NARROW.get(name, {}) | ({"classes": CLASSES} if cls.labels in ("class", "multi") else {})
    torch.manual_seed(seed)
    shape = dict(patch_size=4, width=64, depth=2, heads=2) if encoder == "vit_micro" else {}
    made = Encoder(encoder, image_size=size, channels=channels, pool=cls.pool, positions=cls.positions, init=cls.init, **shape)
    return cls(made, cls.Config(**(small | settings)))


def noise_batch(method, count: int = 8, seed: int = 0) -> Batch:
    """Normalised noise for each view of a method, and a class or labels for each image where it learns from such."""
    random, views = torch.Generator().manual_seed(seed), expand(method.views)
    images = [torch.randn(count, method.encoder.channels, v.height, v.width, generator=random) for v in views]
    index = torch.arange(count)
    several = ((index[:, None] + torch.arange(CLASSES)) % 3 == 0).float()  # (B, L)
    several[index % 4 == 1, 1] = torch.nan  # unknown
    return Batch(images=images, boxes=torch.rand(len(views), count, 4, generator=random),
                 flips=torch.zeros(len(views), count, dtype=torch.bool), index=index,
                 sizes=torch.full((count, 2), 32), epoch=0,
                 labels={"class": index % CLASSES, "multi": several}.get(method.labels))


def step_for(batch: Batch, progress: float = 0.5, seed: int = 0) -> Step:
    return Step(progress, 0, Random(seed, batch.epoch, batch.index))
