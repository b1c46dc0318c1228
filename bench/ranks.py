"""InfoNCE over gloo ranks: time, peak memory and bytes sent, by ring, by gathering, as others do.

    python bench/ranks.py --ranks 2 4 --pairs 8192 --dimension 256
    python bench/ranks.py --ranks 2 --delay 0.01      # a ring whose messages take 10 ms longer

Ranks share this machine's cores, so times tell what a way costs, not how it scales. Memory is what
the loss and its gradients take beside the features, beside that of one process with all pairs. The
delay is a network's: a message is there no sooner than so many seconds after it was sent.
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

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests/support"))
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
LATE, WAITED = "ring, late messages", "the same, waited for"  # at once, as without overlap


class Late:
    """Work that is done no sooner than a network's delay after it was begun."""

    def __init__(self, work: Any, ready: float) -> None:
        self.work, self.ready = work, ready

    def wait(self) -> None:
        """Until then."""
        self.work.wait()
        time.sleep(max(0.0, self.ready - time.perf_counter()))


class Messages:
    """Those of rings: how many bytes, and how many seconds each takes longer than here."""

    def __init__(self, delay: float) -> None:
        self.sent, self.delay, self.way = 0, delay, ""
        self._begin = dist.batch_isend_irecv

    def begin(self, messages: list[dist.P2POp]) -> list[Any]:
        """In place of PyTorch's."""
        self.sent += sum(each.tensor.nbytes for each in messages if each.op is dist.isend)
        under_way = self._begin(messages)
        if self.way not in (LATE, WAITED):
            return under_way
        late = [Late(work, time.perf_counter() + self.delay) for work in under_way]
        if self.way == LATE:
            return late
        for each in late:  # once: gloo would wait for another message
            each.wait()
        return []


def all_ways(delay: float) -> list[str]:
    return [*WAYS, *([LATE, WAITED] if delay else [])]


def features_of(world: int, pairs: int, dimension: int) -> list[Tensor]:
    return [F.normalize(torch.randn(pairs // world, dimension)).requires_grad_() for _ in range(2)]


def on_rank(_rank: int, world: int, pairs: int, dimension: int, rounds: int, delay: float) -> list:
    """By way: seconds of each round, peak bytes beyond the features; bytes sent by a ring."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of dist.nn
    messages = Messages(delay)
    exchange.dist.batch_isend_irecv = messages.begin
    features = features_of(world, pairs, dimension)

    def step(way: str) -> None:
        for each in features:
            each.grad = None
        messages.way = way
        WAYS["ring" if way in (LATE, WAITED) else way](*features).backward()

    ways = all_ways(delay)
    results: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways * (rounds + 1):
        dist.barrier()
        started = time.perf_counter()
        step(way)
        results[way].append(time.perf_counter() - started)
    messages.sent = 0
    step("ring")
    by_ring = messages.sent
    peaks = []
    for way in ways:
        for each in features:
            each.grad = None
        peaks.append(peak_memory(lambda way=way: step(way)))
    return [[torch.tensor(results[way][1:]) for way in ways], peaks, by_ring]


def of_one_process(_rank: int, pairs: int, dimension: int) -> int:
    """Peak bytes beyond the features, of all pairs."""
    query, key = features_of(1, pairs, dimension)
    info_nce(query, key).backward()
    query.grad = key.grad = None
    return peak_memory(lambda: info_nce(query, key).backward())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--pairs", type=int, default=8192, help="of all ranks together")
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that a message takes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = arguments.pairs, arguments.dimension
        (whole,) = on_ranks(1, of_one_process, Path(folder), *sizes, seconds=3600)
    print(f"one process: {whole / MIB:.1f} MiB")
    print(
        "ranks  way                    seconds (spread)      MiB a rank (of one process)  MiB sent"
    )
    for world in arguments.ranks:
        with tempfile.TemporaryDirectory() as folder:
            by_rank = on_ranks(
                world, on_rank, Path(folder), world, *sizes, arguments.rounds, arguments.delay,
                seconds=3600,
            )  # fmt: skip
        ring: list[float] = []
        for place, way in enumerate(all_ways(arguments.delay)):
            # A step is over when the last rank's is.
            seconds = [
                max(map(float, each))
                for each in zip(*(rank[0][place] for rank in by_rank), strict=True)
            ]
            peak = max(rank[1][place] for rank in by_rank)
            spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
            share, note = f"{peak / MIB:.1f} ({peak / whole:.2f})", ""
            if way == "ring":
                ring, note = seconds, f"{max(rank[2] for rank in by_rank) / MIB:.1f}"
            elif way in (LATE, WAITED):  # beside the same round's without a delay
                ratios = [late / plain for late, plain in zip(seconds, ring, strict=True)]
                note = f"{statistics.median(ratios):.2f} x ring"
                note += f" ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{world:<6} {way:<22} {spread:<22} {share:>20}   {note}", flush=True)


if __name__ == "__main__":
    main()
