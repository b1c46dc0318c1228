"""Measure tile sizes of the fused contrastive kernels on this GPU; print the best as entries.

    python bench/tune_contrastive.py [--operands half tf32 fma fp64] [--rows 8192]

Paste what it prints over the entries of TILES in kernels/_tiles.py, then run bench/resources.py:
an entry that spills on any GPU that uses it is refused there.
"""

import argparse
import itertools
import sys

import torch
import triton
from triton.runtime.errors import OutOfResources

from mim4dd.kernels import contrastive
from mim4dd.kernels._inputs import capability
from mim4dd.kernels._tiles import RESIDENT_D, TILES, Tiles, entry
from mim4dd.reference import Critic, Reduce

BLOCKS = (32, 64, 128)
WARPS = (4, 8)
STAGES = (2, 3, 4)
DTYPES = {
    "half": (torch.bfloat16, "highest"),
    "tf32": (torch.float32, "high"),
    "fma": (torch.float32, "highest"),
    "fp64": (torch.float64, "highest"),
}


def candidates(start: Tiles):
    """The entry with other rows, warps and stages; its columns follow from D or from spilling."""
    for own, stream, warps, stages in itertools.product(BLOCKS, (16, *BLOCKS), WARPS, STAGES):
        yield start._replace(BLOCK_OWN=own, BLOCK_STREAM=stream, num_warps=warps, num_stages=stages)


def problem(kernel: str, dtype: torch.dtype, rows: int, D: int):
    """A call of ``kernel`` as in use: unit rows, ten classes, a mean."""
    options = {"device": "cuda", "dtype": dtype}
    query, key = (torch.nn.functional.normalize(torch.randn(rows, D, **options)) for _ in range(2))
    labels, key_labels = torch.randint(10, (2, rows), device="cuda")
    scale = torch.tensor(10.0, device="cuda", dtype=torch.promote_types(dtype, torch.float32))
    inputs = ([query], [key], labels, key_labels, None, scale, None, *Critic())
    *_, loss, lse, weight, _ = contrastive.contrastive(*inputs, Reduce.NONE, [False] * 4)
    upstream = torch.full_like(loss, 1 / rows)
    if kernel == "forward":
        return lambda: contrastive.contrastive(*inputs, Reduce.NONE, [False] * 4)
    wanted = [True, True, True, False]
    return lambda: contrastive.contrastive_bwd(*inputs, lse, weight, upstream, None, wanted)


def tune(key: tuple[str, str, int, int], rows: int) -> tuple[Tiles, float, float]:
    """The fastest candidate, its time and that of the present entry, in ms."""
    kernel, operands, D, _ = key
    dtype, precision = DTYPES[operands]
    torch.set_float32_matmul_precision(precision)
    call = problem(kernel, dtype, rows, D or (2 * RESIDENT_D if operands == "half" else 128))
    present = TILES[key]
    before = triton.testing.do_bench(call, return_mode="median")
    best, least = present, before
    for sizes in candidates(present):
        TILES[key] = sizes
        try:
            time = triton.testing.do_bench(call, return_mode="median")
        except OutOfResources:
            continue
        if time < least:
            best, least = sizes, time
    TILES[key] = present
    return best, least, before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--operands", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rows", type=int, default=8192)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("tuning measures: it needs a CUDA GPU")
    contrastive.fuses = lambda query, key: True
    family = capability(torch.device("cuda", torch.cuda.current_device()))
    print(f"# {torch.cuda.get_device_name()}, {args.rows} rows, triton {triton.__version__}")
    for kernel, operands, D, _ in sorted({(*key[:3], 0) for key in TILES}):
        if operands not in args.operands:
            continue
        key = entry(kernel, operands, D or RESIDENT_D + 1, family)
        best, time, before = tune(key, args.rows)
        sizes = ", ".join(str(size) for size in best[:6])
        here = family // 10 * 10 if family < 120 else 80
        print(f"    {(*key[:3], here)}: Tiles({sizes}),  # {before:.3f} -> {time:.3f} ms")


if __name__ == "__main__":
    main()
