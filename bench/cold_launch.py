"""Launches for a GPU that is not there: Triton compiles what they would run, and nothing runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from mim4dd.kernels._ahead_of_time import POINTERS, Compilation

DTYPES = {name: dtype for dtype, name in POINTERS.items()}
DTYPES |= {"*i64": torch.int64, "*i32": torch.int32}
# Numbers of each type, by whether 16 divides them; none is 1, of which Triton makes a constant.
NUMBERS = {"i32": (17, 16), "i64": (2**40 + 1, 2**40), "fp32": (0.5, 0.5)}


class NoGpu:
    """A driver that says which GPU is there, and has none."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        """Another for every capability, for what Triton compiled it remembers by device."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """None."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What the kernels are for."""
        return GPUTarget("cuda", self.capability, 32)


@dataclass(frozen=True)
class Memory:
    """What Triton asks of a tensor."""

    dtype: torch.dtype
    divisible: bool

    def data_ptr(self) -> int:
        """A multiple of 16, or just one of the elements' size."""
        return 0 if self.divisible else self.dtype.itemsize


def launch(case: Compilation) -> triton.compiler.CompiledKernel:
    """The kernel that such a launch has: in Triton's own way, so that its cache knows it."""
    (capability,) = case.capabilities
    driver.set_active(NoGpu(capability))
    return case.kernel.run(*arguments(case), grid=(1,), warmup=True, **case.options)


def arguments(case: Compilation) -> Iterator[Any]:
    """Any that Triton sees as those of the launch."""

    def value(kind: str, *place: int) -> Any:
        if kind == "constexpr":
            return case.constants[place]
        divisible = case.divisible is not None and place in case.divisible
        if kind.startswith("*"):
            return Memory(DTYPES[kind], divisible)
        return NUMBERS[kind][divisible]

    for index, kind in enumerate(case.signature.values()):
        if isinstance(kind, str):
            yield value(kind, index)
        else:
            yield type(kind)(*(value(each, index, i) for i, each in enumerate(kind)))
