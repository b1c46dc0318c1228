"""norm_relu_pool: value, gradients and second-order products, against PyTorch's three operators.

Shapes: the three blocks of the ConvNet that the field distils CIFAR-10 with, instance norm.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from providers import compiled
from tolerance import assert_norm_no_worse

from mim4dd import norm_relu_pool


class Case(NamedTuple):
    order: int  # of derivatives: 0, 1 or 2
    batch: int
    channels: int
    size: int
    channels_last: bool = False

    def __str__(self) -> str:
        order = ("fwd", "fwd+bwd", "fwd+bwd+bwd")[self.order]
        layout = "channels-last" if self.channels_last else "planes"
        return f"{order}-{self.batch}x{self.channels}x{self.size}x{self.size}-{layout}"


CASES = {
    "tiny": [Case(order, 2, 8, 8, last) for order in range(3) for last in (False, True)],
    "full": [
        Case(order, batch, 128, size, last)
        for order in range(3)
        for batch in (10, 100)
        for size in (32, 16, 8)
        for last in (False, True)
    ],
    "short": [Case(order, batch, 128, 32) for order in range(3) for batch in (10, 100)],
}


def plain(input, weight, bias):
    return F.avg_pool2d(F.group_norm(input, input.shape[1], weight, bias).relu(), 2)


def fused(input, weight, bias):
    return norm_relu_pool(input, weight, bias, num_groups=input.shape[1])


PROVIDERS = {"mim4dd": fused, "torch": plain, "torch.compile": compiled(plain)}


def left_out(case, provider):
    if provider == "torch.compile" and case.order == 2:
        return "torch.compile has no second derivative of what it compiled"
    return None


def results(function, inputs, grad_out, tangents, order):
    """The value and all derivatives up to ``order``."""
    value = function(*inputs)
    if order == 0:
        return [value]
    first = torch.autograd.grad(value, inputs, grad_out, create_graph=order == 2)
    if order == 1:
        return [value, *first]
    return [value, *first, *torch.autograd.grad(first, (*inputs[:2], grad_out), tangents)]


def bench_norm_relu_pool(case, provider, device, measure):
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    shape = (case.batch, case.channels, case.size, case.size)
    images = [
        torch.randn(shape),
        torch.randn(shape),
        torch.randn(*shape[:2], *[case.size // 2] * 2),
    ]
    x, along, grad_out = (t.to(device).contiguous(memory_format=layout) for t in images)
    weight, bias, *along_numbers = torch.randn(4, case.channels, device=device)
    given = ([x, weight, bias], grad_out, [along, *along_numbers])

    def run(function, dtype=torch.float32):
        inputs, upstream, tangents = (
            [t.to(dtype).requires_grad_(case.order > 0) for t in part]
            for part in (given[0], [given[1]], given[2])
        )
        return lambda: results(function, inputs, upstream[0], tangents, case.order)

    exact, reference = run(plain, torch.float64)(), run(plain)()

    def check(actual):
        for ours, theirs, right in zip(actual, reference, exact, strict=True):
            assert_norm_no_worse(ours.detach(), theirs.detach(), right.detach())

    # Read and written by any way that keeps nothing but the input: x and y; x, dy and dx; x, u and
    # dy, and both results.
    moved = [x.nbytes + grad_out.nbytes, 2 * x.nbytes + grad_out.nbytes]
    moved.append(3 * x.nbytes + 2 * grad_out.nbytes)
    measure(run(PROVIDERS[provider]), check, moved_bytes=sum(moved[: case.order + 1]))
