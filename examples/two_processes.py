"""Train by a contrastive loss on two processes, whose queries see the keys of both.

    python examples/two_processes.py

It starts the processes itself; with torchrun, take `train` as the program. The group is the only
word that is not in the same training on one process.
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

import mim4dd
from mim4dd.distill.data import load_data

PROCESSES = 2


def train(rank: int, folder: str) -> None:
    """One process: half of every batch, the gradient of the whole one."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES
    )
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = load_data("digits")
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    encoder = nn.parallel.DistributedDataParallel(network)  # averages gradients over the ranks
    criterion = mim4dd.SupConLoss(temperature=0.1, normalize=True)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        rows = torch.randperm(len(data.image_train))[:512].chunk(PROCESSES)[rank]
        features, labels = encoder(data.image_train[rows]), data.label_train[rows]
        loss = criterion(
            features, features, labels, labels, exclude_self=True, group=dist.group.WORLD
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())  # of the whole batch, the same number on each rank
    if rank == 0:
        torch.save((losses[0], losses[-1]), f"{folder}/losses.pt")
    dist.barrier()
    dist.destroy_process_group()


def main() -> tuple[float, float]:
    """The loss of the first batch, and of the last."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (folder,), PROCESSES)
        first, last = torch.load(Path(folder) / "losses.pt")
    return first, last


if __name__ == "__main__":
    first, last = main()
    print(f"loss of 512 digits on {PROCESSES} processes: {first:.2f} at first, {last:.2f} at last")
