"""LT-ViT's blocks and loss against loops written from the card and a masked sequence; images untouched; a run on two labels."""

import json
import math

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import noise_batch, step_for, tiny_method
from rich.console import Console

import daybreak
from daybreak.data.images import open_images
from daybreak.errors import Refused
from daybreak.explain.maps import explain_images
from daybreak.nn.encoder import Encoder
from daybreak.nn.label_tokens import LabelTokens, attend, entering
from daybreak.nn.losses import known_bce

QUIET = Console(quiet=True)


def encoder_of(depth: int = 3) -> Encoder:
    torch.manual_seed(0)
    made = Encoder("vit_micro", image_size=(16, 24), patch_size=4, width=64, depth=depth, heads=2).eval()
    with torch.no_grad():
        for key, value in made.model.named_parameters():
            if "qkv" in key:  # at its start attention is nearly even, and biases are 0
                value.copy_(0.3 * torch.randn_like(value))
    return made


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def test_loss_equals_the_loop():
    logits = torch.tensor([[0.3, -2.0, 40.0], [1.5, 0.0, -40.0]])
    labels = torch.tensor([[1.0, math.nan, 1.0], [0.0, 1.0, math.nan]])
    total, count = 0.0, 0
    for row, truth in zip(logits.tolist(), labels.tolist(), strict=True):
        for z, y in zip(row, truth, strict=True):
            if not math.isnan(y):
                p = 1 / (1 + math.exp(-z))
                total, count = total - math.log(p if y else 1 - p), count + 1
    assert count == 4 and float(known_bce(logits, labels)) == pytest.approx(total / count, rel=1e-6)
    logits.requires_grad_()
    for given in (labels, torch.full((2, 3), math.nan)):
        (gradient,) = torch.autograd.grad(known_bce(logits, given), logits)
        assert gradient.isfinite().all() and (gradient[given.isnan()] == 0).all()
    (value,) = [v for reading, v in tiny_method("lt_vit").degenerate().items() if reading.startswith("ln 2")]
    assert float(known_bce(torch.zeros(2, 3), labels)) == pytest.approx(value)


def test_attention_of_labels_equals_the_loop():
    """Q = LN(T); K, V = LN([X; T]): one query, one head and one key at a time."""
    encoder = encoder_of()
    block, image, labels = encoder.model.blocks[0], torch.randn(2, 7, 64), torch.randn(2, 3, 64)
    with torch.no_grad():
        found, weights = attend(block, image, labels)
        seen = block.norm1(torch.cat([image, labels], 1))
        query, key, value = (block.attn.qkv(seen).double().split(64, 2))
        for b in range(2):
            for c in range(3):
                read = torch.zeros(64, dtype=torch.float64)
                for head in (slice(0, 32), slice(32, 64)):
                    scores = [float(query[b, 7 + c, head] @ key[b, j, head]) / math.sqrt(32) for j in range(10)]
                    powers = [math.exp(score - max(scores)) for score in scores]
                    shares = [power / sum(powers) for power in powers]
                    read[head] = sum(share * value[b, j, head] for j, share in enumerate(shares))
                    torch.testing.assert_close(weights[b, head.start // 32, c], torch.tensor(shares), atol=1e-5, rtol=1e-3)
                torch.testing.assert_close(found[b, c], block.attn.proj(read.float()), atol=1e-4, rtol=1e-3)
    assert weights.std() > 0.05 and torch.allclose(weights.sum(-1), torch.ones(2, 2, 3), atol=1e-5)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_it_equals_label_tokens_in_the_sequence_under_a_mask(first):
    """Rows of the image see the image alone, rows of labels all; that is how the card has it."""
    encoder = encoder_of()
    tokens, model = LabelTokens(encoder, 4, first), encoder.model
    count = 1 + 24
    mask = torch.ones(count + 4, count + 4, dtype=torch.bool)
    mask[:count, count:] = False
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(images())))
        for number, block in enumerate(model.blocks, 1):
            if number == first:
                x = torch.cat([x, tokens.tokens.expand(2, -1, -1)], 1)
            x = block(x) if number < first else block(x, attn_mask=mask)
        x = model.norm(x)
        found, rows = tokens.read(encoder, images())
        assert len(rows) == 4 - first
        torch.testing.assert_close(found, x[:, count:], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(torch.cat(encoder.tokens(images()), 1), x[:, :count], atol=1e-5, rtol=1e-4)
        expected = [[float(x[b, count + c] @ tokens.weight[c] + tokens.bias[c]) for c in range(4)] for b in range(2)]
        torch.testing.assert_close(tokens(encoder, images()), torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_image_tokens_are_bit_for_bit_those_without_labels():
    method = tiny_method("lt_vit", first_block=1).eval()
    batch = noise_batch(method)
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _, given, out: seen.append(out)) for block in method.encoder.model.blocks]
    with torch.no_grad():
        method.encoder.tokens(batch.images[0])
        without = list(seen)
        for scale in (1.0, 100.0):  # whatever the label tokens are
            seen.clear()
            method.label_tokens.tokens.mul_(scale)
            method(batch, step_for(batch))
            assert len(seen) == len(without) - 1  # what the last block gives of the image, no label reads
            assert all(torch.equal(with_labels, alone) for with_labels, alone in zip(seen, without, strict=False))
        read = entering(method.encoder, batch.images[0], 1)
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(one, other) for one, other in zip(read[1:], without, strict=False))


