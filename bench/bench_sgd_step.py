"""sgd_step: one pass over the parameter vector, against the ways to write it in PyTorch.

Sizes: the ConvNet-3 of width 128 that the field distils CIFAR-10 with, and a ResNet-18.
"""

from typing import NamedTuple

import torch
from tolerance import assert_no_worse

from mim4dd import reference, sgd_step


class Case(NamedTuple):
    num_parameters: int

    def __str__(self) -> str:
        return f"P={self.num_parameters}"


CASES = {"tiny": [Case(1001)], "full": [Case(320_010), Case(11_173_962)]}

PROVIDERS = {
    "mim4dd": sgd_step,
    "torch": reference.sgd_step,
    "torch.addcmul": lambda theta, direction, lr: torch.addcmul(theta, direction, lr, value=-1),
}


def bench_sgd_step(case, provider, device, measure):
    theta, direction = torch.randn(2, case.num_parameters, device=device)
    inputs = (theta, direction, torch.tensor(0.1, device=device))
    plain = reference.sgd_step(*inputs)
    exact = reference.sgd_step(*(tensor.double() for tensor in inputs))
    measure(
        lambda: PROVIDERS[provider](*inputs),
        lambda actual: assert_no_worse(actual, plain, exact),
        moved_bytes=3 * theta.nbytes,  # two reads and a write: what any way has to move
    )
