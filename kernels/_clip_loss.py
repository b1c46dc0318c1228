"""The kernels of CLIP's symmetric loss, and what travels together to them."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._arguments import Norms
from mim4dd.kernels._critic import (
    add_exponentials,
    finite_or_nan,
    load_scales,
    log_of_one_plus,
    lowest,
)


class Chunk(NamedTuple):
    """Which logits there are: those of some queries with all keys."""

    first: int
    queries: int  # C
    keys: int  # N
    per_split: int  # keys of a program


class Softmax(NamedTuple):
    """Of one direction: what makes shares of exponentials, (N,)."""

    shift: Tensor
    factor: Tensor  # upstream gradient over the sum of exponentials


class Rows(NamedTuple):
    """Queries of a program, (BLOCK_OWN,) each."""

    offs_c: tl.tensor  # in the chunk
    offs_n: tl.tensor
    mask: tl.tensor
    norms: tl.tensor


@triton.jit
def load_rows(norms, chunk, BLOCK_OWN: tl.constexpr, dtype: tl.constexpr):
    """The queries of this program, and the norms that make them unit rows."""
    offs_c = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    offs_n = chunk.first + offs_c
    mask = offs_c < chunk.queries
    if norms.query is not None:
        of_rows = tl.load(norms.query + offs_n, mask=mask, other=0.0)
    else:
        of_rows = tl.full((BLOCK_OWN,), 1.0, dtype)
    return Rows(offs_c, offs_n, mask, of_rows)


@triton.jit
def split_of(chunk):
    """The first key of this program, and past its last."""
    start = tl.program_id(1) * chunk.per_split
    return start, tl.minimum(start + chunk.per_split, chunk.keys)


@triton.jit
def load_logits(similarity_ptr, norms, chunk, rows, offs_m, scale):
    """Similarities, the products of the norms and logits of a tile, which are there, and where."""
    offsets = rows.offs_c.to(tl.int64)[:, None] * chunk.keys + offs_m[None, :]
    mask_m = offs_m < chunk.keys
    mask = rows.mask[:, None] & mask_m[None, :]
    similarity = tl.load(similarity_ptr + offsets, mask=mask, other=0.0)
    products = rows.norms[:, None]
    if norms.key is not None:
        products = products * tl.load(norms.key + offs_m, mask=mask_m, other=0.0)[None, :]
        similarity *= products
    return similarity, products, finite_or_nan(similarity * scale), mask, offsets


@triton.jit
def sums_kernel(
    similarity_ptr,  # (C, N)
    norms: Norms,
    scale_ptr,  # ()
    pair_ptr,  # (N,): each pair's own logit
    row_parts_ptr,  # (splits, 2, C)
    column_parts_ptr,  # (tiles, 2, N), carried from chunk to chunk
    chunk: Chunk,
    BLOCK_OWN: tl.constexpr,
    BLOCK_STREAM: tl.constexpr,
):
    """Maxima of BLOCK_OWN rows and of a split's columns, and the sums of exponentials over them.

    Without the pair's own, which is most of the sum where the loss is small.
    """
    dtype: tl.constexpr = pair_ptr.dtype.element_ty
    C = chunk.queries
    N = chunk.keys
    rows = load_rows(norms, chunk, BLOCK_OWN, dtype)
    scale, _raised = load_scales(scale_ptr, scale_ptr)
    row_maximum = tl.full((BLOCK_OWN,), lowest(dtype), dtype)
    row_total = tl.zeros((BLOCK_OWN,), dtype)
    # No other program has these parts of columns, and chunks come one after another.
    carried = tl.where(chunk.first > 0, N, 0)
    column_parts_ptr += tl.program_id(0).to(tl.int64) * 2 * N
    start_split, end_split = split_of(chunk)
    for start in range(start_split, end_split, BLOCK_STREAM):
        offs_m = start + tl.arange(0, BLOCK_STREAM)
        _similarity, _products, logits, mask, _offsets = load_logits(
            similarity_ptr, norms, chunk, rows, offs_m, scale
        )
        others = tl.where(mask & (rows.offs_n[:, None] != offs_m[None, :]), logits, float("-inf"))
        row_maximum, row_total = add_exponentials(others, row_maximum, row_total)
        mask_m = offs_m < carried
        column_maximum = tl.load(column_parts_ptr + offs_m, mask=mask_m, other=lowest(dtype))
        column_total = tl.load(column_parts_ptr + N + offs_m, mask=mask_m, other=0.0)
        column_maximum, column_total = add_exponentials(
            tl.trans(others), column_maximum, column_total
        )
        tl.store(column_parts_ptr + offs_m, column_maximum, mask=offs_m < N)
        tl.store(column_parts_ptr + N + offs_m, column_total, mask=offs_m < N)
    row_parts_ptr += tl.program_id(1).to(tl.int64) * 2 * C
    tl.store(row_parts_ptr + rows.offs_c, row_maximum, mask=rows.mask)
    tl.store(row_parts_ptr + C + rows.offs_c, row_total, mask=rows.mask)
    if tl.program_id(1) == 0:
        own = rows.offs_c.to(tl.int64) * N + rows.offs_n
        pair = tl.load(similarity_ptr + own, mask=rows.mask, other=0.0)
        if norms.key is not None:
            pair *= rows.norms * tl.load(norms.key + rows.offs_n, mask=rows.mask, other=0.0)
        tl.store(pair_ptr + rows.offs_n, finite_or_nan(pair * scale), mask=rows.mask)


@triton.jit
def losses_kernel(
    parts_ptr,  # (parts, 2, N)
    pair_ptr,  # (N,)
    loss_ptr,  # (N,)
    shift_ptr,  # (N,)
    sum_ptr,  # (N,)
    N,
    parts,
    BLOCK_N: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """Of one direction: losses, and shift and sum of exponentials with the pair's own."""
    dtype: tl.constexpr = pair_ptr.dtype.element_ty
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = offs_n < N
    maximum = tl.full((BLOCK_N,), lowest(dtype), dtype)
    total = tl.zeros((BLOCK_N,), dtype)
    for start in range(0, parts, BLOCK_PARTS):
        offs_part = start + tl.arange(0, BLOCK_PARTS)
        pointers = parts_ptr + offs_part.to(tl.int64)[:, None] * 2 * N + offs_n[None, :]
        found = (offs_part < parts)[:, None] & mask[None, :]
        part_maximum = tl.load(pointers, mask=found, other=lowest(dtype))
        part_total = tl.load(pointers + N, mask=found, other=0.0)
        new_maximum = tl.maximum(maximum, tl.max(part_maximum, axis=0))
        part_total *= tl.exp(part_maximum - new_maximum[None, :])
        total = total * tl.exp(maximum - new_maximum) + tl.sum(part_total, axis=0)
        maximum = new_maximum
    pair = tl.load(pair_ptr + offs_n, mask=mask, other=0.0)
    shift = tl.maximum(maximum, pair)
    positive = tl.exp(pair - shift)
    negative = total * tl.exp(maximum - shift)
    # Near p = 1 the logarithm of the sum has no digits left.
    loss = tl.where(
        positive > negative,
        log_of_one_plus(negative / positive),
        tl.log(negative + positive) - (pair - shift),
    )
    tl.store(loss_ptr + offs_n, loss, mask=mask)
    tl.store(shift_ptr + offs_n, shift, mask=mask)
    tl.store(sum_ptr + offs_n, negative + positive, mask=mask)


