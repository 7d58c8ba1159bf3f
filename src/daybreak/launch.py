"""Several devices: one process each on this machine, or those that torchrun or Slurm started.

The processes are ``python -m daybreak`` on the resolved configuration of a run folder, never the caller's script
again, so it makes no difference whether a script, a notebook or a test asked for them.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from .data.threads import default_threads
from .errors import Failed, Refused
from .signals import caught

SAVED = (128 + signal.SIGTERM, 128 + signal.SIGINT)  # exit codes of a process that was asked to end, and saved
GRACE = 10  # seconds that the others have to end by themselves after one died: they wait for it and can't go on


@dataclass(frozen=True)
class World:
    """Processes of one run that somebody started: how many on each machine, and on how many machines."""

    per_node: int
    nodes: int
    rank: int

    @property
    def size(self) -> int:
        return self.per_node * self.nodes


def world_here() -> World | None:
    """What this process is part of, as torchrun, :func:`spawn` or Slurm's ``srun`` say; None where it is alone."""
    env = os.environ
    if "LOCAL_RANK" in env and int(env.get("WORLD_SIZE", 1)) > 1:
        size = int(env["WORLD_SIZE"])
        local = int(env.get("LOCAL_WORLD_SIZE", size))
        return World(local, size // local, int(env["RANK"]))
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # a step of srun, not the batch script around it
        nodes = int(env.get("SLURM_STEP_NUM_NODES", 1))
        return World(int(env["SLURM_STEP_NUM_TASKS"]) // nodes, nodes, int(env["SLURM_PROCID"]))
    return None


class SlurmStep(SLURMEnvironment):
    """A step of srun, without Lightning's checks: they refuse ``--ntasks``, which Slurm itself lays out over the nodes."""

    def __init__(self) -> None:
        pass  # what the base keeps here is of its requeueing, which is not used


def cluster_here() -> ClusterEnvironment:
    """Who started the processes, as ``world_here`` sees it; Fabric would take a Slurm batch script for a step of srun."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    return LightningEnvironment() if world_here() is None or "LOCAL_RANK" in os.environ else SlurmStep()


def check_devices(devices: int, device: str) -> None:
    """Refuse more devices than there are; processes on a CPU are as many as one likes."""
    here = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device, devices)
    if devices > here:
        raise Refused(f"--devices {devices}: there are {here} {device} devices here; use --devices {here} or fewer.")


def spawn(arguments: Sequence[str], devices: int) -> int | None:
    """Run ``python -m daybreak ARGUMENTS`` once for each device and wait for all; only the first one prints.

    SIGTERM and Ctrl-C are passed on; the processes save and end.

    Returns:
        The signal that ended them, or None.

    Raises:
        Failed: one of them died; the others are ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, default_threads() // devices)))
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(devices), "NODE_RANK": "0",
              "LOCAL_WORLD_SIZE": str(devices), "OMP_NUM_THREADS": threads}
    processes = [subprocess.Popen([sys.executable, "-m", "daybreak", *arguments], start_new_session=True,
                                  env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
                 for rank in range(devices)]

    def pass_on(number: int) -> None:
        for process in processes:
            process.send_signal(number)

    try:
        with caught(pass_on):
            bad = first_bad_end(processes)
    finally:
        for process in processes:
            process.kill()  # does nothing to one that has ended
            process.wait()
    if bad is None:
        return None
    rank, code = bad
    if code in SAVED:
        return code - 128
    how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    raise Failed(f"process {rank} of {devices} ended {how}, and the others were ended; what was saved is whole.")


def first_bad_end(processes: Sequence[subprocess.Popen]) -> tuple[int, int] | None:
    """Wait for all; (number, exit code) of the first that did not end well, once the others ended or had their time."""
    bad, deadline = None, float("inf")
    while True:
        codes = [process.poll() for process in processes]
        ended = {rank: code for rank, code in enumerate(codes) if code}
        if bad is None and ended:
            bad = min(ended.items(), key=lambda item: item[1])  # one that was killed, before those that noticed
            if bad[1] not in SAVED:
                deadline = time.monotonic() + GRACE
        if None not in codes or time.monotonic() > deadline:
            return bad
        time.sleep(0.1)
