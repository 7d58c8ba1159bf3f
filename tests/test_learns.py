"""Each method learns: its features beat the same network at its random start, and sabotage makes that fail.

Textures of random phase, period and colours in five classes, made in conftest.py: raw pixels and random weights
say little about the class. Run by the public function, end to end.
"""

from dataclasses import replace

import pytest
import torch

from daybreak import pretrain
from daybreak.methods import base
from daybreak.nn.masking import partners

IMAGES = {"mae": 24000, "simclr": 10000, "dino": 12000, "sit": 10000}
SETTINGS = ["encoder.width=64", "encoder.depth=2", "watch.probes=0", "training.precision=32-true"]
METHOD = {"dino": ["method.local_views=2", "method.prototypes=128", "method.hidden=128"], "sit": ["method.hidden=128"],
          "mae": ["method.norm_pix=false"]}


def score(run, backbone: str) -> tuple[float, float]:
    """kNN accuracy and its standard error."""
    (found,) = [r for r in run.results if (r.protocol, r.metric, r.backbone) == ("knn", "accuracy", backbone)]
    return found.value, found.error


def learns(run) -> bool:
    """Better than random weights by 3 bootstrap standard errors of the difference."""
    (trained, e1), (random, e2) = score(run, "trained"), score(run, "random")
    return trained - random > 3 * (e1**2 + e2**2) ** 0.5


def train(name, textures, out, images=None, more=()):
    return pretrain(textures, method=name, images=images or IMAGES[name], batch_size=64, out=out, seed=0, pictures=False,
                    overrides=[*SETTINGS, *METHOD.get(name, []), *more])


@pytest.mark.long
@pytest.mark.parametrize("name", base.names())
def test_features_beat_random_weights_and_pixels(name, textures, tmp_path):
    run = train(name, textures, tmp_path / "run")
    assert learns(run)
    assert score(run, "trained")[0] > score(run, "pixels")[0]


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
    """What a view must agree with comes from another image of the batch."""
    forward = cls.forward

    def shuffled(self, batch, step):
        other = partners(step.random, "sabotage", cell=len(batch.index))
        if self.name == "simclr":
            batch = replace(batch, images=[batch.images[0], batch.images[1][other]])
            return forward(self, batch, step)
        teacher = self.teacher["encoder"]
        keep = teacher.tokens
        teacher.tokens = lambda images, keep_=None: type(f := keep(images, keep_))(*(x[torch.cat([other, other + len(other)])] for x in f))
        try:
            return forward(self, batch, step)
        finally:
            del teacher.tokens

    monkeypatch.setattr(cls, "forward", shuffled)


@pytest.mark.long
@pytest.mark.parametrize("sabotage", [loss_times_zero, detached_encoder, None], ids=["zero", "detached", "rate"])
@pytest.mark.parametrize("name", ["sit", "simclr"])
def test_sabotage_does_not_learn(name, sabotage, textures, tmp_path, monkeypatch):
    if sabotage is not None:
        sabotage(base.find(name), monkeypatch)
    more = [] if sabotage else ["training.learning_rate=0.0", "training.final_learning_rate=0.0"]
    assert not learns(train(name, textures, tmp_path / "run", more=more))


@pytest.mark.long
def test_targets_of_another_image_do_not_teach(textures, tmp_path, monkeypatch):
    permuted_targets(base.find("simclr"), monkeypatch)
    assert not learns(train("simclr", textures, tmp_path / "run"))
