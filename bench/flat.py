"""What the benchmarks of passes over flat vectors share.

Sizes: the ConvNet-3 of width 128 that the field distils CIFAR-10 with, and a ResNet-18.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from tolerance import assert_no_worse
from torch import Tensor


class Case(NamedTuple):
    num_parameters: int

    def __str__(self) -> str:
        return f"P={self.num_parameters}"


CASES = {"tiny": [Case(1001)], "full": [Case(320_010), Case(11_173_962)]}


def double(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    """The same in float64, for the exact answer."""
    return [None if tensor is None else tensor.double() for tensor in tensors]


def assert_all_no_worse(
    actual: Iterable[Tensor], plain: Iterable[Tensor], exact: Iterable[Tensor]
) -> None:
    """assert_no_worse of each."""
    for triple in zip(actual, plain, exact, strict=True):
        if torch.numel(triple[2]):
            assert_no_worse(*triple)
