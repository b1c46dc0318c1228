"""One call of each op, small to be checked and large to be looked at by profilers.

python -m stages.launches NAME …    makes the calls; --large in the sizes of the benchmarks
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import mim4dd

HALF, SINGLE = torch.bfloat16, torch.float32
# Relative, by the norm: the products are of half precision, and gradients are rounded to it.
ALLOWED = {HALF: 2e-2, torch.float16: 3e-3, SINGLE: 1e-4}
SEED = 0


class Launch(NamedTuple):
    """A call: ``call(*inputs)`` is ours, ``call(*inputs, backend="reference")`` its definition."""

    call: Callable[..., list[Tensor]]
    inputs: list[Tensor]


def loss_and_gradients(loss: Callable[..., Tensor], order: int, *sides: Tensor, **options):
    """The value, and derivatives by the first two, up to ``order``."""
    value = loss(*sides, **options)
    if not order:
        return [value]
    first = torch.autograd.grad(value, sides[:2], create_graph=order > 1)
    if order == 1:
        return [value, *first]
    along = sum(part.square().sum() for part in first)
    return [value, *first, *torch.autograd.grad(along, sides[:2])]


def contrast(
    name: str, order: int, device: str, N: int, D: int, dtype: torch.dtype, **options
) -> Launch:
    """Of a loss of ``mim4dd``; ``sup_con`` with ten classes."""
    draws = torch.Generator().manual_seed(SEED)
    sides = [
        F.normalize(torch.randn(N, D, generator=draws), dim=1).to(device, dtype).requires_grad_()
        for _ in range(2)
    ]
    labels = [torch.arange(N, device=device) % 10] * 2 if name == "sup_con" else []
    call = partial(loss_and_gradients, getattr(mim4dd, name), order, **options)
    return Launch(call, [*sides, *labels])


def pooled(order: int, device: str, N: int) -> Launch:
    """norm_relu_pool in the first block of the field's ConvNet."""
    draws = torch.Generator().manual_seed(SEED)
    x = torch.randn(N, 128, 32, 32, generator=draws).to(device).requires_grad_()
    weight = torch.randn(128, generator=draws).to(device).requires_grad_()
    bias = torch.randn(128, generator=draws).to(device)

    def loss(x, weight, bias, **options):
        return mim4dd.norm_relu_pool(x, weight, bias, num_groups=128, **options).square().mean()

    return Launch(partial(loss_and_gradients, loss, order), [x, weight, bias])


def distance(device: str, P: int) -> Launch:
    """trajectory_loss with its gradients."""
    draws = torch.Generator().manual_seed(SEED)
    thetas = [torch.randn(P, generator=draws).to(device).requires_grad_() for _ in range(3)]
    return Launch(partial(loss_and_gradients, mim4dd.trajectory_loss, 1), thetas)


# N, D: of many tiles and a part of one.
SMALL: dict[str, Callable[[str], Launch]] = {
    "info_nce forward": lambda on: contrast("info_nce", 0, on, 300, 128, HALF),
    "info_nce": lambda on: contrast("info_nce", 1, on, 300, 128, HALF),
    "info_nce float16": lambda on: contrast("info_nce", 1, on, 264, 64, torch.float16),
    "info_nce float32": lambda on: contrast("info_nce", 1, on, 140, 64, SINGLE),
    "info_nce wide": lambda on: contrast("info_nce", 1, on, 200, 256, HALF),
    "info_nce second order": lambda on: contrast("info_nce", 2, on, 100, 48, SINGLE),
    "sup_con": lambda on: contrast("sup_con", 1, on, 300, 128, HALF),
    "sup_con in": lambda on: contrast("sup_con", 1, on, 300, 100, HALF, variant="in"),
    "clip_loss": lambda on: contrast("clip_loss", 1, on, 300, 512, HALF),
    "norm_relu_pool": lambda on: pooled(2, on, 3),
    "trajectory_loss": lambda on: distance(on, 100_003),
}
LARGE: dict[str, Callable[[str], Launch]] = {
    "info_nce forward": lambda on: contrast("info_nce", 0, on, 16384, 128, HALF),
    "info_nce": lambda on: contrast("info_nce", 1, on, 16384, 128, HALF),
    "info_nce wide": lambda on: contrast("info_nce", 1, on, 16384, 256, HALF),
    "sup_con": lambda on: contrast("sup_con", 1, on, 16384, 128, HALF),
    "clip_loss": lambda on: contrast("clip_loss", 1, on, 8192, 512, HALF),
    "norm_relu_pool": lambda on: pooled(1, on, 100),
}


def small(device: str) -> Iterator[tuple[str, Callable[[], Launch]]]:
    """Each by its name."""
    for name, make in SMALL.items():
        yield name, partial(make, device)


def checked(make: Callable[[], Launch]) -> dict:
    """The errors of a call's results against float64; an error where one is too large."""
    call, inputs = make()
    actual = call(*inputs)
    wide = [t.detach().double().requires_grad_() if t.is_floating_point() else t for t in inputs]
    exact = call(*wide, backend="reference")
    errors = [
        float((ours.double() - truth).norm() / truth.norm())
        for ours, truth in zip(actual, exact, strict=True)
    ]
    allowed = ALLOWED[inputs[0].dtype]
    if not all(error <= allowed for error in errors):  # a NaN is none
        raise ArithmeticError(f"relative errors {errors}, allowed {allowed}")
    return {"errors": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    table = LARGE if args.large and args.device == "cuda" else SMALL
    for name in args.names or table:
        print(f"launch {name}", flush=True)
        call, inputs = table[name](args.device)
        for _ in range(2 if args.large else 1):
            call(*inputs)
        if args.device == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
