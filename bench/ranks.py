"""InfoNCE over gloo ranks: time, peak memory and bytes sent, by ring, by gathering, as others do.

    python bench/ranks.py --ranks 2 4 --pairs 8192 --dimension 256

Ranks share this machine's cores, so times tell what a way costs, not how it scales. The delay is a
network's: a message that is waited for is there no sooner than so many seconds after it was sent.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn
import torch.nn.functional as F
from peak_memory import peak_memory
from torch import Tensor

from mim4dd import Ranks, info_nce
from mim4dd.ops.contrastive import exchange

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from on_ranks import on_ranks

MIB = 2**20


def gathered(query: Tensor, key: Tensor) -> Tensor:
    """As open_clip with local_loss and gather_with_grad: all logits of the local queries."""
    keys = torch.cat(dist.nn.all_gather(key))
    target = torch.arange(len(query)) + dist.get_rank() * len(query)
    return F.cross_entropy(query @ keys.T / 0.1, target)


def ours(how: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda query, key: info_nce(query, key, group=Ranks(dist.group.WORLD, exchange=how))


WAYS = {"ring": ours("ring"), "gather": ours("gather"), "gather, all logits": gathered}


class Late:
    """Work that is done no sooner than a network's delay after it was begun."""

    def __init__(self, work: Any, ready: float) -> None:
        self.work, self.ready = work, ready

    def wait(self) -> None:
        """Until then."""
        self.work.wait()
        time.sleep(max(0.0, self.ready - time.perf_counter()))


def on_rank(_rank: int, world: int, pairs: int, dimension: int, rounds: int, delay: float) -> list:
    """By way: seconds of each round, peak bytes beyond the features, bytes sent by rings."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of dist.nn
    sent = 0
    begin = dist.batch_isend_irecv

    def counted(messages: list[dist.P2POp]) -> list:
        nonlocal sent
        sent += sum(each.tensor.nbytes for each in messages if each.op is dist.isend)
        return [Late(work, time.perf_counter() + delay) for work in begin(messages)]

    exchange.dist.batch_isend_irecv = counted
    features = [torch.randn(pairs // world, dimension, requires_grad=True) for _ in range(2)]

    def step(way: str) -> None:
        for each in features:
            each.grad = None
        WAYS[way](*(F.normalize(each) for each in features)).backward()

    results: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in [*WAYS] * (rounds + 1):
        dist.barrier()
        started = time.perf_counter()
        step(way)
        results[way].append(time.perf_counter() - started)
    sent = 0
    step("ring")
    by_ring = sent
    peaks = [peak_memory(lambda way=way: step(way)) for way in WAYS]
    return [[torch.tensor(results[way][1:]) for way in WAYS], peaks, by_ring]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--pairs", type=int, default=8192, help="of all ranks together")
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that a message takes")
    arguments = parser.parse_args()
    print("ranks  way                   seconds (spread)      peak MiB a rank  MiB sent a rank")
    for world in arguments.ranks:
        with tempfile.TemporaryDirectory() as folder:
            by_rank = on_ranks(
                world, on_rank, Path(folder), world, arguments.pairs, arguments.dimension,
                arguments.rounds, arguments.delay, seconds=3600,
            )  # fmt: skip
        for place, way in enumerate(WAYS):
            # A step is over when the last rank's is.
            seconds = [
                max(map(float, each))
                for each in zip(*(rank[0][place] for rank in by_rank), strict=True)
            ]
            peak = max(rank[1][place] for rank in by_rank) / MIB
            sent = f"{max(rank[2] for rank in by_rank) / MIB:.1f}" if way == "ring" else ""
            spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
            middle = statistics.median(seconds)
            print(f"{world:<6} {way:<21} {middle:.2f} ({spread})   {peak:>10.1f} {sent:>16}")


if __name__ == "__main__":
    main()
