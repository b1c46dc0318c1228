"""What compiling a Triton kernel without a GPU takes; bench/resources.py does it."""

from typing import NamedTuple

import torch
from triton.runtime import JITFunction

POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}


class Compilation(NamedTuple):
    """One kernel with the types and constants of one way of launching it."""

    name: str
    kernel: JITFunction
    signature: dict[str, str]
    constants: dict[str, int | bool]
    options: dict[str, int | bool]
