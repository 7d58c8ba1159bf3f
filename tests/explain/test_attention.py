"""Attention maps against scalar loops and against timm's own softmax; rollout by hand."""

import math

import pytest
import torch

from daybreak.errors import Refused
from daybreak.explain.attention import Catch, attention, rollout
from daybreak.nn.encoder import Encoder


def small(name: str, **settings) -> Encoder:
    torch.manual_seed(0)
    shape = dict(image_size=(16, 24), patch_size=4, width=64, heads=2, depth=2) if "vit" in name or "deit" in name else {}
    encoder = Encoder(name, **(shape | settings)).eval()
    with torch.no_grad():
        for key, value in encoder.model.named_parameters():
            if "qkv.weight" in key:  # at its start attention is nearly even
                value.mul_(20)
    return encoder


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def by_loops(encoder: Encoder, given: torch.Tensor) -> list[torch.Tensor]:
    """Attention (B, A, T, T) of each block from its weights, one query and one key at a time."""
    inputs, found = [], []
    hooks = [block.attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for block in encoder.model.blocks]
    with torch.no_grad():
        encoder.tokens(given)
        for block, x in zip(encoder.model.blocks, inputs, strict=True):
            batch, tokens, width = x.shape
            heads, size = block.attn.num_heads, width // block.attn.num_heads
            query, key, _ = (block.attn.qkv(x).double().split(width, 2))
            weights = torch.zeros(batch, heads, tokens, tokens)
            for b in range(batch):
                for a in range(heads):
                    part = slice(a * size, (a + 1) * size)
                    for i in range(tokens):
                        scores = [float(query[b, i, part] @ key[b, j, part]) / math.sqrt(size) for j in range(tokens)]
                        powers = [math.exp(score - max(scores)) for score in scores]
                        weights[b, a, i] = torch.tensor(powers) / sum(powers)
            found.append(weights)
    for hook in hooks:
        hook.remove()
    return found


def test_heads_and_rollout_of_the_class_token_equal_loops():
    encoder = small("vit_micro")
    blocks, found = by_loops(encoder, images()), attention(encoder, images())
    torch.testing.assert_close(found.heads, blocks[-1][:, :, 0, 1:].unflatten(2, (4, 6)), atol=1e-6, rtol=1e-4)
    assert found.heads.std() > 0.01  # far from even, so that the comparison means something
    first, second = ((block.mean(1) + torch.eye(25)) / 2 for block in blocks)
    torch.testing.assert_close(found.rollout, (second @ first)[:, 0, 1:].unflatten(1, (4, 6)), atol=1e-6, rtol=1e-4)


def test_a_backbone_that_averages_its_patches_is_read_by_their_rows():
    encoder = small("vit_micro", pool="mean")
    blocks, found = by_loops(encoder, images()), attention(encoder, images())
    torch.testing.assert_close(found.heads, blocks[-1][:, :, 1:, 1:].mean(2).unflatten(2, (4, 6)), atol=1e-6, rtol=1e-4)
    first, second = ((block.mean(1) + torch.eye(25)) / 2 for block in blocks)
    torch.testing.assert_close(found.rollout, (second @ first)[:, 1:, 1:].mean(1).unflatten(1, (4, 6)), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("name", "prefix"), [("vit_small_patch16_dinov3", 5), ("deit_tiny_distilled_patch16_224", 2),
                                              ("vit_medium_patch16_gap_256", 0), ("vit_little_patch16_reg4_gap_256", 4)])
def test_fused_kernels_give_the_weights_of_timms_own_softmax(name, prefix):
    """Rotary positions, registers, two class tokens, none: queries and keys are those that the kernel was given."""
    encoder = small(name)
    assert encoder.num_prefix == prefix and all(block.attn.fused_attn for block in encoder.model.blocks)
    fused = attention(encoder, images())
    assert fused.heads.shape == (2, 2, 4, 6) and fused.rollout.shape == (2, 4, 6)
    for block in encoder.model.blocks:
        block.attn.fused_attn = False  # a switch of timm's
    plain = attention(encoder, images())
    torch.testing.assert_close(fused.heads, plain.heads, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(fused.rollout, plain.rollout, atol=1e-6, rtol=1e-4)
    total = fused.heads.sum((2, 3))
    assert (total <= 1 + 1e-5).all() and (prefix > 0 or torch.allclose(total, torch.ones(2, 2)))


def test_looking_changes_nothing():
    encoder = small("vit_micro")
    with torch.no_grad():
        before = encoder.tokens(images())
        with Catch(lambda weights: weights.shape) as caught:
            during = encoder.tokens(images())
        after = encoder.tokens(images())
    assert caught.found == [(2, 2, 25, 25)] * 2
    assert all(torch.equal(b, d) and torch.equal(b, a) for b, d, a in zip(before, during, after, strict=True))


def test_rollout_by_hand():
    first = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])  # both tokens take all from the first
    second = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])  # both take all from the second
    # B_1 = [1 0; .5 .5], B_2 = [.5 .5; 0 1]; the later one stands at the left.
    torch.testing.assert_close(rollout([first, second]), torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]))
    torch.testing.assert_close(rollout([second, first]), torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]))


def test_rows_of_a_rollout_sum_to_one_and_no_attention_is_identity():
    blocks = torch.rand(6, 3, 7, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    for depth in range(1, 7):
        torch.testing.assert_close(rollout(list(blocks[:depth])).sum(-1), torch.ones(3, 7))
    torch.testing.assert_close(rollout([torch.eye(4)[None]] * 3), torch.eye(4)[None])


def test_what_has_no_attention_a_block_is_refused():
    with pytest.raises(Refused, match=r"convnext_mini is a CNN and has no attention"):
        attention(small("convnext_mini", image_size=(32, 32)), torch.zeros(1, 3, 32, 32))
    twice = small("vit_small_patch16_18x2_224")  # two attentions side by side in a block
    with pytest.raises(Refused, match="2 blocks and 4 attentions"):
        attention(twice, images())
