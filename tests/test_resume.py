"""A process that is killed ten times, with no chance to say anything, ends with the bits of one that was left alone.

Processes are forked from a server that has imported everything once, so that ten of them take seconds.
"""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from daybreak.cli import main
from daybreak.train import checkpoint

KILLS = 10
BATCH, EPOCH = 32, 18  # 600 images: 18 batches an epoch
IMAGES = BATCH * EPOCH * 6
SETTINGS = ["--method", "sit", "--images", str(IMAGES), "--batch-size", str(BATCH), "--seed", "3", "--save-minutes", "0",
            "--no-pictures", *(part for setting in (
                "encoder.width=64", "encoder.depth=1", "encoder.drop_path=0.1", "method.hidden=32", "method.output=16",
                "training.precision=32-true", "watch.probes=2", "watch.probe_bank=64", "watch.probe_queries=32", "data.threads=1")
                               for part in ("--set", setting))]


def daybreak(arguments: list[str], said: Path) -> None:
    """The command, in a process of its own, whose output goes to a file."""
    with open(said, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    main(arguments)


def newest(run: Path) -> int:
    """Images seen by the newest checkpoint of a run; 0 where there is none."""
    paths = checkpoint.every(run / "checkpoints")
    return checkpoint.images_seen(paths[-1]) if paths else 0


@pytest.mark.long
@pytest.mark.slow
def test_ten_kills_change_no_bit(textures, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["daybreak.verbs", "torch.utils.tensorboard"])
    run, said = tmp_path / "killed", tmp_path / "said.txt"
    command = ["pretrain", str(textures), "--out", str(run), *SETTINGS]
    starts = [0]  # images seen by the checkpoint that each process began from
    for kill in range(1, KILLS + 1):
        process = context.Process(target=daybreak, args=(command, said))
        process.start()
        goal = max(IMAGES * kill // (KILLS + 2), starts[-1] + 2 * BATCH)
        while newest(run) < goal or not 1 <= newest(run) // BATCH % EPOCH <= EPOCH - 4:  # it may save again before it dies
            assert process.is_alive() and newest(run) < IMAGES, f"it ended before kill {kill}:\n{said.read_text()}"
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        state = checkpoint.load_last(run / "checkpoints")
        assert state["images_seen"] > starts[-1] and 0 < state["loader"]["position"] < EPOCH, state["loader"]
        starts.append(state["images_seen"])
        command = ["pretrain", "--resume", str(run)]
    whole = tmp_path / "whole"
    for arguments in (command, ["pretrain", str(textures), "--out", str(whole), *SETTINGS]):
        process = context.Process(target=daybreak, args=(arguments, said))
        process.start()
        process.join()
        assert process.exitcode == 0, said.read_text()
    text = said.read_text()
    for images in starts[1:]:
        epoch, position = divmod(images // BATCH, EPOCH)
        assert f"going on at image {images:,} (epoch {epoch}, batch {position} of {EPOCH})" in text
    mine, theirs = (checkpoint.load_last(folder / "checkpoints") for folder in (run, whole))
    assert mine["images_seen"] == theirs["images_seen"] == IMAGES
    assert mine["method"].keys() == theirs["method"].keys()
    assert all(torch.equal(mine["method"][k], theirs["method"][k]) for k in mine["method"])
    assert (run / "results.json").read_text() == (whole / "results.json").read_text()
