"""Many calls of every loss, and many unrolls: what stays behind, and whether results stay the same.

    python tests/soak.py --calls 100000 --unrolls 500         or: make soak

After each tenth it prints the bytes in use by malloc, threads and file handles. Bytes are what a
line through the later half gains per call: under 1 is flat. Exit status 1 says that one is not.
"""

import argparse
import ctypes
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from mim4dd import (  # noqa: E402
    clip_loss,
    flatten_parameters,
    info_nce,
    log_sum_exp,
    nce,
    sup_con,
    trajectory_loss,
    unroll_sgd,
)

_MOST = 1.0  # bytes a call
_SHAPES = (
    *((1, 1, 1), (7, 3, 5), (16, 16, 16), (33, 65, 8)),
    *((64, 128, 32), (100, 100, 17), (2, 257, 64)),
)
_DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float64)


class _Information(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33 and later."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks")),
        ("keepcost", ctypes.c_size_t),
    ]


_LIBC = ctypes.CDLL(None)
_LIBC.mallinfo2.restype = _Information


class State(NamedTuple):
    """What a process holds."""

    bytes: int
    threads: int
    handles: int

    @staticmethod
    def now() -> "State":
        """Of this one, once Python has given back what it can."""
        gc.collect()
        malloc = _LIBC.mallinfo2()
        return State(
            malloc.uordblks + malloc.hblkhd,
            len(os.listdir("/proc/self/task")),
            len(os.listdir("/proc/self/fd")),
        )


def losses(number: int) -> list[torch.Tensor]:
    """Losses and gradients of the call of this number: of mixed losses, shapes and dtypes."""
    n, m, d = _SHAPES[number % len(_SHAPES)]
    kind = number // len(_SHAPES) % 6
    dtype = _DTYPES[number // (6 * len(_SHAPES)) % len(_DTYPES)]
    generator = torch.Generator().manual_seed(number)
    if kind in (0, 1):
        m = n
    leaves = [torch.randn(rows, d, generator=generator).to(dtype) for rows in (n, m)]
    query, key = (leaf.requires_grad_() for leaf in leaves)
    labels, key_labels = torch.arange(n) % 3, torch.arange(m) % 3
    value = (
        lambda: info_nce(query, key),
        lambda: clip_loss(query, key, normalize=True),
        lambda: sup_con(query, key, labels, key_labels),
        lambda: sup_con(query, key, labels, key_labels, variant="in"),
        lambda: nce(query, key, labels, key_labels),
        lambda: log_sum_exp(query, key).sum(),
    )[kind]()
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def unroll(number: int) -> list[torch.Tensor]:
    """A trajectory and its gradients, of a few steps and options."""
    generator = torch.Generator().manual_seed(number)
    torch.manual_seed(number)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    theta = flatten_parameters(model)
    images = torch.randn(6, 1, 8, 8, generator=generator).requires_grad_()
    labels, steps = torch.arange(6) % 3, 2 + number % 4
    batches = torch.randint(6, (steps, 3), generator=generator)
    lr = torch.tensor(0.05, requires_grad=True)
    places = ("device", "host", "checkpoints")
    end = unroll_sgd(
        model, theta, images, labels, batches, lr=lr, momentum=0.5 * (number % 2),
        history=places[number % 3], memory_budget=10**6 * (number % 2), loss=F.cross_entropy,
    )  # fmt: skip
    loss = trajectory_loss(end, theta, theta + 0.1)
    return [end.detach(), loss.detach(), *torch.autograd.grad(loss, (images, lr))]


def soak(name: str, call: Callable[[int], object], number: int, period: int) -> bool:
    """Whether so many calls, which repeat after ``period``, leave nothing behind."""
    first = [call(index) for index in range(period)]
    tenth, states = max(period, number // 10), []
    started, done = time.perf_counter(), 0
    while done < number:
        for index in range(done, done + tenth):
            call(index % period)
        done += tenth
        states.append(State.now())
        seconds = time.perf_counter() - started
        print(f"{name} {done}: {states[-1]._asdict()}, {seconds:.0f} s", flush=True)
    same = all(
        torch.equal(old, new)
        for index in range(period)
        for old, new in zip(first[index], call(index), strict=True)
    )
    later = states[len(states) // 2 :]
    calls = [tenth * index for index in range(len(later))]
    slope = statistics.linear_regression(calls, [each.bytes for each in later]).slope
    kept = all(each[1:] == states[0][1:] for each in states)
    print(
        f"{name}: {done} calls, {slope:.3f} bytes a call, threads and handles "
        f"{'flat' if kept else 'NOT flat'}, results {'the same bits' if same else 'OTHER bits'}"
    )
    return slope < _MOST and kept and same


def main() -> None:
    """Soak both; exit with 1 where one is not flat."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--unrolls", type=int, default=500)
    options = parser.parse_args()
    if options.calls < 4000 or options.unrolls < 100:
        parser.error("of fewer than 4000 calls and 100 unrolls nothing can be said")
    every = len(_SHAPES) * 6 * len(_DTYPES)
    flat = [
        soak("losses", losses, options.calls, every),
        soak("unrolls", unroll, options.unrolls, 24),
    ]
    raise SystemExit(not all(flat))


if __name__ == "__main__":
    main()
