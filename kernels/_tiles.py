"""Tile sizes of the fused kernels, in one place.

Chosen from resources alone (no spilled register on sm_80 to sm_100, at most 99 KiB of shared memory
outside the data-centre parts) and from published attention kernels of the same shape; NOT RUN ON A
GPU YET. `python bench/tune_contrastive.py` measures the candidates and prints new entries.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch


class Tiles(NamedTuple):
    """Compile-time sizes of one fused launch."""

    BLOCK_OWN: int  # rows that a program owns
    BLOCK_STREAM: int  # rows of the other side per step
    BLOCK_K: int  # columns per step of the product that gives the logits
    BLOCK_D: int  # columns of the gradient that a program owns
    num_warps: int
    num_stages: int
    enable_fp_fusion: bool = True  # Triton 3.9 warns where it is left open, 3.10 turns it off

    def launch(self, *blocks: str) -> dict[str, int | bool]:
        """Keyword arguments of a kernel that has these ``blocks``."""
        names = (*blocks, "num_warps", "num_stages", "enable_fp_fusion")
        return {name: getattr(self, name) for name in names}


# (kernel, operands, D up to, least compute capability). Up to 256 columns both sides of the tensor
# cores' products stay on chip: beyond, the fp32 gradient of 64 rows alone fills the registers.
# FMA operands all go through registers: steps are short, and the columns are split.
TILES: dict[tuple[str, str, int, int], Tiles] = {
    ("forward", "half", 64, 80): Tiles(128, 64, 64, 64, 4, 3),
    ("forward", "half", 128, 80): Tiles(128, 64, 128, 128, 8, 2),
    ("forward", "half", 256, 80): Tiles(64, 64, 256, 256, 8, 2),
    ("gradient", "half", 64, 80): Tiles(64, 64, 64, 64, 4, 3),
    ("gradient", "half", 128, 80): Tiles(64, 64, 128, 128, 8, 2),
    ("gradient", "half", 256, 80): Tiles(64, 32, 256, 256, 8, 2),
    ("forward", "half", 64, 90): Tiles(128, 128, 64, 64, 8, 3),
    ("forward", "half", 128, 90): Tiles(128, 128, 128, 128, 8, 3),
    ("forward", "half", 256, 90): Tiles(128, 64, 256, 256, 8, 3),
    ("gradient", "half", 64, 90): Tiles(128, 64, 64, 64, 8, 3),
    ("gradient", "half", 128, 90): Tiles(128, 64, 128, 128, 8, 2),
    ("gradient", "half", 256, 90): Tiles(64, 64, 256, 256, 8, 2),
    ("forward", "tf32", 0, 80): Tiles(64, 64, 32, 32, 4, 3),
    ("gradient", "tf32", 0, 80): Tiles(64, 32, 32, 128, 8, 2),
    ("forward", "fma", 0, 80): Tiles(32, 64, 16, 16, 8, 2),
    ("gradient", "fma", 0, 80): Tiles(32, 32, 16, 64, 8, 2),
    ("forward", "fp64", 0, 80): Tiles(32, 32, 16, 16, 4, 2),
    ("gradient", "fp64", 0, 80): Tiles(32, 16, 16, 32, 4, 2),
}
RESIDENT_D = 256


def operands(dtype: torch.dtype, precision: str) -> str:
    """Which units multiply."""
    if dtype == torch.float64:
        return "fp64"
    if dtype == torch.float32:
        return "fma" if precision == "ieee" else "tf32"
    return "half"


def tiles(kernel: str, dtype: torch.dtype, precision: str, D: int, capability: int) -> Tiles:
    """The entry of the widest capability not above ``capability`` (90 for sm_90)."""
    kind = operands(dtype, precision)
    bucket = 0
    if kind == "half":
        bucket = 64 if D <= 64 else 128 if D <= 128 else RESIDENT_D
    family = 90 if capability >= 90 and capability < 120 else 80
    return TILES.get((kernel, kind, bucket, family)) or TILES[kernel, kind, bucket, 80]


def precision_of(dtype: torch.dtype) -> str:
    """How float32 multiplies, as torch.set_float32_matmul_precision asks."""
    if dtype != torch.float32:
        return "ieee"
    return {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}[
        torch.get_float32_matmul_precision()
    ]


def entries(kernel: str) -> Iterator[tuple[Tiles, torch.dtype, str, int, tuple[int, ...]]]:
    """Each entry with a dtype, precision, D and the capabilities that use it."""
    examples = {
        "half": [(torch.bfloat16, "ieee")],
        "tf32": [(torch.float32, "tf32x3"), (torch.float32, "tf32")],
        "fma": [(torch.float32, "ieee")],
        "fp64": [(torch.float64, "ieee")],
    }
    for (name, kind, D, family), sizes in TILES.items():
        newer = (name, kind, D, 90) in TILES and family == 80
        capabilities = (80,) if newer else (90, 100) if family == 90 else (80, 90, 100)
        for dtype, precision in examples[kind]:
            if name == kernel:
                yield sizes, dtype, precision, D, capabilities
