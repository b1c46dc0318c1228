"""Kernels that go over rows, and the table: count labels, scale to unit length, join parts.

Layers are packed behind one another in one flat buffer, so that one launch covers all of them
without a list of pointers: where a layer starts follows from the shapes alone. So the table that
says it is made once per set of shapes, not copied to the device in every call, and a CUDA graph
can hold a launch.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._ahead_of_time import CAPABILITIES, SINGLE, Compilation, compilation
from mim4dd.kernels._arguments import Pairs
from mim4dd.kernels._critic import (
    IGNORE,
    QueryTile,
    keys_along,
    load_excluded,
    load_key_labels,
    load_keys,
    pair,
    queries_along,
)
from mim4dd.reference import Critic

NORM_EPS = tl.constexpr(1e-12)  # of F.normalize
TABLE_WIDTH = tl.constexpr(6)


def pack(rows: Sequence[Tensor]) -> tuple[Tensor, tuple[int, ...]]:
    """All layers in one buffer with columns of stride 1, and the row stride of each.

    Nothing is copied where a single layer has such columns already.
    """
    if len(rows) > 1:
        sizes = tuple(layer.shape[1] for layer in rows)
        return torch.cat([layer.reshape(-1) for layer in rows]), sizes
    only = rows[0] if rows[0].stride(1) == 1 else rows[0].contiguous()
    return only, (only.stride(0),)


@functools.lru_cache(maxsize=256)
def layer_table(
    sizes: tuple[int, ...],
    query_strides: tuple[int, ...],
    key_strides: tuple[int, ...],
    slab: int,
    device: torch.device,
) -> Tensor:
    """A row for each stretch of ``slab`` columns of each layer; :func:`locate` reads it."""
    rows, before = [], 0
    for layer, (D, stride_q, stride_k) in enumerate(
        zip(sizes, query_strides, key_strides, strict=True)
    ):
        rows += [[layer, D, before, stride_q, stride_k, start] for start in range(0, D, slab)]
        before += D
    return torch.tensor(rows, dtype=torch.int64, device=device)


def divisor(*numbers: int) -> int:
    """What offsets are surely a multiple of, for as wide loads as possible."""
    return math.gcd(16, *numbers)


class Slab(NamedTuple):
    """A stretch of columns of a layer."""

    layer: tl.tensor
    D: tl.tensor  # columns of the layer
    before: tl.tensor  # columns of all layers before
    query_stride: tl.tensor  # from row to row
    key_stride: tl.tensor
    first: tl.tensor  # column


@triton.jit
def locate(table_ptr, slab, DIVISOR: tl.constexpr):
    """What the table says of a slab."""
    row = table_ptr + slab * TABLE_WIDTH
    return Slab(
        tl.load(row),
        tl.multiple_of(tl.load(row + 1), DIVISOR),
        tl.multiple_of(tl.load(row + 2), DIVISOR),
        tl.multiple_of(tl.load(row + 3), DIVISOR),
        tl.multiple_of(tl.load(row + 4), DIVISOR),
        tl.multiple_of(tl.load(row + 5), DIVISOR),  # of the slab, which tiles are a multiple of
    )


@triton.jit
def count_kernel(
    pairs: Pairs,  # without labels of keys, no key is excluded twice
    weight_ptr,  # (N,)
    bias_ptr,  # (N,)
    DECOUPLED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Positive weight 1/|P| of each query, and the bias of its "nce" critic, in nats."""
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    N = pairs.num_queries
    M = pairs.num_keys
    labels = tl.load(pairs.labels + offs_n, mask=offs_n < N, other=IGNORE)
    if pairs.key_labels is not None:
        queries = queries_along(QueryTile(offs_n, labels, load_excluded(pairs, offs_n)), True)
        num_positives = tl.zeros((BLOCK_N,), tl.int64)
        num_keys = tl.zeros((BLOCK_N,), tl.int64)
        for start in range(0, M, BLOCK_M):
            offs_m = start + tl.arange(0, BLOCK_M).to(tl.int64)
            keys = keys_along(load_keys(pairs, offs_m), False)
            valid, positive = pair(queries, keys, pairs)
            num_positives += tl.sum(positive.to(tl.int32), axis=1)
            num_keys += tl.sum(valid.to(tl.int32), axis=1)
    else:
        positive = (labels >= 0) & (labels < M)
        num_keys = tl.zeros((BLOCK_N,), tl.int64) + M
        if pairs.excluded is not None:
            excluded_ptr = pairs.excluded
            for _ in range(0, pairs.num_excluded):
                excluded = tl.load(excluded_ptr + offs_n)
                excluded_ptr += pairs.stride_excluded
                positive = positive & (labels != excluded)
                num_keys -= ((excluded >= 0) & (excluded < M)).to(tl.int64)
        num_positives = positive.to(tl.int64)
    num_negatives = num_keys - num_positives
    counted = (labels != IGNORE) & (num_positives > 0)
    if DECOUPLED:
        counted = counted & (num_negatives > 0)
    weight = tl.where(counted, 1 / tl.maximum(num_positives, 1).to(dtype), 0.0)
    share = tl.maximum(num_negatives, 1).to(dtype) / tl.maximum(num_keys, 1).to(dtype)
    tl.store(weight_ptr + offs_n, weight, mask=offs_n < N)
    tl.store(bias_ptr + offs_n, -tl.log(share), mask=offs_n < N)


