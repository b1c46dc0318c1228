"""3×3 convolutions of images and their two gradients, against PyTorch's.

The first block of the ConvNets that the field distils with. The rate counts the operations of the
definition.
"""

from typing import NamedTuple

import torch
from contrastive import THREADS, threads_of
from tolerance import assert_norm_no_worse

import mim4dd.ops.conv3x3_narrow  # noqa: F401  defines the operator


class Case(NamedTuple):
    batch: int
    size: int
    channels: int = 3
    out: int = 128
    threads: int = THREADS[-1]
    part: str = "input"  # of which the gradient is, or "output"

    def __str__(self) -> str:
        shape = f"{self.part} B={self.batch} {self.channels}->{self.out} {self.size}x{self.size}"
        return " ".join([shape, *threads_of(self)])


class Inputs(NamedTuple):
    grad_out: torch.Tensor
    input: torch.Tensor
    weight: torch.Tensor


def ours(x, part):
    if part == "output":
        return torch.ops.mim4dd.conv3x3_narrow(x.input, x.weight, None)
    mask = [part == "input", part == "weight"]
    return torch.ops.mim4dd.conv3x3_narrow_bwd(*x, mask)[mask.index(True)]


def theirs(x, part):
    stride, padding, dilation = [1, 1], [1, 1], [1, 1]
    geometry = stride, padding, dilation, False, [0, 0], 1
    if part == "output":
        return torch.ops.aten.convolution(x.input, x.weight, None, *geometry)
    mask = [part == "input", part == "weight", False]
    out = x.weight.shape[:1]
    return torch.ops.aten.convolution_backward(*x, out, *geometry, mask)[mask.index(True)]


# Name: (what is called, its memory layout).
PROVIDERS = {
    "mim4dd": (ours, torch.channels_last),
    "torch channels-last": (theirs, torch.channels_last),
    "torch": (theirs, torch.contiguous_format),
}
CASES = {
    "tiny": [Case(3, 5, out=20, part=part) for part in ("output", "weight", "input")],
    "full": [
        *(Case(batch, 32, threads=threads) for batch in (1, 10, 100) for threads in THREADS),
        *(Case(10, 32, channels) for channels in (1, 4, 8)),
        *(Case(10, 32, out=out) for out in (16, 32, 256)),
        *(Case(10, 28, 1, part=part) for part in ("output", "weight", "input")),
        *(Case(10, 8, 1, 32, part=part) for part in ("output", "weight", "input")),
        *(Case(10, 32, part=part) for part in ("output", "weight")),
        Case(10, 64, out=64),
    ],
    "short": [Case(batch, 32) for batch in (10, 100)],
}


def left_out(case, provider):
    return "the operator is for the CPU" if torch.cuda.is_available() else None


def bench_conv3x3_narrow(case, provider, device, measure):
    run, memory_format = PROVIDERS[provider]
    shapes = (
        (case.batch, case.out, case.size, case.size),
        (case.batch, case.channels, case.size, case.size),
        (case.out, case.channels, 3, 3),
    )
    inputs = Inputs(*(torch.randn(s).to(memory_format=memory_format) for s in shapes))

    def check(actual):
        exact = theirs(Inputs(*(tensor.double() for tensor in inputs)), case.part)
        assert_norm_no_worse(actual, theirs(inputs, case.part), exact)

    flop = 2 * 9 * case.channels * inputs.grad_out.numel()
    measure(lambda: run(inputs, case.part), check, **case._asdict(), flop=flop)
