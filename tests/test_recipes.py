"""Every recipe names settings that are, and every claim says how it was made."""

import tomllib
from pathlib import Path

import pytest

from daybreak.config import EncoderConfig, Training, fill, read_toml
from daybreak.methods.base import find
from daybreak.nn.presets import resolve
from daybreak.train.stages import stages_of

ALSO = {"mcssl": ("dicom",)}  # papers that are a method on other views, whose recipes bear their names
RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fills_the_configuration(path):
    tree = read_toml(path)
    assert set(tree) <= {"method", "encoder", "training", "data", "watch"}
    cls = find(tree["method"].pop("name"))
    method = fill(cls.Config, tree["method"], "method")
    training, encoder = fill(Training, tree["training"], "training"), fill(EncoderConfig, tree["encoder"], "encoder")
    assert [training.images, training.epochs, training.minutes].count(None) == 2, "one budget"
    assert training.batch_size % training.devices == 0
    stages_of(training, method)
    resolve(encoder.name, (encoder.image_size[0], encoder.image_size[-1]))
    assert path.stem.startswith((cls.name, *ALSO.get(cls.name, ())))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_claim_says_how_it_was_made(path):
    claim = tomllib.loads(path.read_text()).get("claim")
    if claim is not None:
        assert set(claim) == {"summary", "command", "images_seen", "seeds", "hardware", "commit"}
        assert f"recipes/{path.name}" in claim["command"] and len(claim["commit"]) >= 7
