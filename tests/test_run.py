"""A run from the command line: what it says, what it leaves, how it stops and goes on, how it refuses."""

import json
import os
import shutil
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import NARROW

import daybreak
from daybreak.cli import main
from daybreak.errors import Failed, Refused
from daybreak.evaluate import finetune, linear
from daybreak.evaluate.dense import DENSE
from daybreak.evaluate.protocols import PROTOCOLS
from daybreak.methods import base
from daybreak.train import checkpoint

QUICK = ["--images", "320", "--batch-size", "32"]
TINY = ["--set", "encoder.width=64", "--set", "encoder.depth=1", "--set", "training.precision=32-true"]


def say(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, output, errors of a command."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return end.value.code, out, err


@pytest.fixture(scope="module")
def run(textures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sit"
    return daybreak.pretrain(textures, method="sit", images=640, batch_size=64, out=folder, seed=1,
                             overrides=["encoder.width=64", "encoder.depth=1", "method.hidden=64", "watch.log_steps=1"])


def health(run):
    return (line for line in map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines()) if line["kind"] == "health")


def test_a_run_folder_holds_what_the_design_says(run):
    for name in ("config.toml", "metrics.jsonl", "results.json", "report.html", "survey.json", "bad.csv", "checkpoints",
                 "backbone/model.safetensors", "backbone/config.json"):
        assert (run.folder / name).exists(), name
    assert list((run.folder / "tensorboard").glob("events*"))
    drawn = sorted(path.stem for path in (run.folder / "strips").iterdir())
    assert (drawn[0], drawn[-1]) == (f"{0:012d}", f"{640:012d}") and len(drawn) == len(list(health(run))) > 2
    assert 'id="strips"' in (run.folder / "report.html").read_text()
    results = json.loads((run.folder / "results.json").read_text())
    assert {r["backbone"] for r in results} == {"trained", "random", "pixels"}
    assert {r["protocol"] for r in results} >= {"knn", "linear"}
    assert all(set(r) >= {"protocol", "version", "metric", "value", "backbone", "data", "seed"} for r in results)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["images"] for line in train] == list(range(64, 641, 64))
    assert all(np.isfinite(line["loss"]) and 0 <= line["waiting"] <= 1 for line in train)
    assert any("rankme" in line and "knn_accuracy" in line for line in lines if line["kind"] == "health")


def test_the_backbone_of_a_run_is_its_teacher_and_loads_in_one_line(run):
    state = checkpoint.load_last(run.folder / "checkpoints")["method"]
    backbone = daybreak.load(run.folder)
    x = torch.randn(2, 3, 16, 16)
    assert backbone.pooled(x).shape == (2, 64)
    (key,) = [k for k in state if k.startswith("teacher.encoder") and k.endswith("patch_embed.proj.weight")]
    ours = [v for k, v in backbone.state_dict().items() if k.endswith("patch_embed.proj.weight")]
    assert torch.equal(ours[0], state[key])


def test_config_of_a_run_is_a_recipe(run, textures, tmp_path):
    again = daybreak.pretrain(recipe=run.folder / "config.toml", out=tmp_path / "again")
    mine, theirs = (checkpoint.load_last(f / "checkpoints")["method"] for f in (run.folder, again.folder))
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_evaluate_and_embed(run, textures, tmp_path, capsys):
    main_ok(capsys, "evaluate", run.folder, "--train", textures, "--test", textures, "--protocol", "knn-v1")
    main_ok(capsys, "embed", run.folder, textures, "--out", tmp_path / "v.parquet")
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.num_rows == 600 and set(table.column_names) >= {"key", "label", "vector"}
    assert len(table["vector"][0].as_py()) == 64


