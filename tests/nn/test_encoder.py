"""The encoder against timm itself: 20 ViTs, 10 CNNs and those that must be refused.

B batch, N patches, K kept, D width, C channels, H W height and width.
"""

import copy
import math

import pytest
import torch

from daybreak.errors import Refused
from daybreak.nn.encoder import Encoder, sincos_positions
from daybreak.nn.momentum import Teacher
from daybreak.nn.presets import PRESETS, resolve

VITS = [  # name, prefix tokens
    ("vit_micro", 1), ("vit_mini", 1), ("vit_tiny_patch16_224", 1), ("vit_small_patch32_224", 1),
    ("vit_small_patch14_dinov2", 1), ("vit_small_patch14_reg4_dinov2", 5), ("vit_base_patch16_siglip_224", 0),
    ("vit_base_patch16_clip_224", 1), ("deit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2),
    ("deit3_small_patch16_224", 1), ("vit_medium_patch16_gap_256", 0), ("vit_little_patch16_reg4_gap_256", 4),
    ("vit_wee_patch16_reg1_gap_256", 1), ("flexivit_small", 1), ("vit_small_patch16_dinov3", 5),
    ("eva02_tiny_patch14_224", 1), ("vit_small_patch16_rope_224", 1), ("vit_small_patch16_rope_mixed_224", 1),
    ("vit_pe_core_tiny_patch16_384", 1),
]
CNNS = ["convnext_mini", "resnet18", "resnet10t", "convnextv2_atto", "mobilenetv2_035", "regnetx_002",
        "test_resnet", "test_efficientnet", "test_byobnet", "test_convnext", "conv_vae"]


def small(name: str, **settings) -> Encoder:
    """A ViT of width 64 and 2 blocks with patches of 4, whose every part is felt in its output."""
    torch.manual_seed(0)
    shape = dict(image_size=(16, 24), patch_size=4, width=64, heads=2, depth=2) | settings
    encoder = Encoder(name, **shape).eval()
    with torch.no_grad():
        for key, value in encoder.model.named_parameters():
            if "gamma" in key:  # layer scale starts near 0 and would hide the blocks
                value.fill_(1.0)
            elif value.requires_grad and ("token" in key or "pos_embed" in key):
                value.normal_()
    return encoder


@pytest.mark.parametrize(("name", "num_prefix"), VITS)
def test_vit(name, num_prefix):
    encoder = small(name)
    images = torch.randn(2, 3, 16, 24)
    full = encoder.tokens(images)
    assert full.prefix.shape == (2, num_prefix, 64) and full.patches.shape == (2, 24, 64)
    assert encoder.pooled(images).shape == (2, encoder.dim) and encoder.num_prefix == num_prefix
    torch.testing.assert_close(encoder.pooled(images), encoder.model(images))

    # All patches in another order are the same tokens in that order: positions, rotary too, travel with them.
    order = torch.stack([torch.randperm(24), torch.randperm(24)])  # (B, N)
    moved = encoder.tokens(images, keep=order)
    torch.testing.assert_close(moved.patches, gather(full.patches, order), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(moved.prefix, full.prefix, atol=2e-5, rtol=1e-4)

    tall = torch.randn(1, 3, 32, 12)  # another size, not square
    assert encoder.grid(32, 12) == (8, 3) and encoder.map(tall).shape == (1, 64, 8, 3)
    torch.testing.assert_close(encoder.map(tall)[0, :, 1, 2], encoder.tokens(tall).patches[0, 5])


@pytest.mark.parametrize("name", ["vit_micro", "vit_base_patch16_siglip_224", "vit_small_patch16_dinov3",
                                  "vit_small_patch16_rope_mixed_224"])
def test_blocks_see_the_kept_patches_only(name):
    encoder = small(name)
    images = torch.randn(2, 3, 16, 24, requires_grad=True)
    keep = torch.tensor([[0, 5, 23], [7, 2, 11]])  # (B, K)
    tokens = encoder.tokens(images, keep=keep)
    assert tokens.patches.shape == (2, 3, 64)
    tokens.patches.square().sum().backward()
    touched = images.grad.abs().sum(1).unfold(1, 4, 4).unfold(2, 4, 4).sum((-1, -2)).flatten(1) > 0  # (B, N)
    expected = torch.zeros(2, 24, dtype=torch.bool).scatter(1, keep, True)
    assert torch.equal(touched, expected)
    assert encoder.levels(images, [0])[0].patches.shape[1] == 24  # the indices of one call do not stay


@pytest.mark.parametrize("name", ["vit_micro", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"])
def test_mean_pool_stands_behind_the_final_norm(name):
    encoder = small(name, pool="mean")
    images = torch.randn(2, 3, 16, 24)
    tokens = encoder.tokens(images)
    torch.testing.assert_close(tokens.patches.mean(-1), torch.zeros(2, 24), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.model(images), tokens.patches.mean(1))
    torch.testing.assert_close(encoder.pooled(images), tokens.patches.mean(1))


@pytest.mark.parametrize("name", CNNS)
def test_cnn(name):
    encoder = Encoder(name, image_size=(64, 96)).eval()
    images = torch.randn(1, 3, 64, 96)
    found = encoder.map(images)
    assert found.shape == (1, encoder.dim, *encoder.grid(64, 96)) and not encoder.is_vit
    torch.testing.assert_close(encoder.pooled(images), encoder.model(images))
    torch.testing.assert_close(encoder.pooled(images), found.mean((2, 3)))
    odd = encoder.map(torch.randn(1, 3, 70, 45))
    assert odd.shape[2:] == encoder.grid(70, 45)


@pytest.mark.parametrize("name", ["vit_micro", "vit_small_patch16_dinov3", "vit_little_patch16_reg4_gap_256",
                                  "test_convnext", "test_resnet"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_and_gradients(name, channels):
    make = Encoder if name in CNNS else small
    encoder = make(name, image_size=(32, 32), channels=channels)
    encoder.train()(torch.randn(2, channels, 32, 32)).square().sum().backward()
    without = [key for key, value in encoder.model.named_parameters() if value.grad is None]
    assert not without and encoder.channels == channels


def test_levels_are_what_the_blocks_give():
    for name, num_prefix in VITS[::6]:
        encoder = small(name)
        images = torch.randn(2, 3, 16, 24)
        seen: list[torch.Tensor] = []
        for block in encoder.model.blocks:
            block.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        last, first = encoder.levels(images, [1, 0])
        assert last.prefix.shape == (2, num_prefix, 64)
        torch.testing.assert_close(torch.cat([first.prefix, first.patches], 1), seen[0])
        torch.testing.assert_close(torch.cat([last.prefix, last.patches], 1), seen[1])
    with pytest.raises(Refused, match="block 2"):
        encoder.levels(images, [2])


def test_fixed_positions_against_a_loop():
    width, rows, columns = 16, 2, 3
    table = sincos_positions(width, rows, columns)
    assert table.shape == (6, 16) and table.dtype == torch.float32
    for row in range(rows):
        for column in range(columns):
            for k in range(4):
                omega = 10000 ** (-k / 4)
                x, y = column * omega, row * omega
                expected = (math.sin(x), math.cos(x), math.sin(y), math.cos(y))
                found = table[row * columns + column, [k, 4 + k, 8 + k, 12 + k]].tolist()
                assert found == pytest.approx(expected, abs=1e-6)
    with pytest.raises(Refused, match="nearest is 16"):
        sincos_positions(15, 2, 2)


def test_fixed_positions_have_no_gradient_and_zeros_for_the_class_token():
    encoder = small("vit_micro", positions="fixed")
    table = encoder.model.pos_embed
    assert not table.requires_grad and not table[0, 0].any()
    assert torch.equal(table[0, 1:], sincos_positions(64, 4, 6))
    same = small("vit_small_patch16_dinov3", positions="fixed")  # rotary only: nothing to fix
    assert same.model.pos_embed is None


def test_positions_of_another_grid_with_as_many_patches_are_resampled():
    encoder = small("vit_micro", image_size=(16, 36))  # 4 x 9
    assert encoder.grid(24, 24) == (6, 6)  # as many patches
    images = torch.zeros(1, 3, 24, 24)
    resampled = encoder.tokens(images).patches
    encoder.model.dynamic_img_size = False
    encoder.model.patch_embed.flatten, encoder.model.patch_embed.strict_img_size = True, False
    assert not torch.allclose(resampled, encoder.tokens(images).patches)  # positions taken over row by row


def test_xavier():
    torch.manual_seed(0)
    encoder = Encoder("vit_micro", image_size=(32, 32), init="xavier")
    qkv, patch = encoder.model.blocks[0].attn.qkv, encoder.model.patch_embed.proj
    for weight, fans in ((qkv.weight, 128 + 384), (patch.weight, 128 + 48)):
        bound = math.sqrt(6 / fans)
        assert bound * 0.95 < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not qkv.bias.any() and not patch.bias.any()
    assert encoder.model.cls_token.std().item() == pytest.approx(0.02, rel=0.3)


def test_a_copy_is_another_encoder():
    encoder = small("vit_micro", drop_path=0.3)
    twin = copy.deepcopy(encoder)
    images = torch.randn(1, 3, 16, 24)
    assert torch.equal(twin.pooled(images), encoder.pooled(images))
    with torch.no_grad():
        encoder.model.norm.bias.add_(1.0)
    assert not torch.allclose(twin.pooled(images), encoder.pooled(images))
    keep = torch.tensor([[3, 1]])
    assert twin.tokens(images, keep=keep).patches.shape == (1, 2, 64)
    assert encoder.model.patch_drop is not twin.model.patch_drop
    teacher = Teacher({"encoder": encoder}, start=0.9).train()["encoder"]  # no drop path: twice the same
    assert torch.equal(teacher.pooled(images), teacher.pooled(images))
    assert copy.deepcopy(Encoder("test_resnet", image_size=(32, 32))).grid(65, 32) == (3, 1)
    encoder.train()
    many = images.expand(8, -1, -1, -1)
    assert not torch.equal(encoder.pooled(many), encoder.pooled(many))


def test_checkpointing_changes_no_gradient():
    images, keep = torch.randn(2, 3, 16, 24), torch.tensor([[0, 5, 23], [7, 2, 11]])
    gradients = []
    for on in (False, True):
        encoder = small("vit_micro")
        encoder.checkpointing(on)
        encoder.tokens(images, keep=keep).patches.square().sum().backward()
        gradients.append(encoder.model.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("side", "stride"), [(32, 4), (64, 8), (224, 16)])
def test_presets_follow_the_image_size(name, side, stride):
    encoder = Encoder(name, image_size=(side, side))
    assert encoder.stride == stride * (2 if name == "convnext_mini" else 1)
    assert encoder.grid(side, side) == (side // encoder.stride,) * 2
    assert resolve(name, (side, side))[0] == encoder.timm_name


@pytest.mark.parametrize(("name", "settings", "message"), [
    ("vit_minni", {}, "did you mean 'vit_mini'"),
    ("resnet19", {}, "did you mean 'resnet1"),
    ("beit_base_patch16_224", {}, "Beit"),
    ("vit_relpos_small_patch16_224", {}, "VisionTransformerRelPos"),
    ("swin_tiny_patch4_window7_224", {}, "SwinTransformer"),
    ("naflexvit_base_patch16_gap", {}, "NaFlexVit"),
    ("vit_tiny_r_s16_p8_224", {}, "HybridEmbed"),
    ("mobilenetv3_small_100", {}, "layers after its pooling"),
    ("deit_tiny_distilled_patch16_224", {"pool": "mean"}, "choose deit_tiny_patch16_224"),
    ("resnet10t", {"patch_size": 4}, "settings of ViTs"),
    ("vit_micro", {"image_size": (30, 64)}, "nearest size that works is 32 x 64"),
    ("vit_micro", {"width": 100}, "a width of 128"),
    ("vit_micro", {"width": 100, "heads": 3}, "nearest width is 99"),
    ("test_vit", {"heads": 7}, "can't be built"),
])
def test_refused(name, settings, message):
    with pytest.raises(Refused, match=message):
        Encoder(name, **({"image_size": (32, 32)} | settings))


def test_size_refused_when_it_comes():
    with pytest.raises(Refused, match="nearest size that works is 16 x 20"):
        small("vit_micro").pooled(torch.randn(1, 3, 16, 19))
    with pytest.raises(Refused, match="has no tokens"):
        Encoder("test_resnet", image_size=(32, 32)).tokens(torch.randn(1, 3, 32, 32))


def gather(patches, index):
    return patches.gather(1, index[:, :, None].expand(-1, -1, patches.shape[-1]))


def test_micro_batches_are_refused_where_the_encoder_normalises_over_the_batch():
    with pytest.raises(Refused, match="resnet18 has batch normalisation"):
        Encoder("resnet18", image_size=(32, 32)).in_parts(2)
    Encoder("convnext_mini", image_size=(32, 32)).in_parts(2)
