"""Triton launchers of CLIP's symmetric loss: forward, gradients.

cuBLAS makes the logits of some queries at a time, and one reading of them serves both directions:
sums of exponentials by row and by column in the forward, one matrix of weights for the gradients.
8·N²·D operations in all, where two calls of InfoNCE take 12 to 16 with chunks and 20 fused. Nothing
is added atomically: every result has the same bits each time.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._ahead_of_time import Compilation, compilation
from mim4dd.kernels._chunked import accumulate, gradient_of_input, multiply, rows_per_chunk
from mim4dd.kernels._critic import (
    add_exponentials,
    finite_or_nan,
    load_scales,
    log_of_one_plus,
    lowest,
)
from mim4dd.kernels._inputs import Layers, boosted, packed, split
from mim4dd.reference import Critic

# 8 numbers of a thread: 76 registers where N is a multiple of 16, 128 where it is not. Not tuned on
# a GPU yet.
TILE: dict[str, int | bool] = {
    "BLOCK_OWN": 32,
    "BLOCK_STREAM": 64,
    "num_warps": 8,
    "enable_fp_fusion": True,
}
# Few columns, for the parts of each are many: one to every 32 queries of a chunk.
MERGE: dict[str, int | bool] = {
    "BLOCK_N": 32,
    "BLOCK_PARTS": 32,
    "num_warps": 4,
    "enable_fp_fusion": True,
}


@triton.jit
def load_logits(
    similarity_ptr, key_norms_ptr, offs_c, mask_n, offs_m, N, query_norms, scale,
    NORMALIZE: tl.constexpr,
):  # fmt: skip
    """Similarities, the products of the norms and logits of a tile, which are there, and where."""
    offsets = offs_c.to(tl.int64)[:, None] * N + offs_m[None, :]
    mask = mask_n[:, None] & (offs_m < N)[None, :]
    similarity = tl.load(similarity_ptr + offsets, mask=mask, other=0.0)
    norms = query_norms[:, None]
    if NORMALIZE:
        norms = norms * tl.load(key_norms_ptr + offs_m, mask=offs_m < N, other=0.0)[None, :]
        similarity *= norms
    return similarity, norms, finite_or_nan(similarity * scale), mask, offsets


@triton.jit
def sums_kernel(
    similarity_ptr,  # (C, N)
    query_norms_ptr,  # (N,)
    key_norms_ptr,  # (N,)
    scale_ptr,  # ()
    pair_ptr,  # (N,): each pair's own logit
    row_parts_ptr,  # (splits, 2, C)
    column_parts_ptr,  # (tiles, 2, N), carried from chunk to chunk
    first,
    C,
    N,
    per_split,
    NORMALIZE: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_STREAM: tl.constexpr,
):
    """Maxima of BLOCK_OWN rows and of a split's columns, and the sums of exponentials over them.

    Without the pair's own, which is most of the sum where the loss is small.
    """
    dtype: tl.constexpr = pair_ptr.dtype.element_ty
    offs_c = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    offs_n = first + offs_c
    mask_n = offs_c < C
    scale, _raised = load_scales(scale_ptr, scale_ptr)
    query_norms = tl.full((BLOCK_OWN,), 1.0, dtype)
    if NORMALIZE:
        query_norms = tl.load(query_norms_ptr + offs_n, mask=mask_n, other=0.0)
    row_maximum = tl.full((BLOCK_OWN,), lowest(dtype), dtype)
    row_total = tl.zeros((BLOCK_OWN,), dtype)
    # No other program has these parts of columns, and chunks come one after another.
    carried = tl.where(first > 0, N, 0)
    column_parts_ptr += tl.program_id(0).to(tl.int64) * 2 * N
    start_split = tl.program_id(1) * per_split
    for start in range(start_split, tl.minimum(start_split + per_split, N), BLOCK_STREAM):
        offs_m = start + tl.arange(0, BLOCK_STREAM)
        _similarity, _norms, logits, mask, _offsets = load_logits(
            similarity_ptr, key_norms_ptr, offs_c, mask_n, offs_m, N, query_norms, scale, NORMALIZE
        )
        others = tl.where(mask & (offs_n[:, None] != offs_m[None, :]), logits, float("-inf"))
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
    tl.store(row_parts_ptr + offs_c, row_maximum, mask=mask_n)
    tl.store(row_parts_ptr + C + offs_c, row_total, mask=mask_n)
    if tl.program_id(1) == 0:
        pair = tl.load(similarity_ptr + offs_c.to(tl.int64) * N + offs_n, mask=mask_n, other=0.0)
        if NORMALIZE:
            pair *= query_norms * tl.load(key_norms_ptr + offs_n, mask=mask_n, other=0.0)
        tl.store(pair_ptr + offs_n, finite_or_nan(pair * scale), mask=mask_n)


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
    query_norms_ptr,  # (N,)
    key_norms_ptr,  # (N,)
    scale_ptr,  # ()
    query_shift_ptr,  # (N,)
    key_shift_ptr,  # (N,)
    query_factor_ptr,  # (N,): upstream gradient over the sum of exponentials
    key_factor_ptr,  # (N,)
    pair_weight_ptr,  # (N,)
    grad_scale_ptr,  # (splits, rows of the first chunk), carried from chunk to chunk
    first,
    C,
    N,
    per_split,
    stride_split,
    NORMALIZE: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_STREAM: tl.constexpr,
):
    """Derivative of the losses of both directions by each logit, and the rows' part of scale's."""
    offs_c = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    offs_n = first + offs_c
    mask_n = offs_c < C
    scale = tl.load(scale_ptr)  # of no temperature, it has left NaN in the factors
    query_shift = tl.load(query_shift_ptr + offs_n, mask=mask_n, other=0.0)
    query_factor = tl.load(query_factor_ptr + offs_n, mask=mask_n, other=0.0)
    pair_weight = tl.load(pair_weight_ptr + offs_n, mask=mask_n, other=0.0)
    query_norms = tl.full((BLOCK_OWN,), 1.0, scale.dtype)
    if NORMALIZE:
        query_norms = tl.load(query_norms_ptr + offs_n, mask=mask_n, other=0.0)
    grad_scale_ptr += tl.program_id(1).to(tl.int64) * stride_split + offs_c
    grad_scale = tl.load(grad_scale_ptr, mask=offs_c < tl.where(first > 0, C, 0), other=0.0)
    start_split = tl.program_id(1) * per_split
    for start in range(start_split, tl.minimum(start_split + per_split, N), BLOCK_STREAM):
        offs_m = start + tl.arange(0, BLOCK_STREAM)
        similarity, norms, logits, mask, offsets = load_logits(
            similarity_ptr, key_norms_ptr, offs_c, mask_n, offs_m, N, query_norms, scale, NORMALIZE
        )
        key_shift = tl.load(key_shift_ptr + offs_m, mask=offs_m < N, other=0.0)
        key_factor = tl.load(key_factor_ptr + offs_m, mask=offs_m < N, other=0.0)
        weights = query_factor[:, None] * tl.exp(logits - query_shift[:, None])
        weights += key_factor[None, :] * tl.exp(logits - key_shift[None, :])
        own = offs_n[:, None] == offs_m[None, :]
        weights = tl.where(mask, tl.where(own, pair_weight[:, None], weights), 0.0)
        grad_scale += tl.sum(weights * similarity, axis=1)
        if NORMALIZE:
            weights *= norms
        tl.store(weights_ptr + offsets, weights, mask=mask)
    tl.store(grad_scale_ptr, grad_scale, mask=mask_n)


def compared(query: Tensor, key: Tensor, normalize: bool) -> tuple[Tensor, Tensor, Layers]:
    """Rows as they are multiplied, and the norms that make them unit rows where there are some."""
    layers = packed([query], [key], Critic(normalize=normalize))
    if normalize:
        query, key = layers.query.view(query.shape), layers.key.view(key.shape)
    return query, key, layers


def clip_loss(
    query: Tensor,  # (N, D)
    key: Tensor,  # (N, D)
    logit_scale: Tensor,  # ()
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of queries, then of keys: the losses, the shifts and the sums of exp(logit - shift), (N,)."""
    query, key, layers = compared(query, key, normalize)
    N = len(query)
    rows = rows_per_chunk(N, N, logit_scale.itemsize)
    tiles, splits, per_split = tiling(rows, query)
    pair = logit_scale.new_empty(N)
    column_parts = logit_scale.new_empty(tiles, 2, N)
    outputs = [logit_scale.new_empty(N) for _ in range(6)]

    def finish(parts: Tensor, some: slice, of_side: list[Tensor]) -> None:
        results = [each[some] for each in (pair, *of_side)]
        C = len(results[0])
        losses_kernel[(triton.cdiv(C, MERGE["BLOCK_N"]),)](parts, *results, C, len(parts), **MERGE)

    with torch.cuda.device_of(query):
        for first in range(0, N, rows):
            some = slice(first, first + rows)
            similarity = multiply(query[some], key.T)
            C = len(similarity)
            row_parts = logit_scale.new_empty(splits, 2, C)
            sums_kernel[(triton.cdiv(C, TILE["BLOCK_OWN"]), splits)](
                similarity,
                layers.query_norms,
                layers.key_norms,
                logit_scale,
                pair,
                row_parts,
                column_parts,
                first,
                C,
                N,
                per_split,
                NORMALIZE=normalize,
                **TILE,
            )
            del similarity  # before the next is made
            finish(row_parts, some, outputs[::2])
        finish(column_parts, slice(None), outputs[1::2])
    return tuple(outputs)