def test_evaluations_are_kept_with_their_vectors_and_compared(run, textures, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run.folder / "backbone", folder / "backbone")
    command = ["evaluate", folder, "--train", textures, "--test", textures]
    first = main_ok(capsys, *command, "--protocol", "knn-v1", "--protocol", "ood-v1", "--ood", textures / "dots")
    assert first.count("vectors kept") == 2 and len(list((folder / "features").glob("*.arrow"))) == 2
    again = main_ok(capsys, *command, "--protocol", "fewshot-v1", "--protocol", "rank-v1")
    assert "vectors kept" not in again and again.count("computed before") == 2
    rows = json.loads((folder / "evaluations.json").read_text())
    assert {r["protocol"] for r in rows} == {"knn", "ood", "fewshot", "rank"}
    assert all(r["data"] and r["width"] == 64 for r in rows)
    assert {r["backbone_hash"] for r in rows} == {r.backbone_hash for r in run.results if r.backbone == "trained"} != {""}
    main_ok(capsys, *command, "--protocol", "knn-v1")
    assert len(json.loads((folder / "evaluations.json").read_text())) == len(rows)  # replaced, not doubled
    out = main_ok(capsys, "compare", folder, folder)
    assert "knn-v1 accuracy" in out and "fewshot-v1 accuracy (4 a class)" in out
    code, _, err = say(capsys, *command, "--ood", textures)
    assert code == 2 and "add --protocol ood-v1" in err


def test_fine_tuning_stands_beside_random_weights_and_its_settings_are_noted(run, textures, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run.folder / "backbone", folder / "backbone")
    shutil.copy(run.folder / "config.toml", folder)
    command = ["evaluate", folder, "--train", textures, "--test", textures]
    tuned = [*command, "--protocol", "finetune-v1", "--share", "0.1", "--set", "finetune.epochs=1"]
    out = main_ok(capsys, *tuned)
    assert "finetune-v1 accuracy (10% of the labels): " in out and "(random weights " in out
    assert "60 images: epochs 1, batch size 16" in out
    rows = json.loads((folder / "evaluations.json").read_text())
    assert {(r["backbone"], r["num_train"], r["settings"]) for r in rows} == {
        ("trained", 60, "epochs = 1"), ("random", 60, "epochs = 1")}
    assert len({r["backbone_hash"] for r in rows}) == 2
    code, _, err = say(capsys, *command, "--share", "0.1")
    assert code == 2 and "add --protocol finetune-v1" in err
    code, _, err = say(capsys, *tuned, "--set", "finetune.epoch=2")
    assert code == 2 and "did you mean 'epochs'?" in err


def test_export_writes_what_timm_opens(run, tmp_path, capsys):
    import timm

    main_ok(capsys, "export", run.folder, "--to", "timm", "--out", tmp_path / "timm")
    x = torch.randn(2, 3, 16, 16)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()(x)
    assert torch.allclose(theirs, daybreak.load(run.folder).pooled(x), atol=1e-6)


def main_ok(capsys, *arguments) -> str:
    code, out, err = say(capsys, *arguments)
    assert code in (0, None), err
    return out


@pytest.mark.parametrize(("name", "scheme", "stop_at"), [
    *((name, "constant", 3 if i % 2 else 8) for i, name in enumerate(base.names())), ("mae", "daily-1", 3), ("mae", "daily-1", 8)])