def test_labels_that_change_places_change_nothing_else():
    encoder, order = encoder_of(), torch.tensor([2, 0, 3, 1])
    tokens, other = LabelTokens(encoder, 4), LabelTokens(encoder, 4)
    with torch.no_grad():
        tokens.bias.copy_(torch.arange(4.0))
        for name in ("tokens", "weight", "bias"):
            getattr(other, name).copy_(getattr(tokens, name)[order])
        torch.testing.assert_close(other(encoder, images()), tokens(encoder, images())[:, order], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(other.maps(encoder, images()), tokens.maps(encoder, images())[:, :, order], atol=1e-5, rtol=1e-4)


def test_maps_are_shares_of_the_patches_and_zero_tokens_give_the_biases():
    encoder = encoder_of()
    tokens = LabelTokens(encoder, 5, first=2)
    with torch.no_grad():
        tokens.bias.copy_(torch.arange(5.0))
        maps = tokens.maps(encoder, images())
        _, rows = tokens.read(encoder, images())
        assert maps.shape == (2, 2, 5, 4, 6) and torch.allclose(maps.sum((3, 4)), torch.ones(2, 2, 5), atol=1e-5)
        patch = [float(rows[1][0, :, 3, 1 + j].mean()) for j in range(24)]  # of label 3, behind the class token
        torch.testing.assert_close(maps[0, 1, 3].flatten(), torch.tensor(patch) / sum(patch), atol=1e-6, rtol=1e-4)
        encoder.model.norm.weight.zero_()
        encoder.model.norm.bias.zero_()
        assert torch.equal(tokens(encoder, images()), torch.arange(5.0).expand(2, 5))


def test_a_class_an_image_is_a_label_a_class():
    method = tiny_method("lt_vit")
    batch = noise_batch(method, 3)
    batch.labels = torch.tensor([2, -1, 0])
    expected = torch.tensor([[0, 0, 1, 0], [math.nan] * 4, [1, 0, 0, 0]])
    assert torch.equal(method.several(batch).nan_to_num(-1), expected.nan_to_num(-1))


def test_what_can_not_be_is_refused():
    with pytest.raises(Refused, match="how many there are"):
        tiny_method("lt_vit", classes=None)
    with pytest.raises(Refused, match="read from block 3 on, and vit_micro has blocks 1 to 2"):
        tiny_method("lt_vit", first_block=3)
    older = encoder_of(1)
    del older.model.blocks[0].attn.gate  # as in older versions of timm
    LabelTokens(older, 2)
    rotary = Encoder("vit_small_patch16_dinov3", image_size=(32, 32), width=64, heads=2, depth=1)
    with pytest.raises(Refused, match="blocks of a plain ViT, and vit_small_patch16_dinov3 has others"):
        LabelTokens(rotary, 2)


def test_images_without_labels_are_refused(halves, tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for path in sorted(halves.parent.glob("*.png"))[:40]:
        (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(Refused, match="no labels, and 'lt_vit' learns from a label for each image"):
        daybreak.pretrain(folder, method="lt_vit", images=64, batch_size=8, out=tmp_path / "run", console=QUIET)
    with pytest.raises(Refused, match="labels are of the kind 'multi', and 'hydra' learns from 'class'"):
        daybreak.pretrain(halves, method="hydra", images=64, batch_size=8, out=tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A list of 600 images that may hold a bright square in their left half and a dark one in their right, a label for each."""
    folder, random = tmp_path_factory.mktemp("halves"), np.random.default_rng(0)
    truth = random.integers(0, 2, (600, 2))
    for i, row in enumerate(truth):
        image = random.normal(128, 10, (16, 16))
        for half in np.flatnonzero(row):
            y, x = random.integers(0, 12), 8 * half + random.integers(0, 5)
            image[y : y + 4, x : x + 4] += 100 if half == 0 else -100
        cv2.imwrite(str(folder / f"{i:03d}.png"), image.clip(0, 255).astype(np.uint8))
    known = [[None if j == 1 and i % 5 == 0 else int(v) for i, v in enumerate(column)] for j, column in enumerate(truth.T)]
    table = pa.table({"path": [f"{i:03d}.png" for i in range(600)], "left": known[0], "right": known[1]})
    pq.write_table(table, folder / "list.parquet")
    return folder / "list.parquet"


@pytest.mark.long
def test_two_labels_are_told_apart_and_their_maps_lie_where_they_are(halves, tmp_path):
    run = daybreak.pretrain(halves, method="lt_vit", images=4800, batch_size=64, out=tmp_path / "run", console=QUIET, overrides=[
        "encoder.width=64", "encoder.depth=3", "training.learning_rate=2e-3", "training.learning_rate_rule=fixed",
        "training.precision=32-true", "watch.probes=0", "method.flip=0.0", "method.scale=[0.9, 1.0]"])
    found = {(r.protocol, r.metric, r.backbone): r.value for r in run.results}
    assert found["label-tokens", "mean AUC", "trained"] > 0.95
    assert found["multilabel", "mean AUC", "trained"] > 0.95
    assert {"AUC (left)", "AUC (right)"} <= {metric for protocol, metric, _ in found if protocol == "label-tokens"}
    report = (run.folder / "report.html").read_text()
    assert "Label tokens" in report and "label 2" in report and "Classifiers of labels" in report

    backbone = run.load()
    assert backbone.label_names == ("left", "right")
    rows = pq.read_table(halves).to_pylist()
    both = [row for row in rows if row["left"] and row["right"]][:40]
    x = torch.stack([backbone.transform(halves.parent / row["path"]) for row in both])
    with torch.no_grad():
        assert backbone.scores(x).shape == (40, 2) and backbone.scores(x).mean() > 0.8
        maps = backbone.label_maps(x)  # (40, 2, 4, 4)
    on_the_left = maps[..., :2].sum((2, 3)).mean(0)
    assert on_the_left[0] > 0.6 and on_the_left[1] < 0.4

    shown = open_images(halves).subset(np.flatnonzero([bool(row["left"] or row["right"]) for row in rows])[:24])
    scores = explain_images(backbone.encoder, shown, size=(16, 16), mean=backbone.mean, std=backbone.std,
                            label_tokens=backbone.label_tokens, label_names=backbone.label_names).label_scores
    ours, chance, _ = scores  # the square emptied first, the label falls
    gain, errors = chance.deletion[0] - ours.deletion[0], (chance.deletion[1], ours.deletion[1])
    assert chance.name == "Random map" and gain > 3 * math.hypot(*errors)

    page = daybreak.explain(run.folder, halves, out=tmp_path / "page", count=3, console=QUIET).read_text()
    assert page.count("Where the token of each label looks") == 3 and "left: 0." in page and "right: 0." in page
    assert "Map of the likeliest label" in page and page.count("Random map") == 2
    daybreak.evaluate(run.folder, train=halves, test=halves, console=QUIET)
    kept = json.loads((run.folder / "evaluations.json").read_text())
    assert {r["protocol"] for r in kept} == {"multilabel", "label-tokens"}
    daybreak.export(run.folder, to="timm", out=tmp_path / "timm", console=QUIET)
    again = daybreak.load(tmp_path / "timm")
    assert torch.equal(again.scores(x), backbone.scores(x))
