"""Launches for a GPU that is not there: Triton compiles what they would run, and nothing runs."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

Record = dict[str, Any]  # of tests/support/launch_recorder.py
DTYPES = {
    "fp32": torch.float32,
    "fp64": torch.float64,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "i64": torch.int64,
    "i32": torch.int32,
}
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


def launch(record: Record) -> triton.compiler.CompiledKernel:
    """The kernel that a recorded launch has: in Triton's own way, so that its cache knows it."""
    kernel = getattr(importlib.import_module(record["module"]), record["kernel"])
    driver.set_active(NoGpu(record["capability"]))
    return kernel.run(*arguments(kernel, record), grid=(1,), warmup=True, **record["options"])


def arguments(kernel: triton.JITFunction, record: Record) -> Iterator[Any]:
    """Any that Triton sees as those of the launch."""
    constants = {tuple(place): constant_of(value) for place, value in record["constants"]}
    divisible = set(map(tuple, record["divisible"]))

    def value(kind: str, *place: int) -> Any:
        if kind == "constexpr":
            return constants[place]
        if kind.startswith("*"):
            return Memory(DTYPES[kind[1:]], place in divisible)
        return NUMBERS[kind][place in divisible]

    for index, (name, kind) in enumerate(record["signature"].items()):
        if isinstance(kind, str):
            yield value(kind, index)
        else:
            group = kernel.fn.__annotations__[name]
            yield group(*(value(each, index, i) for i, each in enumerate(kind)))


def constant_of(value: Any) -> Any:
    """A number, or a NamedTuple by its module, name and fields."""
    if not isinstance(value, list):
        return value
    module, name, fields = value
    if not module.startswith("mim4dd.kernels."):
        raise ValueError(f"{module}.{name} is no type of mim4dd.kernels")
    return getattr(importlib.import_module(module), name)(*fields)
