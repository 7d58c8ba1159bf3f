"""Several processes on one run: what starts them, what ends them, and that they agree with one."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

import daybreak
from daybreak.errors import Failed, Refused
from daybreak.launch import SlurmStep, World, check_devices, cluster_here, first_bad_end, world_here
from daybreak.train.checkpoint import load_last
from daybreak.verbs import make_fabric

TINY = ["encoder.width=32", "encoder.depth=1", "encoder.heads=2", "training.precision=32-true", "watch.probes=1"]


@pytest.mark.parametrize(("told", "world"), [
    ({}, None),
    ({"WORLD_SIZE": "1", "LOCAL_RANK": "0", "RANK": "0"}, None),
    ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1", "RANK": "5"}, World(4, 2, 5)),
    ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # the batch script, not a step
    ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3"}, World(4, 2, 3)),
])
def test_a_process_knows_what_it_is_part_of(told, world, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert world_here() == world


BATCH_SCRIPT = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "x", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
                "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}


@pytest.mark.parametrize(("told", "kind"), [
    ({}, LightningEnvironment),
    (BATCH_SCRIPT, LightningEnvironment),  # not a step, though Lightning takes it for one
    (BATCH_SCRIPT | {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "RANK": "1"}, LightningEnvironment),  # --devices 2 in it
    (BATCH_SCRIPT | {"SLURM_STEP_NUM_TASKS": "4"}, SlurmStep),  # which --ntasks laid out
    (BATCH_SCRIPT | {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "RANK": "1", "TORCHELASTIC_RUN_ID": "x"}, TorchElasticEnvironment),
])
def test_fabric_is_told_who_started_the_processes(told, kind, monkeypatch):
    for name in {"WORLD_SIZE", "LOCAL_RANK", "RANK", "SLURM_STEP_NUM_TASKS", *BATCH_SCRIPT} - told.keys():
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert type(cluster_here()) is kind


def test_a_run_in_a_slurm_batch_script_is_one_process(monkeypatch):
    for name, value in BATCH_SCRIPT.items():
        monkeypatch.setenv(name, value)
    assert make_fabric("cpu", "32-true").world_size == 1


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(Refused, match="--devices 2: there are 1 mps devices here"):
        check_devices(2, "mps")


def sleeping(*codes: str) -> list[subprocess.Popen]:
    return [subprocess.Popen([sys.executable, "-c", code], start_new_session=True) for code in codes]


def test_the_process_that_was_killed_is_named_before_those_that_noticed():
    processes = sleeping("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "import sys; sys.exit(0)")
    assert first_bad_end(processes) == (0, -signal.SIGKILL)


def test_processes_that_end_well_are_no_failure():
    assert first_bad_end(sleeping("pass", "pass")) is None


def pretrained(textures, out, **more):
    return daybreak.pretrain(textures, method="sit", batch_size=64, images=256, out=out, seed=0, pictures=False,
                             overrides=[*TINY, "method.hidden=32", "method.output=16", "training.optimizer=sgd",
                                        "training.learning_rate=0.01"], **more)


@pytest.mark.long
def test_two_devices_end_where_one_does(textures, tmp_path):
    """Plain SGD, because AdamW divides gradients that are noise by their own size."""
    one, two = pretrained(textures, tmp_path / "one"), pretrained(textures, tmp_path / "two", devices=2)
    first, second = (load_last(run.folder / "checkpoints")["method"] for run in (one, two))
    assert max(float((first[k].float() - second[k].float()).abs().max()) for k in first) < 1e-5
    losses = [[json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()
               if json.loads(line)["kind"] == "train"] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) > 0
    accuracy = [[r.value for r in run.results if r.metric == "accuracy"] for run in (one, two)]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.02) and len(accuracy[0]) == 6


SCRIPT = """import sys, daybreak
daybreak.pretrain(sys.argv[1], out=sys.argv[2], method="sit", batch_size=64, images=256, seed=0, pictures=False, devices=2,
                  overrides=sys.argv[3:])
"""  # no main guard, and read from a pipe, as a notebook's cells come from no file


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torchrun", "srun", "script"])
def test_whoever_starts_the_processes_they_train_as_one_run(how, textures, tmp_path):
    settings = [*TINY, "method.hidden=32", "method.output=16"]
    python, out, env = [sys.executable], tmp_path / "run", {k: v for k, v in os.environ.items() if "SLURM" not in k}
    flags = ["-m", "daybreak", "pretrain", str(textures), "--out", str(out), "--method", "sit", "--batch-size", "64", "--images",
             "256", "--seed", "0", "--no-pictures", *(part for setting in settings for part in ("--set", setting))]
    if how == "torchrun":
        started = [subprocess.Popen([*python, "-m", "torch.distributed.run", "--nproc-per-node", "2", *flags], env=env)]
    elif how == "srun":
        step = env | BATCH_SCRIPT | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
        started = [subprocess.Popen([*python, *flags], env=step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in "01"]
    else:
        started = [subprocess.Popen([*python, "-", str(textures), str(out), *settings], env=env, stdin=subprocess.PIPE)]
        started[0].communicate(SCRIPT.encode(), timeout=120)
    assert [process.wait(120) for process in started] == [0] * len(started)
    assert 'devices = 2' in (out / "config.toml").read_text() and (out / "report.html").exists()
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [line["images"] for line in map(json.loads, lines) if line["kind"] == "train"] == [256]  # one rank wrote, once


BROKEN = '''"""A method that dies on the second rank. arXiv"""
import os
from dataclasses import dataclass
from daybreak.methods.base import Method, Loss, Training, View, register

@dataclass(frozen=True, kw_only=True)
class Config:
    pass

@register("dies", config=Config, pool="cls", training=Training())
class Dies(Method):
    def __init__(self, encoder, config):
        super().__init__(encoder, config)
        self.views = [View(size=encoder.image_size)]

    def forward(self, batch, step):
        if step.rank == 1 and step.images_seen > 0:
            os.kill(os.getpid(), 9)
        return Loss(self.encoder.pooled(batch.images[0]).float().square().mean(), {})
'''


@pytest.mark.long
def test_a_rank_that_dies_ends_the_others_by_name(textures, tmp_path):
    (tmp_path / "dies.py").write_text(BROKEN)
    with pytest.raises(Failed, match="process 1 of 2 ended by signal SIGKILL"):
        daybreak.pretrain(textures, method=str(tmp_path / "dies.py"), batch_size=32, images=320, devices=2, out=tmp_path / "run",
                          overrides=TINY)


def test_a_batch_that_devices_do_not_share_evenly_is_refused(textures, tmp_path):
    with pytest.raises(Refused, match="use --batch-size 2"):
        daybreak.pretrain(textures, batch_size=3, images=6, devices=2, out=tmp_path / "run")
    assert not torch.distributed.is_initialized()
