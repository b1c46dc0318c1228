"""Rows of one side, and their products with rows of the other."""

from typing import NamedTuple

import triton
import triton.language as tl


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