def test_an_interrupted_run_goes_on_bit_for_bit(name, scheme, stop_at, textures, tmp_path, monkeypatch):
    """600 images in batches of 64: 9 batches an epoch, so the run of 12 steps crosses into a second one.

    Two blocks, since the first of them is never dropped: torch's generator must stand where it stood.
    With a scheme, steps 0 to 2, 3 to 5 and 6 to 11 are its stages: it stops where one ends, and inside the last.
    """
    cls = base.find(name)
    monkeypatch.setattr(linear, "STEPS", 20)  # what is the same needs not be good
    small = [f"method.{key}={value}" for key, value in NARROW.get(name, {}).items()]
    known = dict(method=name, images=768, batch_size=64, seed=3, overrides=[
        "encoder.width=64", "encoder.depth=2", "encoder.drop_path=0.1", "watch.probes=2", "watch.probe_bank=64",
        "watch.probe_queries=32", f"training.scheme={scheme}", *small])
    whole = daybreak.pretrain(textures, out=tmp_path / "whole", pictures=False, **known)  # the other draws, which changes nothing

    after, steps = cls.after_step, []

    def stop(self, step):
        after(self, step)
        steps.append(step)
        if len(steps) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cls, "after_step", stop)
    part = daybreak.pretrain(textures, out=tmp_path / "part", threads=1, **known)
    assert part.interrupted == signal.SIGTERM and len(steps) == stop_at
    monkeypatch.setattr(cls, "after_step", after)
    rest = daybreak.pretrain(resume=tmp_path / "part")
    mine, theirs = (checkpoint.load_last(r.folder / "checkpoints") for r in (whole, rest))
    assert mine["images_seen"] == theirs["images_seen"] == 768
    assert all(torch.equal(mine["method"][k], theirs["method"][k]) for k in mine["method"])
    assert [r.value for r in whole.results] == [r.value for r in rest.results]
    assert not (whole.folder / "strips").exists()
    assert [int(path.stem) for path in sorted((rest.folder / "strips").iterdir())] == [line["images"] for line in health(whole)]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_led_to_it(textures, tmp_path, monkeypatch):
    cls = base.find("simclr")
    forward = cls.forward

    def broken(self, batch, step):
        loss = forward(self, batch, step)
        return base.Loss(loss.value * float("nan"), {}) if step.images_seen >= 128 else loss

    monkeypatch.setattr(cls, "forward", broken)
    with pytest.raises(Failed, match="the loss became nan after 128 images.*learning_rate"):
        daybreak.pretrain(textures, method="simclr", images=640, batch_size=64, out=tmp_path / "run",
                          overrides=["encoder.width=64", "encoder.depth=1"])
    kept = checkpoint.load_last(tmp_path / "run" / "failure")
    assert kept["images_seen"] == 128 and len(kept["batch"]["index"]) == 64


def test_without_labels_health_and_pictures_still_come(textures, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(textures.glob("*/*.png"))[:200]):
        (flat / f"{i}.png").write_bytes(path.read_bytes())
    run = daybreak.pretrain(flat, method="pseudo_mae", images=320, batch_size=32, out=tmp_path / "run", overrides=[
        "encoder.width=64", "encoder.depth=1", "method.prototypes=16", "method.hidden=32"])
    assert not [r for r in run.results if r.protocol in ("knn", "linear")]
    assert {r.metric for r in run.results} >= {"rankme", "spread"}
    page = (run.folder / "report.html").read_text()
    assert "no labels" in page and 'id="clusters"' in page and page.count(" images</small>") >= 1


def test_a_method_that_learns_from_labels_refuses_images_without(textures, tmp_path, capsys):
    for i, path in enumerate(sorted(textures.glob("*/*.png"))[::4]):
        (tmp_path / f"{i}.png").write_bytes(path.read_bytes())
    code, _, err = say(capsys, "pretrain", tmp_path, "--method", "hydra", "--out", tmp_path / "run", *QUICK)
    assert code == 2 and "no labels, and 'hydra' learns from a label" in err and len(err.strip().splitlines()) == 1
    values = pa.table({"path": [str(p) for p in sorted(tmp_path.glob("*.png"))], "age": np.linspace(0, 1, 150)})
    pq.write_table(values, tmp_path / "list.parquet")
    code, _, err = say(capsys, "pretrain", tmp_path / "list.parquet", "--method", "hydra", "--out", tmp_path / "run", *QUICK)
    assert code == 2 and "of the kind 'value'" in err and len(err.strip().splitlines()) == 1
    code, _, err = say(capsys, "pretrain", textures, "--method", "hydra", "--out", tmp_path / "run", *QUICK,
                       "--set", "method.classes=4")
    assert code == 2 and "has 5 classes" in err and not (tmp_path / "run").exists()


