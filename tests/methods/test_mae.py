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


def loop_loss(prediction, images, wanted, p, norm_pix):
    total, count = 0.0, 0
    for b, patches in enumerate(loop_patchify(images, p).tolist()):
        for m, n in enumerate(wanted[b]):
            patch = patches[n]
            size = len(patch)
            if norm_pix:
                mean = sum(patch) / size
                var = sum((v - mean) ** 2 for v in patch) / (size - 1)
                patch = [(v - mean) / (var + 1e-6) ** 0.5 for v in patch]
            total += sum((float(prediction[b, m, j]) - patch[j]) ** 2 for j in range(size)) / size
            count += 1
    return total / count


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_equals_the_loop(norm_pix, share):
    method = tiny_method("mae", norm_pix=norm_pix, decode_share=share)
    batch = noise_batch(method, 3)
    step = step_for(batch)
    prediction, _, wanted = method.reconstruct(batch.images[0], step, share)
    assert wanted.shape == (3, 12 * share)
    expected = loop_loss(prediction.detach(), batch.images[0], wanted.tolist(), 4, norm_pix)
    assert float(method(batch, step).value) == pytest.approx(expected, rel=1e-5)


def test_three_quarters_are_hidden_and_the_encoder_never_sees_them():
    method = tiny_method("mae")
    batch = noise_batch(method, 3)
    noise = step_for(batch).random("mask", (3, 16))
    keep, gone, hidden = random_mask(noise, 0.75)
    assert keep.shape == (3, 4) and hidden.sum().item() == 36
    assert not hidden.gather(1, keep).any() and hidden.gather(1, gone).all()
    changed = batch.images[0].clone()
    changed[unpatchify(hidden[:, :, None].expand(-1, -1, 48).float(), 4, (4, 4)) > 0] = 9.0
    before, after = (method.reconstruct(x, step_for(batch))[0] for x in (batch.images[0], changed))
    assert torch.equal(before, after)


def test_painting_the_mean_gives_the_declared_degenerate_value():
    method = tiny_method("mae")
    (value,) = [v for v in method.degenerate().values() if v]
    torch.nn.init.zeros_(method.decoder.predict.weight)
    batch = noise_batch(method)
    assert float(method(batch, step_for(batch)).value) == pytest.approx(value, rel=1e-4)


def test_decoder_equals_the_paper_s_full_sequence_in_the_order_of_the_grid():
    """There all places are decoded, visible ones too, and the loss then takes the hidden ones: the same numbers."""
    method = tiny_method("mae")
    decoder = method.decoder
    keep, wanted = torch.tensor([[5, 2, 11, 0]]), torch.tensor([[n for n in range(15, -1, -1) if n not in (5, 2, 11, 0)]])
    tokens = method.encoder.tokens(torch.randn(1, 3, 16, 16), keep=keep)
    sequence = [decoder.embed(t) for t in tokens.prefix[0]]
    for n in range(16):
        content = decoder.embed(tokens.patches[0, keep[0].tolist().index(n)]) if n in keep[0] else decoder.mask_token[0, 0]
        sequence.append(content + decoder.positions[n])
    whole = decoder.predict(decoder.norm(decoder.blocks(torch.stack(sequence)[None])))[0, tokens.prefix.shape[1] :]
    assert torch.allclose(decoder(tokens, keep, wanted, (4, 4))[0], whole[wanted[0]], atol=1e-5)


def test_a_step_may_name_another_mask_ratio():
    method = tiny_method("mae")
    batch = noise_batch(method, 3)
    step = step_for(batch)
    step.mask_ratio = 0.5
    assert method.reconstruct(batch.images[0], step)[2].shape == (3, 8)
