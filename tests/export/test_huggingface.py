"""What transformers opens gives the tokens and the features of the backbone; what it can't is refused by the part."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from daybreak.errors import Refused
from daybreak.export.backbone import load, write_backbone
from daybreak.export.formats import export
from daybreak.export.huggingface import translate_vit
from daybreak.nn.encoder import Encoder

SMALL = dict(patch_size=4, width=64, depth=2, heads=2)
REG = "vit_small_patch14_reg4_dinov2"


def make(name: str, size=(16, 16), channels: int = 3, **settings) -> Encoder:
    """A small encoder whose every part is felt in its output."""
    torch.manual_seed(0)
    encoder = Encoder(name, image_size=size, channels=channels, **((SMALL if "vit" in name or "deit" in name else {}) | settings))
    with torch.no_grad():
        for key, value in encoder.model.named_parameters():
            if "gamma" in key or ("norm" in key and "weight" in key):
                value.uniform_(0.5, 1.5)
            elif "bias" in key or "token" in key or "pos_embed" in key:
                value.normal_()
        for key, value in encoder.model.named_buffers():
            if "running" in key:
                value.uniform_(0.5, 1.5)
    return encoder.eval()


def written(encoder: Encoder, folder, **info):
    """The run of an encoder and its export."""
    channels = encoder.channels
    write_backbone(encoder, folder / "run" / "backbone", mean=[0.4, 0.5, 0.6, 0.7][:channels], std=[0.2, 0.3, 0.4, 0.5][:channels],
                   info={"method": "mae"} | info)
    return export(folder / "run", "huggingface", folder / "hub")


def opened(folder):
    """The model, its outputs as a function, and the line of the card that reads the feature out of them."""
    transformers = pytest.importorskip("transformers")
    model, told = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    (line,) = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("features = ")]
    return model.eval(), line.removeprefix("features = ").partition("#")[0]


@pytest.mark.parametrize(("name", "architecture", "settings"), [
    ("vit_micro", "ViTModel", {}),
    ("vit_micro", "ViTModel", {"pool": "mean", "positions": "fixed"}),
    ("vit_mini", "ViTModel", {"size": (16, 24), "channels": 1}),
    ("deit3_small_patch16_224", "ViTModel", {}),  # layer scale, positions of the patches alone
    ("vit_medium_patch16_gap_256", "IJepaModel", {"pool": "mean"}),
    ("vit_base_patch16_siglip_224", "IJepaModel", {"pool": "mean", "channels": 4}),
    (REG, "Dinov2WithRegistersModel", {}),
    (REG, "Dinov2WithRegistersModel", {"pool": "mean"}),
])
def test_a_vit_gives_the_same_tokens_and_features(tmp_path, name, architecture, settings):
    encoder = make(name, **settings)
    model, line = opened(written(encoder, tmp_path))
    images = torch.randn(3, encoder.channels, *encoder.image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs, tokens, feature = model(images), encoder.tokens(images), encoder.pooled(images)
    assert type(model).__name__ == architecture
    torch.testing.assert_close(outputs.last_hidden_state, torch.cat([tokens.prefix, tokens.patches], 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(eval(line, {"outputs": outputs}), feature, atol=1e-5, rtol=1e-5)
    if encoder.pooling == "cls":
        torch.testing.assert_close(outputs.pooler_output, feature, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 1), ("resnet26", 3)])
def test_a_resnet_gives_the_same_map_and_features(tmp_path, name, channels):
    encoder = make(name, (32, 48), channels)
    model, line = opened(written(encoder, tmp_path))
    images = torch.randn(2, channels, 64, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs, found, feature = model(images), encoder.map(images), encoder.pooled(images)
    scale = found.abs().max()
    torch.testing.assert_close(outputs.last_hidden_state / scale, found / scale, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(eval(line, {"outputs": outputs}) / scale, feature / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "settings", "part"), [
    ("vit_small_patch16_dinov3", {}, r"rotary positions \(Eva\)"),
    ("deit_tiny_distilled_patch16_224", {}, "distillation token"),
    ("vit_base_patch16_clip_224", {}, "norm_pre"),
    ("vit_little_patch16_reg4_gap_256", {"pool": "mean"}, "register tokens without a class token"),
    (REG, {"size": (16, 24)}, "register tokens at 16 x 24 pixels"),
    ("convnext_mini", {}, r"architecture \(ConvNeXt, whose features are the mean of a normalised map\)"),
    ("convnextv2_atto", {"size": (32, 32)}, r"architecture \(ConvNeXt"),
    ("mobilenetv2_035", {"size": (32, 32)}, r"architecture \(EfficientNet\)"),
    ("resnet10t", {"size": (32, 32)}, "stem"),
    ("seresnet18", {"size": (32, 32)}, "blocks with groups, other widths, dilation, attention"),
    ("resnext26ts", {"size": (32, 32)}, "architecture"),
])
def test_a_part_without_counterpart_is_named(tmp_path, name, settings, part):
    sentence = rf"^{name}: transformers has no counterpart of its {part}.*; the nearest export is --to timm, whose folder "
    with pytest.raises(Refused, match=sentence):
        written(make(name, **settings), tmp_path)
    assert not (tmp_path / "hub").exists()


def test_automodel_opens_the_export_for_timm_as_a_refusal_says(tmp_path):
    transformers = pytest.importorskip("transformers")
    encoder, images = make("vit_small_patch16_dinov3"), torch.randn(2, 3, 16, 16)
    with pytest.raises(Refused, match="AutoModel opens too"):
        written(encoder, tmp_path)
    model = transformers.AutoModel.from_pretrained(export(tmp_path / "run", "timm", tmp_path / "timm")).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images).pooler_output, encoder.pooled(images), atol=1e-5, rtol=1e-5)


def test_norms_activations_and_queries_of_another_kind_are_refused(tmp_path):
    for change, part in ((lambda model: setattr(model.blocks[1].norm2, "eps", 0.1), "norms"),
                         (lambda model: setattr(model.blocks[0].mlp, "act", torch.nn.ReLU()), r"activation \(ReLU\)"),
                         (lambda model: setattr(model.blocks[0].attn, "q_norm", torch.nn.LayerNorm(32)), "blocks.0.attn.q_norm")):
        encoder = make("vit_micro")
        change(encoder.model)
        with pytest.raises(Refused, match=part):
            translate_vit(encoder)


@pytest.mark.parametrize(("size", "channels"), [((16, 16), 3), ((16, 16), 1), ((16, 24), 3)])
def test_the_processor_gives_the_size_and_the_normalisation(tmp_path, size, channels):
    transformers = pytest.importorskip("transformers")
    folder = written(make("vit_micro", size, channels), tmp_path)
    processor, backbone = transformers.AutoImageProcessor.from_pretrained(folder), load(tmp_path / "run")
    ramp = np.linspace(0, 255, 3 * size[1])[None].repeat(3 * size[0], 0)
    image = Image.fromarray(ramp.round().astype(np.uint8))
    found = processor(image if channels == 1 else image.convert("RGB"), return_tensors="pt").pixel_values[0]
    ours = backbone.transform(image)
    assert found.shape == ours.shape == (channels, *size)
    torch.testing.assert_close(found[:, :, 2:-2], ours[:, :, 2:-2], atol=0.05, rtol=0)  # smooth, so filters hardly differ
    wide = processor(Image.new("RGB", (300, 40)) if channels == 3 else Image.new("L", (300, 40)), return_tensors="pt").pixel_values
    assert wide.shape == (1, channels, *size)


def test_transformers_is_not_needed_and_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # an import of it now fails
    folder = written(make("vit_micro"), tmp_path, labels="class")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    card, config = (folder / "README.md").read_text(), json.loads((folder / "config.json").read_text())
    assert "library_name: transformers" in card and "| method | mae |" in card and "with labels" in card and "{{" not in card
    assert config["daybreak"]["info"] == {"method": "mae", "labels": "class"} and config["model_type"] == "vit"
    before = (folder / "model.safetensors").read_bytes()
    assert export(tmp_path / "run", "huggingface", folder) == folder  # a former export is replaced
    assert (folder / "model.safetensors").read_bytes() == before
    for out in ("run", "run/backbone"):
        with pytest.raises(Refused, match="holds the backbone itself"):
            export(tmp_path / "run", "huggingface", tmp_path / out)
    assert load(tmp_path / "run").dim == 64