def test_a_method_that_learns_from_labels_never_sees_the_queries(textures, tmp_path, monkeypatch):
    trained = []
    forward = base.find("hydra").forward

    def noting(self, batch, step):
        trained.append(batch.index)
        return forward(self, batch, step)

    monkeypatch.setattr(base.find("hydra"), "forward", noting)
    run = daybreak.pretrain(textures, method="hydra", images=1200, batch_size=64, out=tmp_path / "run", pictures=False,
                            overrides=["encoder.width=64", "encoder.depth=1", "watch.probes=0"])
    sizes = {(r.num_train, r.num_test) for r in run.results if r.protocol == "knn" and r.backbone == "trained"}
    ((bank, queries),) = sizes
    assert bank + queries == 600 and int(torch.cat(trained).max()) < bank
    assert not any("pretraining saw them" in note for note in run.notes)
    assert "pretrained with labels" in (run.folder / "backbone" / "README.md").read_text()


def folder_of(tmp_path, **files) -> str:
    root = tmp_path / "data"
    root.mkdir()
    for name, content in files.items():
        (root / name.replace("_", ".")).write_bytes(content)
    return str(root)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--method", "simclrr"], "did you mean 'simclr'"),
    (["--encoder", "vit_micr"], "did you mean 'vit_micro'"),
    (["--set", "method.temprature=1", "--method", "simclr"], "did you mean 'temperature'"),
    (["--set", "trainin.clip=1"], "did you mean 'training'"),
    (["--image-size", "30"], "do not divide"),
    (["--batch-size", "601"], "600 images"),
    (["--epochs", "1", "--images", "5"], "both budgets"),
    (["--label", "species"], "species"),
    (["--set", "training.accumulate=3", "--batch-size", "8"], "does not divide the batch of 8 of a device; try 4"),
    (["--set", "method.mask_ratio=1.5", "--method", "mae"], "expected from 0.05 to 0.95"),
    (["--recipe", "nowhere.toml"], "no such recipe"),
])
def test_bad_settings_are_one_sentence_and_exit_2(arguments, said, textures, tmp_path, capsys):
    code, _, err = say(capsys, "pretrain", textures, "--out", tmp_path / "run", *QUICK[: 0 if "--epochs" in arguments else 2],
                       *TINY, *arguments)
    assert code == 2 and said in err and "Traceback" not in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_bad_data_is_one_sentence_and_exit_2(tmp_path, capsys):
    cases = {
        "empty": {}, "text": {"readme_txt": b"hello"}, "broken": {"a_jpg": b"\xff\xd8\xff\xe0 not a jpeg"},
    }
    for name, files in cases.items():
        (tmp_path / name).mkdir()
        data = folder_of(tmp_path / name, **files)
        code, _, err = say(capsys, "pretrain", data, "--out", tmp_path / name / "run")
        assert code == 2 and data in err and len(err.strip().splitlines()) == 1, (name, err)
    code, _, err = say(capsys, "pretrain", tmp_path / "nowhere")
    assert code == 2 and "nowhere" in err


def test_two_images_in_all_are_too_few(tmp_path, textures, capsys):
    for i, path in enumerate(sorted(textures.glob("*/*.png"))[:2]):
        (tmp_path / f"{i}.png").write_bytes(path.read_bytes())
    code, _, err = say(capsys, "pretrain", tmp_path, "--out", tmp_path / "run")
    assert code == 2 and "2 images to learn from" in err and not (tmp_path / "run").exists()


def test_another_run_in_the_folder_is_refused_and_untouched(run, textures, capsys):
    before = (run.folder / "config.toml").read_text()
    code, _, err = say(capsys, "pretrain", textures, "--out", run.folder, *QUICK)
    assert code == 2 and "holds another run" in err and "--resume" in err
    assert (run.folder / "config.toml").read_text() == before