def pairs_of(labels: Tensor, key_labels: Tensor | None, excluded: Tensor | None, M: int) -> Pairs:
    """Pairs of (N,) labels and M keys; ``excluded`` is (K, at least N)."""
    stride, K = (0, 0) if excluded is None else (excluded.stride(0), len(excluded))
    return Pairs(labels, key_labels, excluded, len(labels), M, stride, K)


def count(
    labels: Tensor,
    key_labels: Tensor | None,
    excluded: Tensor | None,  # (K, at least N)
    M: int,
    critic: Critic,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Launch: positive weight and "nce" bias of each query, each (N,)."""
    N = len(labels)
    if excluded is not None and key_labels is None and len(excluded) > 1:
        ordered = excluded.sort(0).values
        again = F.pad(ordered[1:] == ordered[:-1], (0, 0, 1, 0))
        excluded = ordered.masked_fill(again, IGNORE.value)
    weight, bias = torch.empty((2, N), dtype=dtype, device=labels.device)
    # Few queries with many keys leave most of the GPU idle: long steps hide the latency.
    BLOCK_N, BLOCK_M = (16, 256) if N > 256 else (1, 4096)
    with torch.cuda.device_of(labels):
        count_kernel[(triton.cdiv(N, BLOCK_N),)](
            pairs_of(labels, key_labels, excluded, M),
            weight,
            bias,
            DECOUPLED=critic.decoupled,
            BLOCK_N=BLOCK_N,
            BLOCK_M=min(BLOCK_M, max(16, triton.next_power_of_2(M))),
            num_warps=8,
            enable_fp_fusion=True,
        )
    return weight, bias


@triton.jit
def inverse_power_of_two(x):
    """1 / 2^⌊log2 x⌋ of x ≥ 0, exactly; finite whatever x is."""
    if x.dtype == tl.float64:
        bits = tl.maximum(2046 - (x.to(tl.int64, bitcast=True) >> 52), 1) << 52
    else:
        bits = tl.maximum(254 - (x.to(tl.int32, bitcast=True) >> 23), 1) << 23
    return bits.to(x.dtype, bitcast=True)


# A number of 1 would be compiled in: one more kernel, and one that spills.
@triton.jit(do_not_specialize=["R"])
def normalize_kernel(
    rows_ptr,
    scaled_ptr,  # packed
    norms_ptr,  # (2, L, R)
    table_ptr,
    R,
    KEYS: tl.constexpr,
    DIVISOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows brought near 1 by a power of two, what makes them unit rows, and that power.

    So neither the norm nor a product of two rows overflows or vanishes, in any dtype, and the
    scaled rows are exact.
    """
    dtype: tl.constexpr = norms_ptr.dtype.element_ty
    slab = locate(table_ptr, tl.program_id(1), DIVISOR)
    stride = slab.key_stride if KEYS else slab.query_stride
    offs_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_d = tl.arange(0, BLOCK_D)
    mask_r = offs_r < R
    mask = mask_r[:, None] & (offs_d < slab.D)[None, :]
    pointers = rows_ptr + slab.before * R + offs_r[:, None] * stride + offs_d[None, :]
    rows = tl.load(pointers, mask=mask, other=0.0).to(dtype)
    power = inverse_power_of_two(tl.max(tl.abs(rows), axis=1))
    rows *= power[:, None]
    norm = tl.sqrt(tl.sum(rows * rows, axis=1))
    inverse = tl.where(norm / power > NORM_EPS, 1 / norm, 1 / NORM_EPS / power)
    offsets = slab.before * R + offs_r[:, None] * slab.D + offs_d[None, :]
    tl.store(scaled_ptr + offsets, rows, mask=mask)
    tl.store(norms_ptr + slab.layer * R + offs_r, inverse, mask=mask_r)
    tl.store(norms_ptr + (tl.num_programs(1) + slab.layer) * R + offs_r, power, mask=mask_r)


@triton.jit(do_not_specialize=["R", "splits"])
def join_parts_kernel(
    partial_ptr,  # (splits, packed)
    grad_ptr,  # packed
    rows_ptr,  # packed
    norms_ptr,  # (2, L, R), or None
    labels_ptr,  # (R,), or None
    table_ptr,
    R,
    splits,
    stride_split,
    DIVISOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients from the partial sums of all splits, through the normalisation."""
    dtype: tl.constexpr = partial_ptr.dtype.element_ty
    slab = locate(table_ptr, tl.program_id(1), DIVISOR)
    offs_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_d = tl.arange(0, BLOCK_D)
    mask_r = offs_r < R
    offsets = slab.before * R + offs_r[:, None] * slab.D + offs_d[None, :]
    mask = mask_r[:, None] & (offs_d < slab.D)[None, :]
    grad = tl.zeros((BLOCK_R, BLOCK_D), dtype)
    for _ in range(0, splits):
        grad += tl.load(partial_ptr + offsets, mask=mask, other=0.0)
        partial_ptr += stride_split
    if norms_ptr is not None:
        # What is ignored may hold NaN, and its gradient is 0.
        _, used = load_key_labels(labels_ptr, offs_r, mask_r)
        rows = tl.load(rows_ptr + offsets, mask & used[:, None], other=0.0).to(dtype)
        inverse = tl.load(norms_ptr + slab.layer * R + offs_r, mask=used, other=0.0)
        powers_ptr = norms_ptr + (tl.num_programs(1) + slab.layer) * R
        power = tl.load(powers_ptr + offs_r, mask=used, other=0.0)
        rows *= inverse[:, None]
        along = tl.where(inverse * power < 1 / NORM_EPS, tl.sum(rows * grad, axis=1), 0.0)
        grad = (grad - rows * along[:, None]) * power[:, None]
    tl.store(grad_ptr + offsets, grad, mask=mask)


def row_blocks(D: int) -> dict[str, int | bool]:
    """About 2048 elements a program: rows of up to 2048 columns stay in registers."""
    BLOCK_D = triton.next_power_of_2(D)
    num_warps = 4 if BLOCK_D <= 2048 else 16
    return {
        "BLOCK_R": max(1, 2048 // BLOCK_D),
        "BLOCK_D": BLOCK_D,
        "num_warps": num_warps,
        "enable_fp_fusion": True,
    }


def normalize(
    rows: Tensor, table: Tensor, sizes: tuple[int, ...], R: int, keys: bool, multiple: int
) -> tuple[Tensor, Tensor]:
    """Launch over all layers: packed scaled rows, and (2, L, R) norms; see the kernel."""
    scaled = torch.empty(R * sum(sizes), dtype=rows.dtype, device=rows.device)
    dtype = torch.promote_types(rows.dtype, torch.float32)
    norms = torch.empty((2, len(sizes), R), dtype=dtype, device=rows.device)
    blocks = row_blocks(max(sizes))
    with torch.cuda.device_of(rows):
        normalize_kernel[(triton.cdiv(R, blocks["BLOCK_R"]), len(sizes))](
            rows, scaled, norms, table, R, KEYS=keys, DIVISOR=multiple, **blocks
        )
    return scaled, norms


def join_parts(
    partial: Tensor,
    rows: Tensor,
    norms: Tensor | None,
    labels: Tensor | None,
    table: Tensor,
    sizes: tuple[int, ...],
    R: int,
    dtype: torch.dtype,
) -> Tensor:
    """Launch over all layers: (splits, packed) partial sums to packed gradients in ``dtype``."""
    grad = torch.empty(R * sum(sizes), dtype=dtype, device=rows.device)
    blocks = row_blocks(max(sizes))
    with torch.cuda.device_of(rows):
        join_parts_kernel[(triton.cdiv(R, blocks["BLOCK_R"]), len(sizes))](
            partial,
            grad,
            rows,
            norms,
            labels,
            table,
            R,
            len(partial),
            partial.stride(0),
            DIVISOR=divisor(*sizes),
            **blocks,
        )
    return grad


def compilations() -> Iterator[Compilation]:
    """The widest rows, and the options that take most."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        rows = {"DIVISOR": 16, **row_blocks(2048)}
        yield compilation(
            "normalize", normalize_kernel, dtype, ("rows_ptr", "scaled_ptr"), {"KEYS": True, **rows}
        )
        yield compilation("join parts", join_parts_kernel, dtype, ("rows_ptr", "grad_ptr"), rows)
    flags = {"DECOUPLED": True, "num_warps": 8, "enable_fp_fusion": True, **SINGLE}
    for BLOCK_N, BLOCK_M in ((16, 256), (1, 4096)):
        blocks = {"BLOCK_N": BLOCK_N, "BLOCK_M": BLOCK_M}
        yield compilation(
            f"count {BLOCK_N}x{BLOCK_M}",
            count_kernel,
            torch.float32,
            (),
            {**flags, **blocks},
            CAPABILITIES,
        )
