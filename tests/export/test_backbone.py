"""What is written opens in timm alone, loads back bit for bit, and is refused where it is not whole."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from daybreak.data.images import open_images
from daybreak.data.loader import evaluation_batches
from daybreak.errors import Failed, Refused
from daybreak.export import backbone as backbone_file
from daybreak.export.backbone import load, write_backbone
from daybreak.export.formats import export
from daybreak.nn.encoder import Encoder

MEAN, STD = (0.4, 0.5, 0.6, 0.3), (0.2, 0.25, 0.3, 0.1)
TIMM_ALONE = """
import sys, timm, torch
from pathlib import Path

for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.load(folder / "images.pt")
    with torch.no_grad():
        torch.save([model(some) for some in images], folder / "out.pt")
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (images[0].shape[1], 32, 48) and config["crop_pct"] == 1.0, config
    assert len(config["mean"]) == len(config["std"]) == config["input_size"][0], config
    assert abs(config["mean"][0] - 0.4) < 1e-6 and abs(config["std"][0] - 0.2) < 1e-6, config
    with_head = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)
    assert with_head(images[0]).shape[1] == 7
assert "daybreak" not in sys.modules
"""


def make(name="vit_micro", channels=3, seed=0, **settings) -> Encoder:
    torch.manual_seed(seed)
    shape = dict(width=64, depth=2, heads=2, patch_size=4) if "vit" in name or "eva" in name else {}
    encoder = Encoder(name, image_size=(32, 48), channels=channels, **(shape | settings))
    with torch.no_grad():
        for key, value in encoder.model.named_parameters():
            if "norm" in key or "pos_embed" in key or "bias" in key:  # at their start they would hide a loss
                value.add_(torch.randn_like(value))
    return encoder.eval()


def write(encoder: Encoder, folder, **info):
    c = encoder.channels
    return write_backbone(encoder, folder, mean=MEAN[:c], std=STD[:c], info=info)


def test_timm_alone_gives_the_same(tmp_path):
    cases = [
        ("vit_micro", 3, {"pool": "mean", "positions": "fixed", "drop_path": 0.2}),
        ("vit_micro", 1, {}),
        ("vit_small_patch16_dinov3", 4, {"pool": "mean"}),
        ("deit_tiny_distilled_patch16_224", 3, {}),
        ("vit_little_patch16_reg4_gap_256.sbb_in1k", 3, {}),
        ("convnext_mini", 4, {}),
        ("test_resnet", 1, {}),
    ]
    encoders = {}
    for number, (name, channels, settings) in enumerate(cases):
        folder = tmp_path / str(number)
        encoders[folder] = make(name, channels, **settings)
        write(encoders[folder], folder, method="mae")
        torch.save([torch.randn(2, channels, 32, 48), torch.randn(1, channels, 64, 32)], folder / "images.pt")
    command = [sys.executable, "-c", TIMM_ALONE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for folder, encoder in encoders.items():
        for given, found in zip(torch.load(folder / "images.pt"), torch.load(folder / "out.pt"), strict=True):
            torch.testing.assert_close(found, encoder.pooled(given), atol=1e-5, rtol=1e-5)


def test_load_gives_the_same_bits_and_moves_no_generator(tmp_path):
    encoder = make(pool="mean", positions="fixed", init="xavier").train()
    write(encoder, tmp_path / "run" / "backbone", method="mae", images_seen=1000, classes=["a|b"])
    assert encoder.training  # stays as it was
    before = torch.get_rng_state()
    backbone = load(tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())
    images = torch.randn(2, 3, 32, 48)
    encoder.eval()
    assert torch.equal(backbone.pooled(images), encoder.pooled(images)) and not backbone.training
    assert torch.equal(backbone.tokens(images).patches, encoder.tokens(images).patches)
    assert (backbone.dim, backbone.size, backbone.channels) == (64, (32, 48), 3)
    assert backbone.mean == MEAN[:3] and backbone.std == STD[:3]
    assert backbone.info == {"method": "mae", "images_seen": 1000, "classes": ["a|b"]}
    assert torch.equal(load(tmp_path / "run" / "backbone").pooled(images), backbone.pooled(images))
    card = (tmp_path / "run" / "backbone" / "README.md").read_text()
    assert "| method | mae |" in card and "a\\|b" in card and "0.4, 0.5, 0.6" in card and "{{" not in card


def test_writing_again_replaces_and_leaves_nothing_beside(tmp_path):
    write(make(seed=1), tmp_path / "backbone")
    second = make(seed=2)
    write(second, tmp_path / "backbone")
    images = torch.randn(1, 3, 32, 48)
    assert torch.equal(load(tmp_path / "backbone").pooled(images), second.pooled(images))
    assert [path.name for path in tmp_path.iterdir()] == ["backbone"]


def test_a_failed_write_leaves_the_former_backbone(tmp_path, monkeypatch):
    first = make(seed=1)
    write(first, tmp_path / "backbone")

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(Failed, match="no space left"):
        patch.setattr(backbone_file, "save_file", full)
        write(make(seed=2), tmp_path / "backbone")
    with pytest.raises(TypeError):
        write(make(seed=2), tmp_path / "backbone", bad=object())
    images = torch.randn(1, 3, 32, 48)
    assert torch.equal(load(tmp_path / "backbone").pooled(images), first.pooled(images))
    assert [path.name for path in tmp_path.iterdir()] == ["backbone"]


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(Refused, match="no backbone"):
        write(make(), tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_weights_that_do_not_fit_are_refused_and_counted(tmp_path):
    file = write(make(), tmp_path / "backbone") / "model.safetensors"
    whole = load_file(file)
    for change, message in (
        ({"norm.weight": None}, "1 are missing and 0 have another shape, and 0 are too many"),
        ({"norm.weight": torch.zeros(3)}, "0 are missing and 1 have another shape, and 0 are too many"),
        ({"extra": torch.zeros(3)}, "0 are missing and 0 have another shape, and 1 are too many"),
    ):
        save_file({k: v for k, v in (whole | change).items() if v is not None}, file)
        with pytest.raises(Refused, match=message):
            load(tmp_path / "backbone")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Refused, match="not a whole safetensors file"):
        load(tmp_path / "backbone")


def test_what_is_no_backbone_is_refused(tmp_path):
    with pytest.raises(Refused, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(Refused, match=r"holds no config.json and no model.safetensors, so"):
        load(tmp_path)
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(Refused, match="the run did not end"):
        load(tmp_path)
    with pytest.raises(Refused, match="is a file"):
        load(tmp_path / "config.toml")
    folder = write(make(), tmp_path / "backbone")
    config = json.loads((folder / "config.json").read_text())
    del config["daybreak"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match="not written by Daybreak"):
        load(folder)


def test_transform(tmp_path):
    backbone = load(write(make(), tmp_path / "backbone"))
    random = np.random.default_rng(0)
    exact = random.integers(0, 256, (32, 48, 3), np.uint8)
    expected = (torch.from_numpy(exact).permute(2, 0, 1) / 255 - torch.tensor(MEAN[:3])[:, None, None]
                ) / torch.tensor(STD[:3])[:, None, None]
    torch.testing.assert_close(backbone.transform(exact), expected)
    cv2.imwrite(str(tmp_path / "a.png"), exact[:, :, ::-1])
    torch.testing.assert_close(backbone.transform(str(tmp_path / "a.png")), expected)
    torch.testing.assert_close(backbone.transform(Image.fromarray(exact)), expected)

    wide = np.zeros((32, 148, 3), np.uint8)  # the centre is kept, the sides are cut
    wide[:, 50:98] = exact
    torch.testing.assert_close(backbone.transform(wide), expected)
    grey = backbone.transform(np.full((64, 96), 51, np.uint8))
    torch.testing.assert_close(grey[:, 0, 0], (0.2 - torch.tensor(MEAN[:3])) / torch.tensor(STD[:3]))
    deep = backbone.transform(np.full((64, 96, 3), 13107, np.uint16))
    torch.testing.assert_close(deep, grey, atol=1e-5, rtol=0)

    turned = Image.fromarray(exact.swapaxes(0, 1)[::-1])  # stored on its side: orientation 6 turns it back
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "b.png", exif=exif)
    with Image.open(tmp_path / "b.png") as image:
        torch.testing.assert_close(backbone.transform(image), expected)
    with pytest.raises(Refused, match=r"b\.txt: can't be read"):
        (tmp_path / "b.txt").write_text("hello")
        backbone.transform(tmp_path / "b.txt")
    with pytest.raises(Refused, match=r"takes \(height, width, 3\)"):
        backbone.transform(np.zeros((32, 48, 4), np.uint8))
    with pytest.raises(Refused, match="float64"):
        backbone.transform(np.zeros((32, 48, 3)))


def test_transform_is_that_of_the_evaluation(tmp_path):
    random = np.random.default_rng(0)
    for number, shape in enumerate([(40, 90, 3), (300, 200, 3), (20, 24, 3)]):
        (tmp_path / "data").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "data" / f"{number}.jpg"), random.integers(0, 256, shape, np.uint8))
    backbone, images = load(write(make(), tmp_path / "backbone")), open_images(tmp_path / "data")
    ((_, pixels),) = evaluation_batches(images, *backbone.size, 4)
    for number, key in enumerate(images.keys):
        mine = backbone.transform(tmp_path / "data" / key)
        back = mine * torch.tensor(STD[:3])[:, None, None] + torch.tensor(MEAN[:3])[:, None, None]
        torch.testing.assert_close(back * 255, pixels[number].float(), atol=1e-3, rtol=0)


def test_export_forms(tmp_path):
    encoder = make()
    write(encoder, tmp_path / "run" / "backbone", method="sit")
    images = torch.randn(1, 3, 32, 48)
    assert export(tmp_path / "run", "timm", tmp_path / "timm") == tmp_path / "timm"
    copied = load(tmp_path / "timm")
    assert torch.equal(copied.pooled(images), encoder.pooled(images)) and copied.info == {"method": "sit"}
    file = export(tmp_path / "run", "safetensors", tmp_path / "weights")
    assert file == tmp_path / "weights" / "model.safetensors"
    assert load_file(file).keys() == encoder.model.state_dict().keys()
    with pytest.raises(Refused, match="did you mean 'onnx'"):
        export(tmp_path / "run", "onx", tmp_path / "x")
    with pytest.raises(Refused, match="is a file"):
        export(tmp_path / "run", "timm", file)
