"""What compiling a Triton kernel without a GPU takes; bench/resources.py does it."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from triton.runtime import JITFunction

POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}

CAPABILITIES = (80, 90, 100)

# Each query leaves out one key: Triton makes a constant of an argument that is 1.
SINGLE = {"num_excluded": 1}


class Compilation(NamedTuple):
    """One kernel with the types and constants of one way of launching it."""

    name: str
    kernel: JITFunction
    signature: dict[str, str]
    constants: dict[str, int | bool | str | None]
    options: dict[str, int | bool]
    capabilities: tuple[int, ...]


def compilation(
    name: str,
    kernel: JITFunction,
    dtype: torch.dtype,
    narrow: tuple[str, ...],
    constants: Mapping[str, int | bool | str | None],
    capabilities: tuple[int, ...] = CAPABILITIES,
) -> Compilation:
    """A case by the kernels' naming: ``*_ptr`` hold the accumulation type, ``narrow`` the inputs'.

    Labels and tables are int64, everything else that is no constant an int32.
    """
    wide = POINTERS[torch.promote_types(dtype, torch.float32)]
    pointers = dict.fromkeys(narrow, POINTERS[dtype])
    pointers |= dict.fromkeys(("labels_ptr", "key_labels_ptr", "table_ptr"), "*i64")
    pointers["excluded_ptr"] = "*i32"
    names = [argument for argument in kernel.arg_names if argument not in constants]
    launch = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")
    return Compilation(
        f"{name} {dtype}".replace("torch.", ""),
        kernel,
        {n: pointers.get(n, wide) if n.endswith("_ptr") else "i32" for n in names},
        {n: value for n, value in constants.items() if n not in launch},
        {n: value for n, value in constants.items() if n in launch},
        capabilities,
    )
