"""DeVAE's loss against a loop written from the paper's description, its spaces, decoder, picture and code."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from conftest import noise_batch, step_for, tiny_method

import daybreak
from daybreak.data.images import open_images
from daybreak.data.loader import evaluation_batches
from daybreak.errors import Refused
from daybreak.evaluate import disentangle
from daybreak.export.backbone import load, write_backbone
from daybreak.export.formats import export
from daybreak.methods.devae import Decoder, pixel_error
from daybreak.nn.encoder import Encoder


def loop_loss(method, batch, step):
    """Element by element, in Python's own numbers; returns the loss, each R and each KL."""
    mean, logvar = (x.tolist() for x in method.latent(method.encoder.pooled(batch.images[0])))
    config, size, count = method.config, method.config.latents, len(batch.index)
    total, errors, divergences = 0.0, [], []
    for k, beta in enumerate(config.betas):
        if k:
            a, b = method.stretch[k - 1].tolist(), method.widen[k - 1].tolist()
            mean = [[m * math.exp(a[i]) for i, m in enumerate(row)] for row in mean]
            logvar = [[v + b[i] for i, v in enumerate(row)] for row in logvar]
        noise = step.random.normal("code", (count, size), view=k).tolist()
        error = kl = 0.0
        for n in range(count):
            z = [m + math.exp(v / 2) * e for m, v, e in zip(mean[n], logvar[n], noise[n], strict=True)]
            logits = method.decoder(torch.tensor([z + method.space.weight[k].tolist()]))[0].flatten().tolist()
            for logit, target in zip(logits, batch.images[1][n].flatten().tolist(), strict=True):
                p = 1 / (1 + math.exp(-logit))
                error += (-target * math.log(p) - (1 - target) * math.log(1 - p) if method.kind == "bernoulli"
                          else (p - target) ** 2)
            kl += sum(0.5 * (m * m + math.exp(v) - v - 1) for m, v in zip(mean[n], logvar[n], strict=True))
        errors, divergences = [*errors, error / count], [*divergences, kl / count]
        total += config.scale**k * (errors[-1] + beta * divergences[-1])
    return total, errors, divergences


@pytest.mark.parametrize("kind", ["bernoulli", "squared"])
def test_loss_equals_the_loop(kind):
    method = tiny_method("devae", betas=(1.0, 10.0, 40.0), latents=3, scale=0.5, reconstruction=kind)
    with torch.no_grad():
        for parameter in (*method.stretch, *method.widen):
            parameter.normal_(std=0.3)
    batch = noise_batch(method, 3)
    batch = replace(batch, images=[batch.images[0], batch.images[1].sigmoid()])
    loss = method(batch, step_for(batch))
    total, errors, divergences = loop_loss(method, batch, step_for(batch))
    assert loss.value.item() == pytest.approx(total, rel=1e-5)
    for k in range(3):
        assert float(loss.numbers[f"R_{k}"]) == pytest.approx(errors[k], rel=1e-5)
        assert float(loss.numbers[f"KL_{k}"]) == pytest.approx(divergences[k], rel=1e-5)
    assert float(loss.numbers["pixel_error"]) == pytest.approx(errors[0] / (3 * 16 * 16), rel=1e-5)


def test_all_spaces_begin_as_one_and_the_tight_one_reaches_the_encoder():
    method = tiny_method("devae")
    batch = noise_batch(method)
    numbers = method(batch, step_for(batch)).numbers
    assert torch.equal(numbers["KL_0"], numbers["KL_1"]) and not torch.equal(numbers["R_0"], numbers["R_1"])

    def gradient(betas):
        made = tiny_method("devae", betas=betas)
        made(batch, step_for(batch)).value.backward()
        return made.encoder.model.patch_embed.proj.weight.grad

    assert not torch.allclose(gradient((1.0, 40.0)), gradient((1.0, 400.0)))  # nothing is detached on the way


def test_a_dimension_of_one_space_is_that_of_the_next():
    """Hiding one dimension of space 0 from the decoder of space 1 is hiding the same one there."""
    method = tiny_method("devae", latents=4)
    method.latent.linear.weight.data[2] = method.latent.linear.bias.data[2] = 0  # the mean of dimension 2
    with torch.no_grad():
        method.stretch[0].normal_()
        mean, _ = method.latent(method.encoder.pooled(noise_batch(method).images[0]))
        moved = mean * method.stretch[0].exp()
    assert not moved[:, 2].any() and (moved.sign() == mean.sign()).all()


def test_reconstruction_follows_the_channels():
    assert tiny_method("devae", channels=1).kind == "bernoulli" and tiny_method("devae", channels=3).kind == "squared"
    assert tiny_method("devae", channels=3, reconstruction="bernoulli").kind == "bernoulli"


def test_what_is_declared_degenerate_is():
    method = tiny_method("devae", channels=1)
    torch.nn.init.zeros_(method.latent.linear.weight)
    torch.nn.init.zeros_(method.latent.linear.bias)
    last = method.decoder.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    batch = noise_batch(method)
    numbers = method(batch, step_for(batch)).numbers
    for reading, value in method.degenerate().items():
        assert float(numbers[reading.partition(":")[0]]) == pytest.approx(value, rel=1e-6)
    healthy = tiny_method("devae", channels=1)
    healthy.latent.linear.weight.data *= 10
    assert float(healthy(batch, step_for(batch)).numbers["unused"]) < 0.9


