"""3×3 convolutions by Winograd's algorithm and their derivatives, against those of PyTorch.

The inner blocks of the ConvNet-3 of width 128 that the field distils CIFAR-10 with. The rate counts
the operations of the definition, so that it may be above the peak of the CPU.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from contrastive import THREADS, threads_of
from tolerance import assert_norm_no_worse

import mim4dd.ops.conv3x3  # noqa: F401  defines the operators


class Case(NamedTuple):
    what: str
    batch: int
    size: int
    channels: int = 128
    threads: int = THREADS[-1]

    def __str__(self) -> str:
        shape = f"B={self.batch} C={self.channels} {self.size}x{self.size}"
        return " ".join([self.what, shape, *threads_of(self)])


class Inputs(NamedTuple):
    grad_out: torch.Tensor
    input: torch.Tensor
    weight: torch.Tensor
    cotangent_input: torch.Tensor
    cotangent_weight: torch.Tensor


def forward(x):
    return [F.conv2d(x.input, x.weight, padding=1)]


def gradients(grad_out, input, weight, mask):
    out = weight.shape[:1]
    return torch.ops.aten.convolution_backward(
        grad_out, input, weight, out, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*mask, False]
    )[:2]


def second(x):
    grad_grad_out = F.conv2d(x.cotangent_input, x.weight, padding=1)
    grad_grad_out += F.conv2d(x.input, x.cotangent_weight, padding=1)
    grad_input, _ = gradients(x.grad_out, x.input, x.cotangent_weight, [True, False])
    _, grad_weight = gradients(x.grad_out, x.cotangent_input, x.weight, [False, True])
    return [grad_grad_out, grad_input, grad_weight]


OPS = torch.ops.mim4dd
# What: (convolutions it is, ours, PyTorch's).
WHATS = {
    "forward": (1, lambda x: [OPS.conv3x3(x.input, x.weight, None)], forward),
    "grad_input": (
        1,
        lambda x: OPS.conv3x3_bwd(*x[:3], [True, False])[:1],
        lambda x: gradients(*x[:3], [True, False])[:1],
    ),
    "grad_weight": (
        1,
        lambda x: OPS.conv3x3_bwd(*x[:3], [False, True])[1:],
        lambda x: gradients(*x[:3], [False, True])[1:],
    ),
    "second": (4, lambda x: OPS.conv3x3_bwd_bwd(*x[3:], *x[:3], [True] * 3), second),
}
PROVIDERS = {
    "mim4dd": torch.channels_last,
    "torch channels-last": torch.channels_last,
    "torch": torch.contiguous_format,
}
SHAPES = [(batch, size) for batch in (10, 100, 256) for size in (16, 8)]
CASES = {
    "tiny": [Case(what, 3, 5, 20) for what in WHATS],
    "full": [
        Case(what, *shape, threads=threads)
        for what in WHATS
        for shape in SHAPES
        for threads in THREADS
    ],
    "short": [Case(what, 10, size) for what in WHATS for size in (16, 8)],
}


def left_out(case, provider):
    return "the operators are for the CPU" if torch.cuda.is_available() else None


def bench_conv3x3(case, provider, device, measure):
    images = (case.batch, case.channels, case.size, case.size)
    filters = (case.channels, case.channels, 3, 3)
    tensors = map(torch.randn, (images, images, filters, images, filters))
    inputs = Inputs(*(tensor.to(memory_format=PROVIDERS[provider]) for tensor in tensors))
    count, ours, theirs = WHATS[case.what]
    run = ours if provider == "mim4dd" else theirs

    def check(actual):
        exact = theirs(Inputs(*(tensor.double() for tensor in inputs)))
        for answers in zip(actual, theirs(inputs), exact, strict=True):
            assert_norm_no_worse(*answers)

    flop = count * 2 * 9 * case.channels * inputs.grad_out.numel()
    measure(lambda: run(inputs), check, **case._asdict(), flop=flop)
