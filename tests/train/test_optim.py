"""Layer-wise rates: those of papers worked out by hand, for a ViT and for CNNs of timm."""

import pytest
import torch
from torch import nn

from daybreak.config import Training
from daybreak.nn.encoder import Encoder
from daybreak.train.optim import layer_scales, make_optimizer, parameter_groups, set_rates


def test_the_layers_of_a_vit_by_hand():
    """Two blocks: n = 3; embeddings are layer 0, block k is layer k + 1, the rest is layer n."""
    encoder = Encoder("vit_micro", image_size=(16, 16), patch_size=4, width=64, depth=2, heads=2)
    scales = layer_scales(encoder, 0.5)
    assert set(scales) == {name for name, _ in encoder.named_parameters()}
    assert {scales[f"model.{name}"] for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")} == {
        0.125}
    assert {s for name, s in scales.items() if ".blocks.0." in name} == {0.25}
    assert {s for name, s in scales.items() if ".blocks.1." in name} == {0.5}
    assert scales["model.norm.weight"] == scales["model.norm.bias"] == 1.0
    assert set(layer_scales(encoder, 1.0).values()) == {1.0}


def test_vit_b_of_mae_gives_its_patches_the_rate_of_the_paper():
    with torch.device("meta"):
        encoder = Encoder("vit_small", image_size=(32, 32), width=64, depth=12, heads=1)
    assert layer_scales(encoder, 0.65)["model.patch_embed.proj.weight"] == pytest.approx(0.65**13)


def test_the_layers_of_cnns_by_hand():
    """ResNet-10 has a stem and four stages of one block, and our classifier behind; ConvNeXt's last norm is with its last block."""
    scales = layer_scales(Encoder("resnet10t", image_size=(32, 32)), 0.5)
    assert scales["model.conv1.0.weight"] == scales["model.bn1.weight"] == 0.5**5
    assert [scales[f"model.layer{i}.0.conv1.weight"] for i in (1, 2, 3, 4)] == [0.5**4, 0.5**3, 0.5**2, 0.5]
    encoder = Encoder("convnext_mini", image_size=(16, 16))
    scales = layer_scales(encoder, 0.5)
    assert set(scales) == {name for name, _ in encoder.named_parameters()} and scales["model.norm_pre.weight"] == 0.5
    depths = [len(stage.blocks) for stage in encoder.model.stages]
    assert depths == [2, 2, 6, 2] and scales["model.stem.0.weight"] == 0.5**13
    assert scales["model.stages.1.downsample.1.weight"] == scales["model.stages.1.blocks.0.mlp.fc1.weight"] == 0.5**10
    assert scales[f"model.stages.3.blocks.{depths[3] - 1}.mlp.fc1.weight"] == 0.5


def test_every_step_gives_each_group_its_share_of_the_rate():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    training = Training(learning_rate=1.0, learning_rate_rule="fixed", weight_decay=0.1)
    optimizer = make_optimizer(module, training, {"0.weight": 0.25, "0.bias": 0.25})
    set_rates(optimizer, 0.8, 0.1)
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rate[id(module[0].weight)] == (pytest.approx(0.2), 0.1) and rate[id(module[0].bias)] == (pytest.approx(0.2), 0.0)
    assert rate[id(module[1].weight)] == (0.8, 0.1) and rate[id(module[1].bias)] == (0.8, 0.0)
    assert len(rate) == 4 and not any("scale" in group for group in parameter_groups(module, "1d"))


def test_no_rate_moves_no_weight():
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    optimizer = make_optimizer(module, Training(learning_rate=1.0, learning_rate_rule="fixed"), {"weight": 0.5})
    set_rates(optimizer, 0.0, 0.5)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(module.weight, before)
