"""Going on with a run: what is refused and with which words, what --force overrides, and the way past a failure."""

import io
import os
import shutil
import signal

import pytest
import torch
from rich.console import Console

import daybreak
from daybreak.cli import main
from daybreak.errors import Failed, Refused
from daybreak.evaluate import linear
from daybreak.methods import base
from daybreak.train import checkpoint
from daybreak.train.resume import Finite

STEPS = 10
KNOWN = dict(method="simclr", images=64 * STEPS, batch_size=64, seed=1, threads=1, pictures=False, overrides=[
    "encoder.width=64", "encoder.depth=1", "method.hidden=32", "watch.probes=0", "watch.log_steps=1", "training.precision=32-true"])


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(linear, "STEPS", 20)  # its accuracy is not looked at


def said(**settings) -> tuple[daybreak.Run, str]:
    """A run and what it printed."""
    text = io.StringIO()
    run = daybreak.pretrain(console=Console(file=text, width=500), **settings)
    return run, text.getvalue()


@pytest.fixture(scope="module")
def stopped(textures, tmp_path_factory):
    """A run that SIGTERM ended after 4 of its 10 steps."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    cls, steps = base.find("simclr"), []

    def stop(self, step):
        steps.append(step)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "after_step", stop)
        run = daybreak.pretrain(textures, out=folder, **KNOWN)
    assert run.interrupted == signal.SIGTERM
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_with_its_code_and_the_line_that_goes_on(number, code, textures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base.find("simclr"), "after_step", lambda self, step: os.kill(os.getpid(), number))
    run, settings = tmp_path / "run", [part for setting in KNOWN["overrides"] for part in ("--set", setting)]
    with pytest.raises(SystemExit) as end:
        main(["pretrain", str(textures), "--out", str(run), "--method", "simclr", "--images", "640", "--batch-size", "64",
              "--no-pictures", *settings])
    assert end.value.code == code and checkpoint.load_last(run / "checkpoints")["images_seen"] == 64
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"Go on with: daybreak pretrain --resume {run}")


@pytest.fixture
def part(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "part")
    return tmp_path / "part"


def test_the_settings_it_was_made_with_may_be_given_again(part, textures):
    _, text = said(data=textures, resume=part, **KNOWN)
    assert "going on at image 256 (epoch 0, batch 4 of 9)" in text and "forced" not in text
    assert checkpoint.load_last(part / "checkpoints")["images_seen"] == 64 * STEPS


def test_settings_that_change_nothing_that_is_learned_may_differ(part):
    _, text = said(resume=part, save_minutes=5.0, threads=2, overrides=["watch.log_steps=2"])
    assert "forced" not in text and "save_minutes = 5.0" in (part / "config.toml").read_text()


@pytest.mark.parametrize(("given", "difference"), [
    (dict(seed=2), "seed 1 -> 2"), (dict(epochs=2.0), "training.images 640 -> None; training.epochs None -> 2.0"),
    (dict(overrides=["method.temperature=0.3"]), "method.temperature 0.5 -> 0.3"),
    (dict(overrides={"training": {"clip": 1.0}}), "training.clip None -> 1.0"),
])
def test_other_settings_are_refused_with_the_difference(part, given, difference):
    before = (part / "config.toml").read_text()
    with pytest.raises(Refused, match="made with other settings.*--force") as refusal:
        daybreak.pretrain(resume=part, **given)
    assert difference in str(refusal.value) and (part / "config.toml").read_text() == before


def test_a_config_that_was_edited_is_refused_with_the_difference(part):
    text = (part / "config.toml").read_text()
    (part / "config.toml").write_text(text.replace("temperature = 0.5", "temperature = 0.7"))
    with pytest.raises(Refused, match=r"method\.temperature 0\.5 -> 0\.7.*mend config\.toml"):
        daybreak.pretrain(resume=part)


def test_force_names_what_it_overrides_and_it_takes_effect(part):
    _, text = said(resume=part, force=True, batch_size=32, overrides=["training.learning_rate=1e-4", "training.betas=[0.8, 0.9]"])
    assert "forced: training.batch_size 64 -> 32; training.betas (0.9, 0.999) -> (0.8, 0.9)" in text
    assert "training.learning_rate 0.002 -> 0.0001" in text
    assert "going on at image 256 (epoch 0, batch 8 of 18)" in text
    state = checkpoint.load_last(part / "checkpoints")
    assert state["config"]["training"]["learning_rate"] == 1e-4 and state["loader"] == {"epoch": 1, "position": 2}
    assert state["optimizer"]["param_groups"][0]["betas"] == (0.8, 0.9)
    _, text = said(resume=part)  # what was forced is the run's now
    assert "forced" not in text


@pytest.mark.parametrize("given", [dict(overrides=["encoder.depth=2"]), dict(overrides=["training.optimizer=sgd"])])
def test_force_does_not_change_what_the_weights_depend_on(part, given):
    with pytest.raises(Refused, match="--force can't change"):
        daybreak.pretrain(resume=part, force=True, **given)


def test_weights_that_do_not_fit_are_refused_in_one_sentence(part):
    with pytest.raises(Refused, match="do not fit the settings"):
        daybreak.pretrain(resume=part, force=True, overrides=["method.hidden=48"])


@pytest.mark.parametrize(("given", "match"), [
    (dict(method="mae"), "a run of 'simclr'.*'mae'"), (dict(out="there"), "leave out --out")])
def test_another_method_or_folder_is_refused(part, given, match):
    with pytest.raises(Refused, match=match):
        daybreak.pretrain(resume=part, force=True, **given)


def test_changed_data_are_refused_with_the_difference_or_forced(textures, tmp_path):
    shutil.copytree(textures, tmp_path / "data")
    run = daybreak.pretrain(tmp_path / "data", out=tmp_path / "run", **(KNOWN | {"images": 128}))
    next((tmp_path / "data" / "dots").glob("*.png")).unlink()
    with pytest.raises(Refused, match="data changed.*600 images with fingerprint .* then, 599 with"):
        daybreak.pretrain(resume=run.folder)
    _, text = said(resume=run.folder, force=True)
    assert "forced: 600 images with fingerprint" in text


def test_a_second_run_into_a_folder_is_refused_or_moves_the_first_aside(part, textures):
    with pytest.raises(Refused, match="another run, which differs in seed 1 -> 5; choose another --out"):
        daybreak.pretrain(textures, out=part, **(KNOWN | {"seed": 5}))
    with pytest.raises(Refused, match="a run of 'simclr', not 'mae'"):
        daybreak.pretrain(textures, out=part, **(KNOWN | {"method": "mae", "overrides": []}))
    with pytest.raises(Refused, match="another run of the same settings"):
        daybreak.pretrain(textures, out=part, **KNOWN)
    _, text = said(data=textures, out=part, force=True, **(KNOWN | {"seed": 5}))
    aside = part.with_name("part-1")
    assert f"forced: another run, which differs in seed 1 -> 5 stood in {part}; it is now {aside}" in text
    assert checkpoint.load_last(aside / "checkpoints")["images_seen"] == 256


def test_a_failed_batch_is_named_kept_and_skipped_for_good(textures, tmp_path, monkeypatch):
    """The fourth batch gives an infinite loss whenever it comes; without it the run sees 10 other batches."""
    cls, seen = base.find("simclr"), []
    forward = cls.forward

    def broken(self, batch, step):
        loss = forward(self, batch, step)
        seen.append(tuple(batch.index.tolist()))
        return base.Loss(loss.value + float("inf"), loss.numbers) if seen[-1] == seen[3 % len(seen)] and len(seen) > 3 else loss

    monkeypatch.setattr(cls, "forward", broken)
    with pytest.raises(Failed, match=r"the loss became inf after 192 images.*the loss itself.*--skip-failure"):
        daybreak.pretrain(textures, out=tmp_path / "run", **KNOWN)
    bad = seen[3]
    kept = checkpoint.load_last(tmp_path / "run" / "failure")
    assert tuple(kept["batch"]["index"].tolist()) == bad
    assert kept["failed"] == {"epoch": 0, "position": 3, "images": 192} and "cpu" in kept["generators"]
    with pytest.raises(Failed, match="the loss became inf after 192 images"):  # there is no checkpoint: it begins anew
        daybreak.pretrain(resume=tmp_path / "run")
    before = len(seen)
    _, text = said(resume=tmp_path / "run", skip_failure=True)
    assert "skipping batch 3 of epoch 0" in text and "going on at image 192 (epoch 0, batch 4 of 9)" in text
    state = checkpoint.load_last(tmp_path / "run" / "checkpoints")
    assert bad not in seen[before:] and len(seen) - before == STEPS - 3
    assert state["images_seen"] == 64 * STEPS and state["skipped"] == [[0, 3]] and state["loader"] == {"epoch": 1, "position": 2}
    with pytest.raises(Refused, match="gone past the failure"):
        daybreak.pretrain(resume=tmp_path / "run", skip_failure=True)


def test_with_poisoned_weights_the_last_checkpoint_goes_on_and_skips_the_batch(part, monkeypatch):
    """As on a GPU, where the loss is looked at some steps later: batch 5 of the run that stopped at 4."""
    state = checkpoint.load_last(part / "checkpoints")
    poisoned = {k: v * float("nan") if v.is_floating_point() else v for k, v in state["method"].items()}
    checkpoint.save(part / "failure", state | {"method": poisoned, "images_seen": 448,
                                               "failed": {"epoch": 0, "position": 5, "images": 320}}, 448)
    indices, forward = [], base.find("simclr").forward

    def note(self, batch, step):
        indices.append(batch.index.tolist())
        return forward(self, batch, step)

    monkeypatch.setattr(base.find("simclr"), "forward", note)
    _, text = said(resume=part, skip_failure=True)
    assert "going on at image 256 (epoch 0, batch 4 of 9)" in text and len(indices) == STEPS - 4
    state = checkpoint.load_last(part / "checkpoints")
    assert state["loader"] == {"epoch": 1, "position": 2} and all(torch.isfinite(v).all() for v in state["method"].values())


def test_a_broken_output_is_named(textures, tmp_path, monkeypatch):
    cls = base.find("simclr")
    start = cls.__init__

    def build(self, *arguments):
        start(self, *arguments)
        self.head[1].register_forward_hook(lambda _m, _i, out: out * float("nan"))

    monkeypatch.setattr(cls, "__init__", build)
    with pytest.raises(Failed, match="the loss became nan after 0 images; the first that is not finite is the output of head.1"):
        daybreak.pretrain(textures, out=tmp_path / "run", **KNOWN)


def test_no_failure_to_skip_is_said(part, textures):
    with pytest.raises(Refused, match="no failure is kept"):
        daybreak.pretrain(resume=part, skip_failure=True)
    with pytest.raises(Refused, match="say which with --resume"):
        daybreak.pretrain(textures, skip_failure=True)


def test_a_loss_that_is_looked_at_late_is_blamed_on_its_own_step():
    check = Finite(3)
    values = [1.0, float("nan"), float("nan"), 2.0]
    found = [check.first_bad({"position": i}, torch.tensor(v)) for i, v in enumerate(values)]
    assert found == [None, None, {"position": 1}, None] and len(check.held) == 1
    assert check.first_bad({"position": 4}, torch.tensor(3.0), now=True) is None and not check.held
