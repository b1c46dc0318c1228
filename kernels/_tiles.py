"""Tiles of the fused kernels: how large they are, how they are loaded and multiplied.

The sizes are chosen from resources alone (no spilled register on sm_80 to sm_100, at most 99 KiB of
shared memory outside the data-centre parts) and from published attention kernels of the same shape;
NOT RUN ON A GPU YET. `python bench/tune_contrastive.py` measures the candidates and prints new
entries.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from mim4dd.kernels._ahead_of_time import CAPABILITIES
from mim4dd.kernels._arguments import Tiling


class Tiles(NamedTuple):
    """Compile-time sizes of one fused launch."""

    BLOCK_OWN: int  # rows that a program owns
    BLOCK_STREAM: int  # rows of the other side per step
    BLOCK_K: int  # columns per step of the product that gives the logits
    BLOCK_D: int  # columns of the gradient that a program owns
    num_warps: int
    num_stages: int
    enable_fp_fusion: bool = True  # Triton 3.9 warns where it is left open, 3.10 turns it off

    def for_several(self) -> "Tiles":
        """For queries that leave out several keys: fewer pairs of a thread, for a loop."""
        if self.BLOCK_STREAM > 32:
            return self._replace(BLOCK_STREAM=self.BLOCK_STREAM // 2, num_warps=8)
        if self.BLOCK_K >= 64 and self.num_warps < 8:  # WGMMA takes 64 rows and no fewer
            return self._replace(num_warps=8)
        if self.BLOCK_OWN > 32:
            return self._replace(BLOCK_OWN=self.BLOCK_OWN // 2, num_warps=8)
        return self._replace(BLOCK_STREAM=max(16, self.BLOCK_STREAM // 2), num_warps=8)

    def launch(self) -> dict[str, int | bool]:
        """How to compile and launch a kernel of these tiles."""
        names = ("num_warps", "num_stages", "enable_fp_fusion")
        return {name: getattr(self, name) for name in names}

    def tiling(self, resident: bool, divisor: int, precision: str, interpreted: bool) -> Tiling:
        """What such a kernel reads."""
        return Tiling(resident, divisor, precision, interpreted, *self[:4])


# (kernel, operands, D up to (0: any), least compute capability). Up to 256 columns, the rows of
# both sides stay on chip: beyond, the float32 gradient of 64 rows alone fills the registers. What
# FMA and tf32 multiply goes through registers: steps are short, and the gradient's columns split.
# On sm_100 a thread holds a whole row of a tile, so the streamed side is short.
TILES: dict[tuple[str, str, int, int], Tiles] = {
    ("forward", "half", 64, 80): Tiles(128, 64, 64, 64, 8, 2),
    ("forward", "half", 64, 90): Tiles(128, 64, 64, 64, 8, 3),
    ("forward", "half", 64, 100): Tiles(128, 32, 64, 64, 8, 3),
    ("forward", "half", 128, 80): Tiles(128, 64, 128, 128, 8, 2),
    ("forward", "half", 128, 100): Tiles(128, 32, 128, 128, 8, 2),
    ("forward", "half", 256, 80): Tiles(128, 64, 64, 64, 8, 2),
    ("forward", "half", 256, 90): Tiles(128, 64, 256, 256, 8, 3),
    ("forward", "half", 256, 100): Tiles(128, 32, 256, 256, 8, 2),
    ("forward", "half", 0, 80): Tiles(64, 64, 64, 64, 8, 2),  # of odd rows 128 spill
    ("forward", "half", 0, 100): Tiles(64, 32, 64, 64, 8, 3),
    ("forward", "tf32", 0, 80): Tiles(64, 32, 32, 32, 4, 2),
    ("forward", "tf32", 0, 90): Tiles(64, 64, 32, 32, 8, 2),
    ("forward", "fma", 0, 80): Tiles(64, 64, 16, 16, 8, 3),
    ("forward", "fp64", 0, 80): Tiles(32, 32, 16, 16, 8, 2),
    ("gradient", "half", 64, 80): Tiles(64, 16, 64, 64, 8, 3),
    ("gradient", "half", 64, 90): Tiles(128, 32, 64, 64, 8, 3),
    ("gradient", "half", 64, 100): Tiles(64, 32, 64, 64, 8, 2),
    ("gradient", "half", 128, 80): Tiles(32, 32, 128, 128, 8, 2),
    ("gradient", "half", 128, 90): Tiles(64, 32, 128, 128, 4, 2),
    ("gradient", "half", 128, 100): Tiles(64, 32, 128, 128, 8, 3),
    ("gradient", "half", 256, 80): Tiles(32, 32, 256, 256, 8, 2),
    ("gradient", "half", 256, 90): Tiles(64, 16, 256, 256, 4, 2),
    ("gradient", "half", 256, 100): Tiles(64, 16, 256, 256, 8, 2),
    ("gradient", "half", 0, 80): Tiles(64, 32, 64, 128, 8, 2),
    ("gradient", "tf32", 0, 80): Tiles(32, 16, 32, 128, 8, 2),
    ("gradient", "tf32", 0, 90): Tiles(32, 32, 32, 128, 8, 2),
    ("gradient", "fma", 0, 80): Tiles(32, 32, 16, 64, 8, 2),
    ("gradient", "fp64", 0, 80): Tiles(32, 16, 16, 16, 16, 2),
}
RESIDENT_D = 256
WIDE_LOADS = 8  # columns of half precision that are 16 bytes


def operands(dtype: torch.dtype, precision: str) -> str:
    """Which units multiply."""
    if dtype == torch.float64:
        return "fp64"
    if dtype == torch.float32:
        return "fma" if precision == "ieee" else "tf32"
    return "half"


def families(capability: int) -> list[int]:
    """Whose tiles are for a GPU, the newest first."""
    # sm_120 has the tensor cores and the shared memory of sm_80's consumer parts.
    newest = capability if capability < 120 else 80
    return [family for family in (100, 90, 80) if family <= newest]


def entry(kernel: str, operands: str, D: int, capability: int) -> tuple[str, str, int, int]:
    """Key of the entry of the newest capability not above ``capability`` (90 for sm_90)."""
    bucket = 0
    if operands == "half":
        bucket = next((limit for limit in (64, 128, RESIDENT_D) if limit >= D), 0)
    keys = [(kernel, operands, bucket, family) for family in families(capability)]
    return next(key for key in keys if key in TILES)


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
    for key, sizes in TILES.items():
        D = key[2] or RESIDENT_D + 1
        used = tuple(c for c in CAPABILITIES if entry(*key[:2], D, c) == key)
        for dtype, precision in examples[key[1]]:
            if key[0] == kernel:
                yield sizes, dtype, precision, key[2], used


class Side(NamedTuple):
    """Queries or keys of a layer."""

    ptr: tl.tensor  # (count, D)
    stride: tl.tensor
    count: tl.tensor
    D: tl.tensor


class Block(NamedTuple):
    """Rows of a side, (BLOCK,) each; what is masked is as rows of 0."""

    offs: tl.tensor
    mask: tl.tensor


@triton.jit
def sides_of(features, pairs, slab, OWN_QUERIES: tl.constexpr):
    """The side whose rows a program owns, and the one that it streams over."""
    N = pairs.num_queries
    M = pairs.num_keys
    queries = Side(features.query + slab.before * N, slab.query_stride, N, slab.D)
    keys = Side(features.key + slab.before * M, slab.key_stride, M, slab.D)
    if OWN_QUERIES:
        own, stream = queries, keys
    else:
        own, stream = keys, queries
    return own, stream


@triton.jit
def load_tile(side, rows, offs_d, INTERPRETED: tl.constexpr):
    """Columns ``offs_d`` of rows, 0 where there are none."""
    pointers = side.ptr + rows.offs[:, None] * side.stride + offs_d[None, :]
    tile = tl.load(pointers, mask=rows.mask[:, None] & (offs_d < side.D)[None, :], other=0.0)
    if INTERPRETED and side.ptr.dtype.element_ty == tl.bfloat16:
        tile = tile.to(tl.float32)  # the interpreter multiplies bit patterns (triton#11584)
    return tile


@triton.jit
def multiplied(values, side, tile):
    """Values as the tensor cores take them beside a tile of a side: rounded to its dtype.

    The interpreter's tiles of bfloat16 are float32.
    """
    return values.to(side.ptr.dtype.element_ty).to(tile.dtype)


@triton.jit
def load_norms(norms_ptr, side, layer, rows):
    """What makes them unit rows."""
    return tl.load(norms_ptr + layer * side.count + rows.offs, mask=rows.mask, other=0.0)


@triton.jit
def multiply_rows(own, own_rows, stream, stream_rows, tiling: tl.constexpr, dtype: tl.constexpr):
    """All products of own and streamed rows, a few columns at a time."""
    BLOCK_OWN: tl.constexpr = tiling.BLOCK_OWN
    BLOCK_STREAM: tl.constexpr = tiling.BLOCK_STREAM
    BLOCK_K: tl.constexpr = tiling.BLOCK_K
    products = tl.zeros((BLOCK_OWN, BLOCK_STREAM), dtype)
    for start_k in range(0, own.D, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K).to(tl.int64)
        own_tile = load_tile(own, own_rows, offs_k, tiling.INTERPRETED)
        stream_tile = load_tile(stream, stream_rows, offs_k, tiling.INTERPRETED)
        products = tl.dot(
            own_tile,
            tl.trans(stream_tile),
            products,
            input_precision=tiling.PRECISION,
            out_dtype=dtype,
        )
    return products


@triton.jit
def similarity_of(
    own, own_rows, own_tile, stream, stream_rows, stream_tile, tiling: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """All products of own and streamed rows; where the own ones stay on chip, tiles hold both."""
    if tiling.RESIDENT:
        similarity = tl.dot(
            own_tile, tl.trans(stream_tile), input_precision=tiling.PRECISION, out_dtype=dtype
        )
    else:
        similarity = multiply_rows(own, own_rows, stream, stream_rows, tiling, dtype)
    return similarity
