"""MAE's loss and layout against loops written from the paper's description, and values worked out by hand."""

import pytest
import torch
from conftest import noise_batch, step_for, tiny_method

from daybreak.nn.masking import patchify, random_mask, unpatchify


def loop_patchify(images, p):
    """(B, C, H, W) to (B, N, p p C): rows of patches, then columns; inside a patch row, column, channel."""
    out = []
    for image in images.tolist():
        patches = []
        for top in range(0, len(image[0]), p):
            for left in range(0, len(image[0][0]), p):
                patches.append([image[c][top + y][left + x] for y in range(p) for x in range(p) for c in range(len(image))])
        out.append(patches)
    return torch.tensor(out)


def test_patchify_is_channel_last_and_row_major():
    images = torch.arange(2 * 3 * 8 * 12).reshape(2, 3, 8, 12).float()
    assert torch.equal(patchify(images, 4), loop_patchify(images, 4))
    assert torch.equal(unpatchify(patchify(images, 4), 4, (2, 3)), images)


def loop_loss(prediction, images, hidden, p, norm_pix):
    total, count = 0.0, 0
    for b, patches in enumerate(loop_patchify(images, p).tolist()):
        for n, patch in enumerate(patches):
            if not hidden[b][n]:
                continue
            size = len(patch)
            if norm_pix:
                mean = sum(patch) / size
                var = sum((v - mean) ** 2 for v in patch) / (size - 1)
                patch = [(v - mean) / (var + 1e-6) ** 0.5 for v in patch]
            total += sum((float(prediction[b, n, j]) - patch[j]) ** 2 for j in range(size)) / size
            count += 1
    return total / count


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_equals_the_loop(norm_pix):
    method = tiny_method("mae", norm_pix=norm_pix)
    batch = noise_batch(method, 3)
    step = step_for(batch)
    prediction, _, hidden = method.reconstruct(batch.images[0], step)
    expected = loop_loss(prediction.detach(), batch.images[0], hidden.tolist(), 4, norm_pix)
    assert float(method(batch, step).value) == pytest.approx(expected, rel=1e-5)


def test_three_quarters_are_hidden_and_the_encoder_never_sees_them():
    method = tiny_method("mae")
    batch = noise_batch(method, 3)
    noise = step_for(batch).random("mask", (3, 16))
    keep, hidden = random_mask(noise, 0.75)
    assert keep.shape == (3, 4) and hidden.sum().item() == 36
    assert not hidden.gather(1, keep).any()
    changed = batch.images[0].clone()
    changed[unpatchify(hidden[:, :, None].expand(-1, -1, 48).float(), 4, (4, 4)) > 0] = 9.0
    before, after = (method.reconstruct(x, step_for(batch))[0] for x in (batch.images[0], changed))
    assert torch.equal(before, after)


def test_painting_the_mean_gives_the_declared_degenerate_value():
    method = tiny_method("mae")
    (value,) = [v for v in method.degenerate().values() if v]
    torch.nn.init.zeros_(method.paint.weight)
    batch = noise_batch(method)
    assert float(method(batch, step_for(batch)).value) == pytest.approx(value, rel=1e-4)


def test_decoder_puts_every_visible_token_in_its_place():
    """With blocks and normalisation out of the way, a visible patch's output depends on its own token alone."""
    method = tiny_method("mae")
    method.blocks, method.norm = torch.nn.Identity(), torch.nn.Identity()
    keep = torch.tensor([[5, 2, 11, 0]])
    tokens = method.encoder.tokens(torch.randn(1, 3, 16, 16), keep=keep)
    base = method.decode(tokens, keep, (4, 4))
    moved = tokens._replace(patches=tokens.patches + torch.tensor([0.0, 1, 0, 0])[None, :, None])
    changed = (method.decode(moved, keep, (4, 4)) - base).abs().sum(-1)[0] > 0
    assert changed.nonzero().flatten().tolist() == [2]
