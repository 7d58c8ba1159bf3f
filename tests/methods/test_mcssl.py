"""MC-SSL's three losses against loops written from the card, their start at ln K, and which token meets which."""

import math
from pathlib import Path

import pytest
import torch
from conftest import NARROW, noise_batch, step_for, tiny_method

from daybreak.config import fill, read_toml, to_tree
from daybreak.methods.mcssl import MCSSL
from daybreak.nn.encoder import Encoder


def softmax(v):
    top = max(v)
    e = [math.exp(x - top) for x in v]
    return [x / sum(e) for x in e]


def cross_entropy(teacher, student, centre, tau_t, tau_s):
    """- sum over K of softmax((teacher - centre) / tau_t) log softmax(student / tau_s), for one token."""
    p = softmax([(x - c) / tau_t for x, c in zip(teacher, centre, strict=True)])
    q = softmax([x / tau_s for x in student])
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


def logits(method, batch, step):
    """Class and data logits of student (corrupted and local views) and teacher (clean global views), as lists."""
    clean, corrupted = torch.cat(batch.images[:2]), method.corrupted(batch, step).images
    seen, known = method.encoder.tokens(corrupted), method.teacher["encoder"].tokens(clean)
    locals_ = [method.head.classes(method.encoder.tokens(x).prefix[:, 0]).tolist() for x in batch.images[2:]]
    student = [x.tolist() for x in method.head.classes(seen.prefix[:, 0]).chunk(2)] + locals_  # V lists of (B, K)
    teacher = [x.tolist() for x in method.teacher["head"].classes(known.prefix[:, 0]).chunk(2)]
    return student, teacher, method.head.data(seen.patches).tolist(), method.teacher["head"].data(known.patches).tolist()


@pytest.mark.parametrize("error", ["l2", "l1"])
@torch.no_grad()
def test_all_losses_and_their_sum_equal_the_loops(error):
    method = tiny_method("mcssl", error=error, class_weight=0.5, data_weight=2.0, reconstruction_weight=3.0)
    batch = noise_batch(method, 3)
    step = step_for(batch, progress=0.02)  # half of the warm-up: the temperature is 0.055
    centres = torch.randn(2, 32) * 0.1
    method.class_centre.value.copy_(centres[0]), method.data_centre.value.copy_(centres[1])
    student, teacher, seen, known = logits(method, batch, step)
    found = method(batch, step)

    pairs = [cross_entropy(t, s, centres[0].tolist(), 0.055, 0.1) for i, view in enumerate(teacher)
             for v, other in enumerate(student) if v != i for t, s in zip(view, other, strict=True)]
    assert len(pairs) == 2 * 3 * 3  # V - 1 = 3 other views for each of two teacher views, and 3 images
    data = [cross_entropy(t, s, centres[1].tolist(), 0.055, 0.1) for a, b in zip(known, seen, strict=True)
            for t, s in zip(a, b, strict=True)]
    assert len(data) == 6 * 16  # every token of both global views, hidden or not
    corrupted, hidden = method.corrupted(batch, step)
    painted = method.repaint(method.encoder.tokens(corrupted).patches, (4, 4))
    off = (painted - torch.cat(batch.images[:2]))[hidden.expand_as(corrupted)].tolist()
    errors = [abs(x) if error == "l1" else x * x for x in off]
    wanted = {"class": sum(pairs) / len(pairs), "data": sum(data) / len(data), "reconstruction": sum(errors) / len(errors)}
    for name, value in wanted.items():
        assert float(found.numbers[name]) == pytest.approx(value, rel=1e-4), name
    total = 0.5 * wanted["class"] + 2 * wanted["data"] + 3 * wanted["reconstruction"]
    assert float(found.value) == pytest.approx(total, rel=1e-4)


@torch.no_grad()
def test_pseudo_labels_start_near_ln_k_and_uniform_ones_are_there_exactly():
    method = tiny_method("mcssl", prototypes=512, bottleneck=256)
    batch = noise_batch(method, 4)
    numbers = method(batch, step_for(batch)).numbers
    assert float(numbers["class"]) == pytest.approx(math.log(512), rel=0.15)  # cosines of random directions, not quite 0
    assert float(numbers["data"]) == pytest.approx(math.log(512), rel=0.15)
    for head in (method.head, method.teacher["head"]):
        torch.nn.init.zeros_(head.mlp[-1].weight)
    method.class_centre.value.zero_(), method.data_centre.value.zero_()
    found = method(batch, step_for(batch)).numbers
    assert float(found["class"]) == pytest.approx(math.log(512), rel=1e-5)
    assert float(found["data"]) == pytest.approx(math.log(512), rel=1e-5)
    readings = method.degenerate()
    assert readings["class: ln 512: the labels of images are uniform"] == pytest.approx(float(found["class"]), rel=1e-5)
    assert readings["data: ln 512: the labels of tokens are uniform"] == pytest.approx(float(found["data"]), rel=1e-5)