def test_changed_data_is_refused_on_resume(textures, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    paths = sorted(textures.glob("*/*.png"))[:128]
    for i, path in enumerate(paths):
        (data / f"{i}.png").write_bytes(path.read_bytes())
    daybreak.pretrain(data, method="mae", images=64, batch_size=32, out=tmp_path / "run", overrides=["encoder.depth=1"])
    (data / "0.png").write_bytes(paths[1].read_bytes())
    with pytest.raises(Refused, match="data changed"):
        daybreak.pretrain(resume=tmp_path / "run")


def test_other_settings_are_refused_on_resume(run, capsys):
    code, _, err = say(capsys, "pretrain", "--resume", run.folder, "--epochs", "3")
    assert code == 2 and "training.epochs None -> 3.0" in err and "--force" in err


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(Refused):
        main(["pretrain", str(tmp_path / "nowhere"), "--debug"])


def test_methods_lists_them_and_doctor_examines(capsys):
    out = main_ok(capsys, "methods", "--json")
    rows = json.loads(out)
    assert [r["name"] for r in rows] == base.names() and all(r["summary"] and r["settings"] for r in rows)
    assert "torch" in main_ok(capsys, "doctor")


def test_the_flags_are_frozen():
    """A flag is a promise: adding one is a decision, so this list is changed by hand."""
    import inspect
    import typing

    from daybreak import cli

    assert list(inspect.signature(cli.pretrain).parameters) == [
        "data", "method", "encoder", "image_size", "epochs", "images", "minutes", "batch_size", "val", "label", "group",
        "channels", "max_bad", "out", "recipe", "set", "seed", "compile", "devices", "init", "init_partial", "save_minutes",
        "on_collapse", "resume", "skip_failure", "force", "pictures"]
    assert list(inspect.signature(cli.plan).parameters) == [
        "data", "hours", "method", "encoder", "image_size", "batch_size", "devices", "recipe", "set"]
    assert list(inspect.signature(cli.pack).parameters) == [
        "data", "out", "short_side", "encoding", "quality", "workers", "label", "group", "max_bad", "verify"]
    assert list(inspect.signature(cli.evaluate).parameters) == [
        "run", "train", "test", "protocol", "label", "group", "ood", "void", "share", "set", "seed"]
    assert list(inspect.signature(cli.embed).parameters) == ["run", "data", "out", "label", "group", "max_bad"]
    assert list(inspect.signature(cli.compare).parameters) == ["runs", "out"]
    protocol = typing.get_type_hints(cli.evaluate, include_extras=True)["protocol"].__metadata__[0]
    assert all(name in protocol.help for name in [*PROTOCOLS, *DENSE, finetune.NAME])



@pytest.mark.forecast
def test_a_run_says_first_what_it_will_take(textures, tmp_path, capsys):
    out = main_ok(capsys, "pretrain", textures, "--method", "mae", "--out", tmp_path / "run", "--no-pictures", *QUICK, *TINY)
    (line,) = [line for line in out.splitlines() if "expected" in line]
    assert "images/s" in line and "320 images" in line and out.index("expected") < out.index("evaluating")


@pytest.mark.forecast
def test_plan_says_what_a_run_would_take_and_writes_nothing(textures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = main_ok(capsys, "plan", textures, "--method", "mae", "--hours", "0.5", *TINY)
    (line,) = [line for line in out.splitlines() if "expected" in line]
    assert "in 0.50 hours" in line and "images/s" in line and "epochs" in line and "steps of 16 and 32 images" in line
    assert "warm-up = 5% of the budget" in out and "learning rate" in out and not list(tmp_path.iterdir())
    found = daybreak.plan(textures, method="mae", batch_size=32, overrides=["encoder.width=64", "encoder.depth=1"])
    assert found.forecast.tried == (4, 8) and found.forecast.images_per_second > 0 and found.config.training.minutes == 30


def test_a_table_without_the_label_column_is_refused_with_the_columns(tmp_path, textures, capsys):
    paths = [str(p) for p in sorted(textures.glob("*/*.png"))[:40]]
    pq.write_table(pa.table({"path": paths, "kind": ["a", "b"] * 20}), tmp_path / "list.parquet")
    code, _, err = say(capsys, "pretrain", tmp_path / "list.parquet", "--label", "species", "--out", tmp_path / "run")
    assert code == 2 and "species" in err and "kind" in err
