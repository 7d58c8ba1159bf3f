"""Each method learns: its features beat the same network at its random start, and sabotage makes that fail.

Run by the public function, end to end, on grey noisy textures made in conftest.py, or on the silhouettes of the demo
where random weights read textures too well to leave room. The measure is the accuracy of one protocol, named here.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import daybreak
from daybreak.methods import base

DEMO = Path(daybreak.__file__).parent / "demo"
SETTINGS = ["encoder.width=64", "encoder.depth=2", "watch.probes=4", "watch.on_collapse=warn", "training.precision=32-true",
            "training.learning_rate_rule=fixed", "training.learning_rate=1e-3"]


@dataclass(frozen=True)
class Lesson:
    """What a method is trained on, how long, and what must then be better than random weights (and raw pixels)."""

    images: int
    settings: tuple[str, ...] = ()
    on_textures: bool = True
    protocol: str = "linear"
    beats_pixels: bool = True
    data: str | None = None  # drawn; else textures, or the demo


LESSONS = {
    "mae": Lesson(40000, ("encoder.patch_size=7",), on_textures=False, protocol="knn", beats_pixels=False),
    "simclr": Lesson(10000, ("encoder.patch_size=7", "method.temperature=0.5", "method.scale=[0.3, 1.0]"), on_textures=False,
                     protocol="knn", beats_pixels=False),
    "dino": Lesson(16000, ("method.local_views=2", "method.prototypes=256", "method.hidden=128", "method.momentum=0.99",
                           "method.freeze_prototypes=1.0")),
    "sit": Lesson(12000, ("method.hidden=128", "method.momentum=0.95")),
    "mmc": Lesson(10000, ("method.prototypes=256", "method.hidden=128", "method.contrast_hidden=128", "method.momentum=0.99",
                          "method.freeze_prototypes=1.0", "method.teacher_temperature=0.04",
                          "method.final_teacher_temperature=0.04")),
    "gmml": Lesson(24000, ("encoder.patch_size=7", "method.fill=zeros", "method.drop=0.5"), on_textures=False, protocol="knn",
                   beats_pixels=False),
    "pseudo_mae": Lesson(24000, ("encoder.patch_size=7", "method.prototypes=256", "method.hidden=128",
                                 "method.labelling_momentum=0.95", "method.reconstruction_momentum=0.98",
                                 "method.freeze_prototypes=1.0", "method.teacher_temperature=0.04",
                                 "method.final_teacher_temperature=0.04"), on_textures=False, protocol="knn", beats_pixels=False),
    "mcssl": Lesson(24000, ("encoder.patch_size=7", "method.prototypes=256", "method.hidden=128", "method.momentum=0.95",
                            "method.freeze_class_prototypes=1.0", "method.freeze_data_prototypes=1.0",
                            "method.teacher_temperature=0.04", "method.final_teacher_temperature=0.04", "method.local_views=0",
                            "method.global_scale=[0.6, 1.0]", "method.color=[0, 0, 0, 0]"), on_textures=False, beats_pixels=False),
    "lt_vit": Lesson(4000),
    "hydra": Lesson(12000, ("method.hidden=128", "method.output=64", "method.embedding=64", "method.gate_hidden=128")),
    # For the first 400 steps or so it paints the mean of all images; the betas are the paper's for a quarter of the pixels.
    "devae": Lesson(60000, ("encoder.name=conv_vae", "encoder.image_size=32", "encoder.width=none", "encoder.depth=none",
                            "method.betas=[0.25, 10]", "data.label=scale", "training.batch_size=32", "watch.probes=2"),
                    protocol="knn", beats_pixels=False, data="dsprites:3000"),
}


SLOW = ("devae", "gmml", "mcssl", "mmc", "pseudo_mae")


def train(name: str, textures: Path, out: Path, more: tuple[str, ...] = ()) -> daybreak.Run:
    lesson = LESSONS[name]
    demo = {"data": DEMO / "animals-train.parquet", "val": DEMO / "animals-val.parquet"}
    data = {"data": lesson.data or textures} if lesson.data or lesson.on_textures else demo
    return daybreak.pretrain(**data, method=name, images=lesson.images, batch_size=64, out=out, seed=0, pictures=False,
                             overrides=[*SETTINGS, *lesson.settings, *more])


def score(run: daybreak.Run, backbone: str, protocol: str) -> tuple[float, float]:
    """Accuracy and its bootstrap standard error."""
    (found,) = [r for r in run.results if (r.protocol, r.metric, r.backbone) == (protocol, "accuracy", backbone)]
    return found.value, found.error


def learns(run: daybreak.Run, protocol: str, other: str = "random") -> bool:
    """Better than the other backbone by 3 standard errors of the difference."""
    (trained, e1), (beaten, e2) = score(run, "trained", protocol), score(run, other, protocol)
    return trained - beaten > 3 * (e1**2 + e2**2) ** 0.5


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in base.names()])
def test_features_beat_random_weights_and_pixels(name, noisy_textures, tmp_path):
    run, lesson = train(name, noisy_textures, tmp_path / "run"), LESSONS[name]
    assert learns(run, lesson.protocol)
    assert '"kind": "alarm"' not in (run.folder / "metrics.jsonl").read_text()  # a healthy run is left in peace
    assert not lesson.beats_pixels or learns(run, lesson.protocol, "pixels")


def loss_times_zero(cls, monkeypatch):
    forward = cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, batch, step: base.Loss(0 * forward(self, batch, step).value, {}))


def detached_encoder(cls, monkeypatch):
    """Features without gradient: the heads learn, the encoder does not."""
    tokens = base.Encoder.tokens

    def cut(self, images, keep=None):
        return type(found := tokens(self, images, keep))(*(x.detach() for x in found))

    monkeypatch.setattr(base.Encoder, "tokens", cut)


def permuted_targets(cls, monkeypatch):
    """What must be predicted, or agreed with, comes from another image of the batch, never from one's own."""
    if cls.name == "mae":
        reconstruct = cls.reconstruct

        def shuffled(self, *arguments):
            prediction, target, wanted = reconstruct(self, *arguments)
            return prediction, target.roll(1, 0), wanted

        monkeypatch.setattr(cls, "reconstruct", shuffled)
    else:
        forward = cls.forward

        def crossed(self, batch, step):
            return forward(self, replace(batch, images=[batch.images[0], batch.images[1].roll(1, 0)]), step)

        monkeypatch.setattr(cls, "forward", crossed)


SABOTAGES = {"zero": loss_times_zero, "detached": detached_encoder, "permuted": permuted_targets, "rate": None}


@pytest.mark.long
@pytest.mark.parametrize("name, sabotage", [*(("simclr", kind) for kind in SABOTAGES), ("mae", "permuted"),
                                            pytest.param("devae", "permuted", marks=pytest.mark.slow)])
def test_sabotage_does_not_learn(name, sabotage, noisy_textures, tmp_path, monkeypatch):
    """A method that learns from pairs, one from hidden pixels, one from all of them; the others are made of the first two.

    A loss times zero, a rate of zero and a detached encoder are the same for all methods: one shows them.
    """
    if SABOTAGES[sabotage] is not None:
        SABOTAGES[sabotage](base.find(name), monkeypatch)
    still = ("training.learning_rate=0.0", "training.final_learning_rate=0.0") if sabotage == "rate" else ()
    assert not learns(train(name, noisy_textures, tmp_path / "run", still), LESSONS[name].protocol)