@triton.jit
def weights_kernel(
    similarity_ptr,  # (C, N)
    weights_ptr,  # (C, N), may be the same
    norms: Norms,
    scale_ptr,  # ()
    of_query: Softmax,
    of_key: Softmax,
    pair_weight_ptr,  # (N,)
    grad_scale_ptr,  # (splits, rows of the first chunk), carried from chunk to chunk
    stride_split,
    chunk: Chunk,
    BLOCK_OWN: tl.constexpr,
    BLOCK_STREAM: tl.constexpr,
):
    """Derivative of the losses of both directions by each logit, and the rows' part of scale's."""
    scale = tl.load(scale_ptr)  # of no temperature, it has left NaN in the factors
    rows = load_rows(norms, chunk, BLOCK_OWN, scale.dtype)
    query_shift = tl.load(of_query.shift + rows.offs_n, mask=rows.mask, other=0.0)
    query_factor = tl.load(of_query.factor + rows.offs_n, mask=rows.mask, other=0.0)
    pair_weight = tl.load(pair_weight_ptr + rows.offs_n, mask=rows.mask, other=0.0)
    grad_scale_ptr += tl.program_id(1).to(tl.int64) * stride_split + rows.offs_c
    carried = rows.offs_c < tl.where(chunk.first > 0, chunk.queries, 0)
    grad_scale = tl.load(grad_scale_ptr, mask=carried, other=0.0)
    start_split, end_split = split_of(chunk)
    for start in range(start_split, end_split, BLOCK_STREAM):
        offs_m = start + tl.arange(0, BLOCK_STREAM)
        similarity, products, logits, mask, offsets = load_logits(
            similarity_ptr, norms, chunk, rows, offs_m, scale
        )
        mask_m = offs_m < chunk.keys
        key_shift = tl.load(of_key.shift + offs_m, mask=mask_m, other=0.0)
        key_factor = tl.load(of_key.factor + offs_m, mask=mask_m, other=0.0)
        weights = query_factor[:, None] * tl.exp(logits - query_shift[:, None])
        weights += key_factor[None, :] * tl.exp(logits - key_shift[None, :])
        own = rows.offs_n[:, None] == offs_m[None, :]
        weights = tl.where(mask, tl.where(own, pair_weight[:, None], weights), 0.0)
        grad_scale += tl.sum(weights * similarity, axis=1)
        if norms.key is not None:
            weights *= products
        tl.store(weights_ptr + offsets, weights, mask=mask)
    tl.store(grad_scale_ptr, grad_scale, mask=rows.mask)
