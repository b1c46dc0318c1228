"""Triton launchers of CLIP's symmetric loss: forward, gradients.

cuBLAS makes the logits of some queries at a time, and one reading of them serves both directions:
sums of exponentials by row and by column in the forward, one matrix of weights for the gradients.
8·N²·D operations in all, where two calls of InfoNCE take 12 to 16 with chunks and 20 fused. Rows of
half precision whose tiles fit the registers write no logits: _paired.py. Nothing is added
atomically: every result has the same bits each time.
"""

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from mim4dd.kernels import _paired
from mim4dd.kernels._ahead_of_time import Compilation, compilation
from mim4dd.kernels._chunked import accumulate, gradient_of_input, multiply, rows_per_chunk
from mim4dd.kernels._clip_loss import (
    Chunk,
    Softmax,
    losses_kernel,
    sums_kernel,
    weights_kernel,
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
    if _paired.serves(layers, normalize):
        loss, shift, total = _paired.losses(layers, logit_scale)
        return *loss.unbind(), *shift.unbind(), *total.unbind()
    N = len(query)
    rows = rows_per_chunk(N, N, logit_scale.itemsize)
    tiles, splits, per_split = tiling(rows, query)
    pair = logit_scale.new_empty(N)
    column_parts = logit_scale.new_empty(tiles, 2, N)
    outputs = [logit_scale.new_empty(N) for _ in range(6)]

    def write_losses(parts: Tensor, some: slice, of_side: list[Tensor]) -> None:
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
                layers.norms,
                logit_scale,
                pair,
                row_parts,
                column_parts,
                Chunk(first, C, N, per_split),
                **TILE,
            )
            del similarity  # before the next is made
            write_losses(row_parts, some, outputs[::2])
        write_losses(column_parts, slice(None), outputs[1::2])
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
    of_query = Softmax(query_shift.contiguous(), on_query / query_sum)
    of_key = Softmax(key_shift.contiguous(), on_key / key_sum)
    if _paired.serves(layers, normalize):
        shift, of_sums = (torch.stack(side) for side in zip(of_query, of_key, strict=True))
        rows, of_scale = _paired.gradients(layers, logit_scale, factor, shift, of_sums, pair_weight)
        return *rows.unbind(), of_scale.sum() / divisor
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
                layers.norms,
                logit_scale,
                of_query,
                of_key,
                pair_weight,
                grad_scale,
                rows,
                Chunk(first, C, N, per_split),
                **TILE,
            )
        multiply(weights, key, grad_query[some])
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
    yield from _paired.compilations()
    for normalize in (False, True):
        unit = {} if normalize else {"norms.query": None, "norms.key": None}
        constants = {**unit, **TILE}
        name = " normalized" * normalize
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            narrow = ("weights_ptr",)
            yield compilation(f"clip weights{name}", weights_kernel, dtype, narrow, constants)
        for dtype in (torch.float32, torch.float64):
            yield compilation(f"clip sums{name}", sums_kernel, dtype, (), constants)
    for dtype in (torch.float32, torch.float64):
        yield compilation("clip losses", losses_kernel, dtype, (), MERGE)