def test_the_paper_s_network_at_64_pixels():
    encoder = Encoder("conv_vae", image_size=(64, 64), channels=1)
    shapes = [tuple(p.shape) for p in encoder.parameters() if p.ndim == 4]
    assert shapes == [(32, 1, 4, 4), (32, 32, 4, 4), (64, 32, 4, 4), (64, 64, 4, 4), (256, 64, 4, 4)]
    assert encoder.map(torch.zeros(2, 1, 64, 64)).shape == (2, 256, 1, 1)
    decoder = Decoder(20, 1, (64, 64))
    shapes = [tuple(p.shape) for p in decoder.parameters() if p.ndim > 1]
    assert shapes == [(256, 20), (256, 64, 4, 4), (64, 64, 4, 4), (64, 32, 4, 4), (32, 32, 4, 4), (32, 1, 4, 4)]
    assert decoder(torch.zeros(2, 20)).shape == (2, 1, 64, 64)


def test_bad_settings_and_sizes_are_refused():
    for betas in ((), (40.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(Refused, match="rising weights"):
            tiny_method("devae", betas=betas)
    with pytest.raises(Refused, match="devae paints 16 x 16 pixels and was given 12 x 12"):
        pixel_error(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 12, 12), "squared")


def test_rows_of_the_picture_move_one_dimension_each():
    method = tiny_method("devae", latents=4)
    batch = noise_batch(method)
    with torch.no_grad():
        picture = method.picture(batch, step_for(batch))
        assert not picture.normalised and picture.columns[2:] == ["-2", "-1", "+0", "+1", "+2"]
        mean, logvar = method.latent(method.encoder.pooled(batch.images[0]))
        kl = (0.5 * (mean**2 + logvar.exp() - logvar - 1)).mean(0)
        best = int(kl.argmax())
        code = mean[:1].clone()
        code[0, best] = -2.0
        torch.testing.assert_close(picture.rows[0][2], method.paint(code, 0).sigmoid()[0])
        torch.testing.assert_close(picture.rows[4][1], method.paint(mean[4:5], 0).sigmoid()[0])


def test_the_code_is_kept_beside_the_backbone(tmp_path):
    method = tiny_method("devae")
    images = noise_batch(method).images[0]
    write_backbone(method.encoder, tmp_path / "b", mean=[0.5] * 3, std=[0.2] * 3, info={}, latent=method.latent)
    backbone = load(tmp_path / "b")
    assert torch.equal(backbone.code(images), method.eval().latent(method.encoder.pooled(images))[0])
    export(tmp_path / "b", "timm", tmp_path / "again")
    assert torch.equal(load(tmp_path / "again").code(images), backbone.code(images))
    write_backbone(method.encoder, tmp_path / "none", mean=[0.5] * 3, std=[0.2] * 3, info={"method": "mae"})
    with pytest.raises(Refused, match="no latent code; those of --method devae have"):
        load(tmp_path / "none").code(images)


def test_timm_that_has_met_the_convolutional_encoder_opens_it(tmp_path):
    encoder = Encoder("conv_vae", image_size=(64, 64), channels=1).eval()
    write_backbone(encoder, tmp_path / "b", mean=[0.1], std=[0.2], info={})
    assert "import daybreak.nn.encoder\nimport timm" in (tmp_path / "b" / "README.md").read_text()
    images = torch.randn(2, 1, 64, 64)
    model = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True).eval()
    assert torch.equal(model(images), load(tmp_path / "b").pooled(images))
    assert timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True, num_classes=7)(images).shape == (2, 7)


@pytest.mark.long
def test_from_drawn_sprites_to_numbers_and_traversals(tmp_path, monkeypatch):
    run = daybreak.pretrain("dsprites:64", method="devae", encoder="conv_vae", image_size=16, images=64, batch_size=32,
                            out=tmp_path / "run", threads=1, overrides=["watch.probes=0", "watch.log_steps=1"])
    assert "the most informative first" in run.report.read_text() and run.load().latent.size == 10
    numbers = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {"R_0", "KL_0", "R_1", "KL_1", "unused"} <= next(n for n in numbers if n["kind"] == "train").keys()
    seen = []
    monkeypatch.setattr(disentangle, "disentangle_v1", lambda *given, seed: seen.append(given) or {"MIG": seed / 10})
    results = daybreak.evaluate(run.folder, train="dsprites:60:1", test="dsprites:40:2", protocols=["disentangle-v1"], seed=3)
    assert [(r.protocol, r.metric, r.backbone, r.value, r.num_train, r.num_test, r.width, r.num_classes) for r in results] == [
        ("disentangle", "MIG", name, 0.3, 60, 40, 10, 5) for name in ("trained", "random")]
    images = open_images("dsprites:40:2")
    backbone = run.load()
    (pixels,) = (batch for _, batch in evaluation_batches(images, 16, 16, 64))
    code = backbone.code((pixels / 255 - backbone.mean[0]) / backbone.std[0])
    torch.testing.assert_close(torch.tensor(seen[0][2]).float(), code.detach(), atol=1e-5, rtol=1e-5)
    assert (seen[0][3][:, 3] == images.source.labels["x"].values).all() and not np.allclose(seen[0][2], seen[1][2])
