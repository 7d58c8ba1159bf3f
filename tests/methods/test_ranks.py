"""Every method on two processes: loss and gradients of one process on the joined batch, with unequal halves."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import noise_batch, step_for, tiny_method

from daybreak.data.batch import Batch
from daybreak.methods import base
from daybreak.nn import losses

COUNT, CUT = 48, 32  # samples, and those of the first rank: whole cells of 16, which ranks never split


def part_of(batch: Batch, rows: slice) -> Batch:
    return replace(batch, images=[x[rows] for x in batch.images], boxes=batch.boxes[:, rows], flips=batch.flips[:, rows],
                   index=batch.index[rows], sizes=batch.sizes[rows], labels=None if batch.labels is None else batch.labels[rows])


def loss_and_gradients(name: str, rows: slice) -> dict[str, torch.Tensor]:
    """The loss under "", then the gradient of each parameter, after one step that moved teacher, centre and queue."""
    method = tiny_method(name)
    batch = part_of(noise_batch(method, COUNT), rows)
    step = step_for(batch)
    with torch.no_grad():  # a first step, so that what follows batches (a centre, a teacher) is the joined batch's
        method(batch, step)
    method.after_step(step)
    loss = method(batch, step).value
    loss.backward()
    return {"": loss.detach()} | {key: p.grad for key, p in method.named_parameters() if p.grad is not None}


def no_gradient_through_gather(x):
    return x if losses.world_size() == 1 else losses._Gather.apply(x.detach(), losses.sizes_over_ranks(x))


def worker(rank: int, file: str, cut_gather: bool, folder: str) -> None:
    torch.set_num_threads(1)
    if cut_gather:
        losses.gather = no_gradient_through_gather
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    rows = slice(0, CUT) if rank == 0 else slice(CUT, COUNT)
    names = ["simclr"] if cut_gather else base.names()
    torch.save({name: loss_and_gradients(name, rows) for name in names}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def averaged(folder, *, cut_gather: bool = False) -> dict[str, dict[str, torch.Tensor]]:
    """What DDP makes of two ranks, for each method: the mean over ranks of loss and gradients."""
    mp.start_processes(worker, (str(folder / "meet"), cut_gather, str(folder)), nprocs=2, start_method="spawn")
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    return {name: {key: (first[name][key] + second[name][key]) / 2 for key in first[name]} for name in first}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return averaged(tmp_path_factory.mktemp("ranks"))


def difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest one, in units of the largest gradient of its parameter where that is above 1."""
    assert found.keys() == wanted.keys()
    return max(float((found[key] - wanted[key]).abs().max() / wanted[key].abs().max().clamp(min=1)) for key in wanted)


@pytest.mark.parametrize("name", base.names())
def test_two_ranks_equal_one(name, two_ranks):
    assert difference(two_ranks[name], loss_and_gradients(name, slice(0, COUNT))) < 1e-5


def test_without_the_gradient_of_gather_they_do_not(tmp_path):
    found = averaged(tmp_path, cut_gather=True)["simclr"]
    assert difference(found, loss_and_gradients("simclr", slice(0, COUNT))) > 1e-4
