"""The losses of the MMC-style method against loops written from the card, and values worked out by hand."""

import math

import pytest
import torch
from conftest import noise_batch, step_for, tiny_method

from daybreak.methods.mmc import hidden_tokens, mostly_hidden


def softmax(v):
    top = max(v)
    e = [math.exp(x - top) for x in v]
    return [x / sum(e) for x in e]


def cross_entropy(teacher, student, centre, tau_t, tau_s):
    p = softmax([(x - c) / tau_t for x, c in zip(teacher, centre, strict=True)])
    q = softmax([x / tau_s for x in student])
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


def unit(v):
    norm = math.sqrt(sum(x * x for x in v))
    return [x / norm for x in v]


def loop_contrast(queries, keys, tau):
    """2 tau times the cross-entropy of each query against all keys, its own index being right, mean over the batch."""
    total = 0.0
    for i, q in enumerate(queries):
        scores = [sum(a * b for a, b in zip(unit(q), unit(k), strict=True)) / tau for k in keys]
        total += math.log(sum(math.exp(s) for s in scores)) - scores[i]
    return 2 * tau * total / len(queries)


@torch.no_grad()
def test_all_losses_and_their_sum_equal_the_loops():
    method = tiny_method("mmc", reconstruction_weight=3.0, distillation_weight=0.7, contrast_weight=0.2)
    batch = noise_batch(method, 3)
    step = step_for(batch)  # far past the warm-up: the temperature is 0.07
    centres = torch.randn(2, 32) * 0.1
    method.class_centre.value.copy_(centres[0]), method.patch_centre.value.copy_(centres[1])
    found = method(batch, step)

    clean = torch.cat(batch.images)
    corrupted, hidden = method.corrupted(batch, step)
    seen, known = method.encoder.tokens(corrupted), method.teacher["encoder"].tokens(clean)
    s, t = seen.prefix[:, 0], known.prefix[:, 0]
    classes = [x.tolist() for x in (method.head(s), method.teacher["head"](t))]
    across = [cross_entropy(classes[1][3 * i + b], classes[0][3 * j + b], centres[0].tolist(), 0.07, 0.1)
              for i, j in ((0, 1), (1, 0)) for b in range(3)]
    patches = [x.tolist() for x in (method.head(seen.patches), method.teacher["head"](known.patches))]
    gone = hidden[:, 0, ::4, ::4].flatten(1).tolist()  # blocks are whole patches by default, so one pixel of each tells
    local = 0.0
    for view in range(2):
        terms = [cross_entropy(patches[1][b][n], patches[0][b][n], centres[1].tolist(), 0.07, 0.1)
                 for b in range(3 * view, 3 * view + 3) for n in range(16) if gone[b][n]]
        local += sum(terms) / len(terms) / 2
    off = (method.repaint(seen.patches, (4, 4)) - clean)[hidden.expand_as(clean)].abs().tolist()
    queries, keys = method.contrast(s).tolist(), method.teacher["contrast"](t).tolist()
    wanted = {"reconstruction": sum(off) / len(off), "local": local, "global": sum(across) / len(across),
              "contrast": loop_contrast(queries[:3], keys[3:], 0.2) + loop_contrast(queries[3:], keys[:3], 0.2)}
    for name, value in wanted.items():
        assert float(found.numbers[name]) == pytest.approx(value, rel=1e-4), name
    total = 3 * wanted["reconstruction"] + 0.7 * 0.5 * (wanted["local"] + wanted["global"]) + 0.2 * wanted["contrast"]
    assert float(found.value) == pytest.approx(total, rel=1e-4)


def test_blocks_are_whole_tokens_by_default_and_a_token_is_hidden_if_most_of_it_is():
    method = tiny_method("mmc")
    hidden = method.corrupted(batch := noise_batch(method, 8), step_for(batch)).hidden
    assert set(torch.nn.functional.avg_pool2d(hidden.float(), 4).unique().tolist()) == {0.0, 1.0}
    one = torch.zeros(1, 1, 4, 8, dtype=torch.bool)
    one[..., :2, :] = True  # half of each patch: not most of it
    assert mostly_hidden(one, 4).tolist() == [[False, False]]
    one[..., 2, 0] = True
    assert mostly_hidden(one, 4).tolist() == [[True, False]]


def test_hidden_tokens_by_hand():
    """Uniform labels over 2: a student of logits 0, 0 costs ln 2; of logits x, 0 it costs ln(1 + e^x) - x / 2. The first view
    has one hidden token, the second two: each view is a mean of its own."""
    student = torch.zeros(2, 2, 2)
    student[0, 0, 0], student[1, 0, 0] = 1.0, 3.0
    labels = torch.full((2, 2, 2), 0.5)
    mask = torch.tensor([[True, False], [True, True]])
    first = math.log(1 + math.e) - 0.5
    second = (math.log(1 + math.exp(3)) - 1.5 + math.log(2)) / 2
    assert float(hidden_tokens(student, labels, mask)) == pytest.approx((first + second) / 2, rel=1e-6)


@torch.no_grad()
def test_pseudo_labels_start_near_ln_k_and_one_set_of_prototypes_serves_both_kinds():
    method = tiny_method("mmc", prototypes=512, bottleneck=256)
    batch = noise_batch(method, 4)
    numbers = method(batch, step_for(batch)).numbers
    assert float(numbers["local"]) == pytest.approx(math.log(512), rel=0.15)
    assert float(numbers["global"]) == pytest.approx(math.log(512), rel=0.15)
    for head in (method.head, method.teacher["head"]):
        torch.nn.init.zeros_(head.mlp[-1].weight)
    method.class_centre.value.zero_(), method.patch_centre.value.zero_()
    found = method(batch, step_for(batch)).numbers
    assert float(found["local"]) == pytest.approx(math.log(512), rel=1e-5)
    assert float(found["global"]) == pytest.approx(math.log(512), rel=1e-5)
    readings = method.degenerate()
    assert readings["local: ln 512: the labels of patches are uniform"] == pytest.approx(float(found["local"]), rel=1e-5)
    assert readings["global: ln 512: the labels of images are uniform"] == pytest.approx(float(found["global"]), rel=1e-5)
    assert [k for k, p in method.head.named_parameters() if p.shape[0] == 512] == ["prototypes.weight"]


def test_only_hidden_tokens_are_matched():
    method = tiny_method("mmc")
    batch = noise_batch(method, 4)
    step = step_for(batch)
    gone = mostly_hidden(method.corrupted(batch, step).hidden, 4)
    known = method.teacher["encoder"].tokens
    found = []
    for change in (~gone, gone):
        method.class_centre.value.zero_(), method.patch_centre.value.zero_()
        method.teacher["encoder"].tokens = lambda x, change=change: (t := known(x))._replace(
            patches=torch.where(change[:, :, None], -t.patches, t.patches))
        found.append(float(method(batch, step).numbers["local"]))
    method.class_centre.value.zero_(), method.patch_centre.value.zero_()
    method.teacher["encoder"].tokens = known
    plain = float(method(batch, step).numbers["local"])
    assert found[0] == pytest.approx(plain, rel=1e-6) and abs(found[1] - plain) > 1e-3
