"""The losses on two processes: value and gradient of one process on the joined batch, with unequal halves."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from daybreak.nn import losses
from daybreak.nn.heads import BatchNorm

CUT = 5  # rows of the first rank, of 8


def nt_xent(one, two, mask):
    return losses.nt_xent(one, two, 0.3)


def info_nce(one, two, mask):
    return losses.info_nce(one, two, 0.2)


def masked_mean(one, two, mask):
    return losses.masked_mean((one - two) ** 2, mask)


def soft_cross_entropy(one, two, mask):
    return losses.mean_over_ranks(losses.soft_cross_entropy(one, two.softmax(-1)))


def cross_contrast(one, two, mask):  # a sample's two views stand side by side, so that ranks cut between samples
    return losses.cross_contrast(*(torch.cat(x.chunk(2, 1)) for x in (one, two)), 0.2)


def cross_views(one, two, mask):
    return losses.cross_views((one, two, one * two), (two.softmax(-1), one.softmax(-1)))


def known_bce(one, two, mask):
    return losses.known_bce(one + two, mask.float().where(two.detach() > -0.5, torch.nan))


def entropy(one, two, mask):
    return losses.mean_over_ranks(losses.entropy((one * two).softmax(-1)))


def batch_norm(one, two, mask):
    return losses.mean_over_ranks((BatchNorm(one.shape[1])(one) ** 3 * two).sum(-1))


ALL = [nt_xent, info_nce, cross_contrast, cross_views, masked_mean, known_bce, soft_cross_entropy, entropy, batch_norm]


def inputs():
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(8, 6, generator=generator), torch.randn(8, 6, generator=generator)
    return one, two, torch.rand(8, 6, generator=generator) > 0.4


def value_and_gradient(name, rows):
    one, two, mask = (x[rows] for x in inputs())
    one.requires_grad_(), two.requires_grad_()
    loss = globals()[name](one, two, mask)
    loss.backward()
    return loss.detach(), one.grad, two.grad


def worker(rank, file, names, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    rows = slice(0, CUT) if rank == 0 else slice(CUT, 8)
    queue.put((rank, {name: [x.numpy() for x in value_and_gradient(name, rows)] for name in names}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each of two processes finds for every loss."""
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    file = tmp_path_factory.mktemp("ranks") / "meet"
    processes = [context.Process(target=worker, args=(r, file, [f.__name__ for f in ALL], queue)) for r in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    return [{name: [torch.from_numpy(x) if x.ndim else torch.tensor(x) for x in values] for name, values in found[r].items()}
            for r in range(2)]


@pytest.mark.parametrize("name", [f.__name__ for f in ALL])
def test_two_ranks_equal_one(name, two_ranks):
    """DDP averages gradients over ranks, so their mean (each over its own rows) must be the joined batch's."""
    loss, one, two = value_and_gradient(name, slice(0, 8))
    first, second = (ranks[name] for ranks in two_ranks)
    assert torch.allclose((first[0] + second[0]) / 2, loss, atol=1e-5)
    assert torch.allclose(torch.cat([first[1], second[1]]) / 2, one, atol=1e-5)
    assert torch.allclose(torch.cat([first[2], second[2]]) / 2, two, atol=1e-5)
