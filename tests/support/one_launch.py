"""A launch of a small kernel, whose arguments are on the CPU.

    python tests/support/one_launch.py ARCHIVE CAPABILITY     after unpacking carried kernels

That compiles for a GPU which is not there, or finds what was compiled; nothing runs.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from triton.runtime import driver

from mim4dd.kernels._arguments import Form, Losses
from mim4dd.kernels._forward import combine_kernel

FORM = Form("out", False, False)
OPTIONS = {"BLOCK_N": 128, "num_warps": 4}


def arguments(splits: int = 2, form: Form = FORM, offset: int = 0) -> tuple[Any, ...]:
    """Of the kernel that joins the parts of losses."""
    labels, weight = torch.zeros(17, dtype=torch.int64), torch.zeros(18)[offset:]
    return weight, labels, weight, Losses(weight, weight, None), 16, splits, form


def main() -> None:
    from cold_launch import NoGpu
    from stages import carried

    archive, capability = Path(sys.argv[1]), int(sys.argv[2])
    print(carried.unpack(archive, capability))
    driver.set_active(NoGpu(capability))
    combine_kernel.run(*arguments(), grid=(1,), warmup=True, **OPTIONS)


if __name__ == "__main__":
    main()
