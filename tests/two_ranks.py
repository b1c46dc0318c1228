"""Functions that run on two gloo processes at once, and what runs them."""

import multiprocessing

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mim4dd

# As in ranked.py, with which it shares the server.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["mim4dd.__main__", "mim4dd.cli"])


def on_two_ranks(function, folder, *arguments):
    """What ``function(*arguments)``, a function of this file, returns on each rank."""
    children = [
        _SERVER.Process(target=_main, args=(rank, folder, function, arguments)) for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    hanging = [child for child in children if child.is_alive()]
    for child in hanging:
        child.kill()
    assert not hanging
    assert [child.exitcode for child in children] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _main(rank, folder, function, arguments):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    torch.save(function(*arguments), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


class _Contrast(nn.Module):
    """MoCo's step, with the queue in the model that is trained."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.queue = mim4dd.KeyQueue(num_keys=12, dimension=3)

    def forward(self, images, key):
        loss = mim4dd.info_nce(self.encoder(images), key, negative_keys=self.queue.keys)
        self.queue.push(key)
        return loss


def queue_within_ddp():
    """The queue after a push before DDP and three of its steps, and all that was pushed."""
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    model = _Contrast()
    pushed = [torch.randn(4, 3)]
    model.queue.push(pushed[0])
    parallel = DistributedDataParallel(model)
    for _ in range(3):
        pushed.append(torch.randn(4, 3))
        parallel(torch.randn(4, 3), pushed[-1]).backward()
    return {"keys": model.queue.keys, "pushed": torch.cat(pushed), "filled": len(model.queue)}