@torch.no_grad()
def test_with_clean_views_and_equal_temperatures_the_data_loss_is_the_entropy_of_the_labels(monkeypatch):
    method = tiny_method("mcssl", teacher_temperature=0.1, final_teacher_temperature=0.1)
    batch = noise_batch(method, 3)
    clean = torch.cat(batch.images[:2])
    mask = torch.ones(len(clean), 1, 16, 16, dtype=torch.bool)
    monkeypatch.setattr(method, "corrupted", lambda *_: (clean, mask))
    found = float(method(batch, step_for(batch)).numbers["data"])
    tokens = method.head.data(method.encoder.tokens(clean).patches).flatten(0, 1).tolist()
    expected = [cross_entropy(t, t, [0.0] * 32, 0.1, 0.1) for t in tokens]
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-4)

    method.data_centre.value.zero_()
    known = method.teacher["encoder"].tokens
    monkeypatch.setattr(method.teacher["encoder"], "tokens", lambda x: known(x)._replace(patches=known(x).patches.roll(1, 1)))
    assert float(method(batch, step_for(batch)).numbers["data"]) > found  # each token must meet the one at its own place


def test_local_views_are_never_corrupted_and_the_teacher_sees_clean_global_ones():
    method = tiny_method("mcssl")
    batch, seen = noise_batch(method, 4), {"student": [], "teacher": []}
    for name, encoder in (("student", method.encoder), ("teacher", method.teacher["encoder"])):
        original = encoder.tokens
        encoder.tokens = lambda x, keep=None, name=name, original=original: (seen[name].append(x), original(x, keep))[1]
    method(batch, step_for(batch))
    (teacher,), (corrupted, local) = seen["teacher"], seen["student"]
    assert torch.equal(teacher, torch.cat(batch.images[:2])) and torch.equal(local, torch.cat(batch.images[2:]))
    assert corrupted.shape == teacher.shape and not torch.equal(corrupted, teacher)


def test_the_two_losses_of_the_figure_run_without_local_views():
    method = tiny_method("mcssl", class_weight=0.0, local_views=0, error="l1")
    batch = noise_batch(method, 4)
    found = method(batch, step_for(batch))
    assert len(batch.images) == 2
    assert float(found.value.detach()) == pytest.approx(float(found.numbers["data"] + found.numbers["reconstruction"]), rel=1e-6)


@pytest.mark.parametrize(("progress", "frozen"), [(0.05, (True, True)), (0.15, (True, False)), (0.5, (False, False))])
def test_prototypes_are_frozen_at_the_start_only(progress, frozen):
    method = tiny_method("mcssl", freeze_class_prototypes=0.2, freeze_data_prototypes=0.1)
    batch = noise_batch(method, 4)
    step = step_for(batch, progress)
    method(batch, step).value.backward()
    method.before_update(step)
    assert (method.head.class_prototypes.weight.grad is None, method.head.data_prototypes.weight.grad is None) == frozen


def test_dicom_is_this_method_on_views_of_x_rays():
    """Nothing but views is set, so that on one batch the step is that of MC-SSL; the views are the card's."""
    tree = read_toml(Path(__file__).parents[2] / "recipes" / "dicom_vits16_cxr.toml")
    settings = {key: value for key, value in tree["method"].items() if key != "name"}
    assert tree["method"]["name"] == "mcssl" and set(settings) <= {"color", "gray", "solarize", "flip"}
    plain, dicom = tiny_method("mcssl"), tiny_method("mcssl", **to_tree(fill(MCSSL.Config, settings | NARROW["mcssl"])))
    batch = noise_batch(plain)
    assert torch.equal(plain(batch, step_for(batch)).value, dicom(batch, step_for(batch)).value)
    encoder = Encoder("vit_micro", image_size=tuple(tree["encoder"]["image_size"]), patch_size=16, width=64, depth=1)
    views = MCSSL(encoder, fill(MCSSL.Config, settings | {"prototypes": 32, "hidden": 32})).views
    assert [(v.size, v.scale, v.count) for v in views] == [((224, 224), (0.25, 1.0), 1)] * 2 + [((96, 96), (0.05, 0.25), 10)]
    assert {(v.color, v.color_probability, v.gray, v.solarize, v.flip) for v in views} == {((0.4, 0.4, 0, 0), 0.8, 0, 0, 0.5)}