def clip_loss_bwd(
    query: Tensor,  # (N, D)
    key: Tensor,  # (N, D)
    logit_scale: Tensor,  # ()
    normalize: bool,
    query_loss: Tensor,  # (N,)
    key_loss: Tensor,  # (N,)
    query_shift: Tensor,  # (N,)
    key_shift: Tensor,  # (N,)
    query_sum: Tensor,  # (N,)
    key_sum: Tensor,  # (N,)
    grad_query_loss: Tensor,  # (N,)
    grad_key_loss: Tensor,  # (N,)
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and logit_scale."""
    query, key, layers = compared(query, key, normalize)
    N, wide = len(query), logit_scale.dtype
    on_query, on_key, boost = boosted(query, grad_query_loss, grad_key_loss)
    factor, divisor = (logit_scale, 1) if boost is None else (logit_scale / boost, boost)
    # A pair's p - 1 is expm1 of minus its loss: at p = 1 the difference has no digits left.
    pair_weight = on_query * torch.expm1(-query_loss) + on_key * torch.expm1(-key_loss)
    factors = on_query / query_sum, on_key / key_sum
    shifts = query_shift.contiguous(), key_shift.contiguous()
    rows = rows_per_chunk(N, N, wide.itemsize + query.itemsize * (query.dtype != wide))
    _, splits, per_split = tiling(rows, query)
    grad_query = query.new_empty(query.shape, dtype=wide)
    grad_key = key.new_zeros(key.shape, dtype=wide)
    grad_scale = logit_scale.new_empty(splits, rows)
    for first in range(0, N, rows):
        some = slice(first, first + rows)
        similarity = multiply(query[some], key.T)
        weights = similarity if query.dtype == wide else query.new_empty(similarity.shape)
        C = len(similarity)
        with torch.cuda.device_of(query):
            weights_kernel[(triton.cdiv(C, TILE["BLOCK_OWN"]), splits)](
                similarity,
                weights,
                layers.query_norms,
                layers.key_norms,
                logit_scale,
                *shifts,
                *factors,
                pair_weight,
                grad_scale,
                first,
                C,
                N,
                per_split,
                rows,
                NORMALIZE=normalize,
                **TILE,
            )
        grad_query[some] = multiply(weights, key)
        accumulate(grad_key, weights.T, query[some])
        del similarity, weights  # before the next are made
    rest = None, layers, query.dtype
    return (
        gradient_of_input(grad_query.mul_(factor), query, layers.query_norms, *rest),
        gradient_of_input(grad_key.mul_(factor), key, layers.key_norms, *rest),
        grad_scale.sum() / divisor,
    )


def tiling(rows: int, query: Tensor) -> tuple[int, int, int]:
    """Tiles that cover a chunk's rows, splits of its columns, and columns of each split."""
    tiles = triton.cdiv(rows, TILE["BLOCK_OWN"])
    return tiles, *split(tiles, len(query), TILE["BLOCK_STREAM"], query.device)


def compilations() -> Iterator[Compilation]:
    """Every kernel; float16 takes what bfloat16 does and is left out."""
    for normalize in (False, True):
        constants = {"NORMALIZE": normalize, **TILE}
        name = " normalized" * normalize
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            narrow = ("weights_ptr",)
            yield compilation(f"clip weights{name}", weights_kernel, dtype, narrow, constants)
        for dtype in (torch.float32, torch.float64):
            yield compilation(f"clip sums{name}", sums_kernel, dtype, (), constants)
    for dtype in (torch.float32, torch.float64):
        yield compilation("clip losses", losses_kernel, dtype, (), MERGE)
