"""Starting weights: filled to the last tensor, fitted to another size, patch and number of channels, or refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

import daybreak
from daybreak.errors import Refused
from daybreak.nn.encoder import Encoder
from daybreak.start import fit_channels, start_from
from daybreak.train.checkpoint import every, images_seen


def encoder(size=(16, 16), channels=3, patch=4, width=64, seed=0, **more) -> Encoder:
    torch.manual_seed(seed)
    return Encoder("vit_micro", image_size=size, channels=channels, patch_size=patch, width=width, depth=2, heads=2, **more)


@pytest.fixture
def weights(tmp_path):
    """A file of the weights of an encoder, and that encoder."""
    made = encoder(seed=1)
    torch.save({"state_dict": {f"module.backbone.{k}": v for k, v in made.model.state_dict().items()}}, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth"), made


def test_all_tensors_are_loaded_out_of_wrapping_tables_and_prefixes(weights):
    path, source = weights
    target = encoder()
    match = start_from(target, path)
    assert len(match.loaded) == len(source.model.state_dict()) and not (match.fitted or match.missing or match.unexpected)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(target.pooled(images), source.pooled(images))


def test_another_size_and_number_of_channels_are_fitted_and_named(weights):
    path, source = weights
    target = encoder(size=(24, 16), channels=1)
    match = start_from(target, path)
    assert match.fitted == ["pos_embed", "patch_embed.proj.weight"] and not match.missing
    assert "2 fitted (pos_embed, patch_embed.proj.weight), 0 missing" in match.sentence()
    grey = torch.randn(1, 1, 16, 16)
    first, second = target.model.patch_embed(grey), source.model.patch_embed(grey.expand(-1, 3, -1, -1))
    assert torch.allclose(first.flatten(), second.flatten(), atol=1e-5)


def test_another_patch_gives_the_same_on_a_flat_image(weights):
    path, source = weights
    target = encoder(size=(32, 32), patch=8)
    start_from(target, path)
    flat = torch.ones(1, 3, 32, 32)
    first, second = (e.model.patch_embed(flat).flatten(0, -2)[0] for e in (target, source))
    assert torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 4), (4, 3)])
def test_a_grey_image_gives_the_same_through_other_channels(before, after):
    torch.manual_seed(0)
    weight = torch.randn(5, 1, 2, 2).expand(-1, before, -1, -1)  # alike in all channels
    fitted = fit_channels(weight, after)
    assert fitted.shape == (5, after, 2, 2) and torch.allclose(fitted.sum(1), weight.sum(1), atol=1e-6)


def test_a_part_is_refused_by_name_unless_it_is_asked_for(tmp_path):
    state = encoder(seed=1).model.state_dict()
    gone = [key for key in state if key.startswith("blocks.1.")]
    path = str(tmp_path / "some.safetensors")
    save_file({k: v for k, v in state.items() if k not in gone} | {"head.weight": torch.zeros(2, 64)}, path)
    with pytest.raises(Refused, match=rf"{len(gone)} missing \(blocks.1.*1 unexpected \(head.weight\).*--init-partial"):
        start_from(encoder(), path)
    target = encoder()
    match = start_from(target, path, partial=True)
    assert sorted(match.missing) == sorted(gone) and torch.equal(target.model.state_dict()["norm.weight"], state["norm.weight"])


def test_weights_of_another_width_are_refused_even_in_part(weights):
    with pytest.raises(Refused, match="does not fill vit_micro of width 32"):
        start_from(encoder(width=32), weights[0])


def test_fixed_positions_stay(weights):
    path, _ = weights
    target = encoder(size=(24, 24), positions="fixed")
    before = target.model.pos_embed.clone()
    start_from(target, path)
    assert torch.equal(target.model.pos_embed, before)


@pytest.mark.parametrize(("content", "said"), [(b"no weights", "can't be read"), (None, "no such run or file")])
def test_what_is_no_file_of_weights_is_refused(content, said, tmp_path):
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refused, match=said):
        start_from(encoder(), str(path))


def test_an_unknown_timm_name_is_refused():
    with pytest.raises(Refused, match="could not be had"):
        start_from(encoder(), "timm:no_such_model")


@pytest.fixture(scope="module")
def no_labels(textures, tmp_path_factory):
    """A folder of a hundred textures without class folders."""
    folder = tmp_path_factory.mktemp("no_labels")
    for i, path in enumerate(sorted(textures.glob("*/*.png"))[::6]):
        shutil.copy(path, folder / f"{i:03d}.png")
    return folder


def health(run, name):
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [line.get(name) for line in lines if line["kind"] == "health"]


def test_without_labels_a_run_counts_the_neighbours_of_its_starting_weights(no_labels, tmp_path):
    known = dict(method="simclr", images=256, batch_size=64, seed=0, threads=1, pictures=False, overrides=[
        "encoder.width=64", "encoder.depth=1", "method.hidden=32", "watch.probes=2", "watch.log_steps=1"])
    first = daybreak.pretrain(no_labels, out=tmp_path / "first", **known)
    second = daybreak.pretrain(no_labels, out=tmp_path / "second", init=first.folder, save_minutes=0, **known)
    assert health(first, "neighbours_kept") == [None] * 3  # from random weights there is nothing to keep
    kept = health(second, "neighbours_kept")
    assert kept[0] == 1 and 0.2 < kept[2] < 1 and '"kind": "alarm"' not in (second.folder / "metrics.jsonl").read_text()
    before, last = every(second.folder / "checkpoints")
    last.unlink()  # as if it had been killed in its last step
    daybreak.pretrain(resume=second.folder, pictures=False)
    assert images_seen(before) == 192 and health(second, "neighbours_kept") == kept
