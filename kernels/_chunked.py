"""Rows of logits made by cuBLAS, a chunk at a time, and turned into gradient weights in one pass.

For rows too wide for the fused kernels, where the products cost far more than the traffic of the
logits: the forward makes both gradients from the same logits. And for second derivatives of every
width.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._ahead_of_time import EVERY_CASE, SINGLE, Compilation, compilation
from mim4dd.kernels._arguments import Form, Norms, Pairs, Saved, Scales, Upstream
from mim4dd.kernels._critic import (
    IGNORE,
    QueryTile,
    WeightTerms,
    add_tile,
    keeps_rest,
    load_bias,
    load_excluded,
    load_keys,
    load_scales,
    load_upstream,
    logits_of,
    loss_of,
    no_sums,
    pair,
    pull_of,
    queries_along,
    terms_along,
    weights_of,
)
from mim4dd.kernels._inputs import (
    LARGEST_UPSTREAM,
    Found,
    Layers,
    Queries,
    boosted,
    form_of,
    packed,
    upstream_of,
)
from mim4dd.kernels._rows import join_parts
from mim4dd.reference import Critic

WORKSPACE = 2**26  # bytes of logits at a time; not tuned on a GPU yet
CUBLAS_TILE = 128  # rows
HALF = (torch.float16, torch.bfloat16)


class Row(NamedTuple):
    """The query of a program, (1,) each, and its scales."""

    similarity_ptr: tl.tensor  # (M,): products with the keys
    query: QueryTile
    used: tl.tensor  # whether it takes part
    norm: tl.tensor
    scale: tl.tensor
    raised: tl.tensor


class PairTile(NamedTuple):
    """A row's pairs with some keys, (1, BLOCK_M) each."""

    similarity: tl.tensor
    norms: tl.tensor  # products of the norms, which are in it
    logits: tl.tensor
    valid: tl.tensor
    positive: tl.tensor


@triton.jit
def load_row(similarity_ptr, query_norms_ptr, pairs, scales, first, dtype: tl.constexpr):
    """The row of this program, in a chunk that begins with query ``first``."""
    row = tl.program_id(0).to(tl.int64)
    offs_n = first + row + tl.arange(0, 1)
    labels = tl.load(pairs.labels + offs_n)
    if query_norms_ptr is not None:
        norm = tl.load(query_norms_ptr + offs_n)
    else:
        norm = tl.full((1,), 1.0, dtype)
    scale, raised = load_scales(scales.scale, scales.raised)
    query = QueryTile(offs_n, labels, load_excluded(pairs, offs_n))
    similarity_ptr += row * pairs.num_keys
    return Row(similarity_ptr, query, labels != IGNORE, norm, scale, raised)


@triton.jit
def load_pairs(row, key_norms_ptr, pairs, offs_m, form: tl.constexpr):
    """A row's pairs with keys ``offs_m``, (1, BLOCK_M)."""
    keys = load_keys(pairs, offs_m)
    similarity = tl.load(row.similarity_ptr + offs_m, mask=keys.mask, other=0.0)
    norms = row.norm[:, None]
    if key_norms_ptr is not None:
        norms = norms * tl.load(key_norms_ptr + offs_m, mask=keys.mask, other=0.0)
        similarity *= norms
    valid, positive = pair(queries_along(row.query, True), keys, pairs)
    logits = logits_of(similarity, positive, row.scale, row.raised, form)
    return PairTile(similarity, norms, logits, valid & row.used[:, None], positive)


@triton.jit
def sum_row(row, key_norms_ptr, pairs, bias, needed, form: tl.constexpr, BLOCK_M: tl.constexpr):
    """What the loss of a row is made of, over all keys; of none unless it is ``needed``."""
    sums = no_sums(1, form, bias.dtype)
    last = tl.where(tl.max(needed.to(tl.int32), axis=0) > 0, pairs.num_keys, 0)
    for start in range(0, last, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)[None, :].to(tl.int64)
        tile = load_pairs(row, key_norms_ptr, pairs, offs_m, form)
        sums = add_tile(sums, tile.logits, bias[:, None], tile.valid, tile.positive, form)
    return sums


@triton.jit
def chunk_kernel(
    similarity_ptr,  # (C, M)
    weights_ptr,  # (C, M), may be the same
    norms: Norms,
    pairs: Pairs,
    scales: Scales,
    saved: Saved,  # lse is written where there is a loss
    loss_ptr,  # (N,), written; or None: the forward has been
    upstream: Upstream,
    grad_scale_ptr,  # (N,)
    grad_bias_ptr,  # (N,)
    first,
    UPSTREAM: tl.constexpr,  # in the forward, of every loss
    WANT_WEIGHTS: tl.constexpr,
    form: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Of one query: loss and lse in the forward, then the weights of its keys."""
    dtype: tl.constexpr = saved.lse.dtype.element_ty
    N = pairs.num_queries
    M = pairs.num_keys
    row = load_row(similarity_ptr, norms.query, pairs, scales, first, dtype)
    offs_n = row.query.offs
    if loss_ptr is not None:
        weight = tl.load(saved.weight + offs_n)
        on_loss = tl.where(weight > 0, UPSTREAM, 0.0).to(dtype)
        on_lse = tl.zeros((1,), dtype)
        lse = weight
        bias = load_bias(scales, weight, offs_n, row.used, form)
        needed = offs_n < N
    else:
        on_loss, on_lse, weight, lse, bias = load_upstream(
            scales, saved, upstream, 0, offs_n, row.used, N, form
        )
        needed = keeps_rest(weight, form)

    sums = sum_row(row, norms.key, pairs, bias, needed, form, BLOCK_M)
    loss, found_lse, positive_lse, rest = loss_of(sums, weight, form)
    if loss_ptr is not None:
        tl.store(loss_ptr + offs_n, tl.where(row.used, loss, 0.0))
        tl.store(saved.lse + offs_n, tl.where(row.used, found_lse, 0.0))
        lse = found_lse

    if WANT_WEIGHTS:
        pull = pull_of(weight, rest, form)
        terms = terms_along(WeightTerms(on_loss, on_lse, pull, lse, positive_lse, bias), True)
        weights_ptr += tl.program_id(0).to(tl.int64) * M
        grad_scale = tl.zeros((1,), dtype)
        grad_bias = grad_scale
        for start in range(0, M, BLOCK_M):
            offs_m = start + tl.arange(0, BLOCK_M)[None, :].to(tl.int64)
            tile = load_pairs(row, norms.key, pairs, offs_m, form)
            weights = weights_of(
                tile.logits, tile.valid, tile.positive, terms, form, upstream.lse is not None
            )
            grad_scale += tl.sum(weights * tile.similarity, axis=1)
            grad_bias += tl.sum(weights, axis=1)
            if norms.key is not None:
                weights *= tile.norms
            tl.store(weights_ptr + offs_m, weights, mask=offs_m < M)
        tl.store(grad_scale_ptr + offs_n, grad_scale)
        tl.store(grad_bias_ptr + offs_n, grad_bias)


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b in the accumulation type; float32 as torch.set_float32_matmul_precision asks."""
    with torch.autocast(a.device.type, enabled=False):  # it would multiply float32 in half
        if a.dtype not in HALF:
            return torch.mm(a, b, out=out)
        if a.device.type == "cpu":
            return torch.mm(a.float(), b.float(), out=out)
        return torch.mm(a, b, out_dtype=torch.float32, out=out)


def rows_per_chunk(N: int, M: int, bytes_per_pair: int) -> int:
    """Queries whose pairs with all keys fit the workspace; whole tiles of cuBLAS, if any."""
    rows = max(1, min(N, WORKSPACE // (M * bytes_per_pair)))
    whole = rows - rows % CUBLAS_TILE
    return whole if whole and rows < N else rows


def row_launch(M: int) -> dict[str, int | bool]:
    """Options of the kernels that have one program per row; not tuned on a GPU yet."""
    return {
        "BLOCK_M": min(1024, max(16, triton.next_power_of_2(M))),
        "num_warps": 4,
        "enable_fp_fusion": True,
    }


def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, which cuBLAS does in one pass over the sum."""
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype == total.dtype:
            total.addmm_(a, b)
        elif a.device.type == "cpu":  # which has no out_dtype
            total += multiply(a, b)
        else:
            torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def chunk_pass(
    query: Tensor,  # (N, D)
    key: Tensor,  # (M, D)
    queries: Queries,
    critic: Critic,
    gradients: Sequence[bool],
    lse: Tensor,  # (N,): written where there is a loss
    loss: Tensor | None,  # (N,): written; then the gradients are those of its sum, over ``share``
    grad_loss: Tensor | None,  # (N,)
    grad_lse: Tensor | None,  # (N,)
    share: Tensor | None = None,  # (): what the gradients are divided by
) -> Found:
    """One layer's forward with the gradients wanted, or its gradients alone.

    The gradients of rows are wide in the forward, where more is to multiply them.
    """
    want_query, want_key, want_scale, want_bias = gradients
    (N, D), M = query.shape, key.shape[0]
    layers = packed([query], [key], critic)
    if critic.normalize:
        query, key = layers.query.view(N, D), layers.key.view(M, D)
    query, key = queries.without_ignored(query, key)
    wide = queries.weight.dtype
    grad_query = query.new_empty(N, D, dtype=wide) if want_query else None
    grad_key = key.new_zeros(M, D, dtype=wide) if want_key else None
    grad_scale, grad_bias = lse.new_empty(2, N)
    divisor: Tensor | float = 1.0
    if grad_loss is not None:
        grad_loss, grad_lse, boost = boosted(query, grad_loss, grad_lse)
        divisor = 1.0 if boost is None else boost
    elif query.dtype == torch.float16:
        divisor = LARGEST_UPSTREAM
    dtype = query.dtype if loss is None else wide
    pairs, saved = queries.pairs(M), Saved(queries.weight, lse, None)
    upstream = upstream_of(grad_loss, grad_lse)
    rows = rows_per_chunk(N, M, 4 + 2 * (query.dtype != wide))
    for first in range(0, N, rows):
        some = slice(first, first + rows)
        similarity = multiply(query[some], key.T)
        weights = similarity if query.dtype == wide else query.new_empty(similarity.shape)
        with torch.cuda.device_of(query):
            chunk_kernel[(len(similarity),)](
                similarity,
                weights,
                layers.norms,
                pairs,
                queries.scales,
                saved,
                loss,
                upstream,
                grad_scale,
                grad_bias,
                first,
                UPSTREAM=divisor if loss is not None else 1.0,
                WANT_WEIGHTS=any(gradients),
                form=form_of(critic),
                **row_launch(M),
            )
        if grad_query is not None:
            multiply(weights, key, grad_query[some])
        if grad_key is not None:
            accumulate(grad_key, weights.T, query[some])
        del similarity, weights  # before the next are made

    if share is not None:
        divisor = divisor * share
    if grad_query is not None:
        grad_query *= queries.scale / divisor
        grad_query = gradient_of_input(
            grad_query, query, layers.query_norms, queries.labels, layers, dtype
        )
    if grad_key is not None:
        grad_key *= queries.scale / divisor
        grad_key = gradient_of_input(
            grad_key, key, layers.key_norms, queries.key_labels, layers, dtype
        )
    return Found(
        grad_query,
        grad_key,
        grad_scale.sum() / divisor if want_scale else None,
        grad_bias.sum() / divisor if want_bias else None,
    )


def gradient_of_input(
    grad: Tensor,  # (R, D) of the rows as they were multiplied and then scaled by norms
    rows: Tensor,  # (R, D) as they were multiplied
    norms: Tensor | None,  # (2, 1, R)
    labels: Tensor | None,  # (R,)
    layers: Layers,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of a side as it was given, in ``dtype``."""
    if norms is None:
        return grad.to(dtype)
    R, D = rows.shape
    partial, slabs = grad.view(1, -1), layers.table(D)
    return join_parts(partial, rows, norms, labels, slabs, (D,), R, dtype).view_as(rows)


def compilations() -> Iterator[Compilation]:
    """All passes at once, for the softmax with most terms and for "nce"; and gradients alone."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for kind in ("in", "nce"):
            shared = {
                "saved.positives": None,
                "UPSTREAM": 1.0,
                "WANT_WEIGHTS": True,
                "form": Form(kind, kind == "in", True),
                **SINGLE,
                **row_launch(1024),
            }
            constants = {"upstream.loss": None, "upstream.lse": None, **shared}
            yield compilation(f"chunk {kind}", chunk_kernel, dtype, ("weights_ptr",), constants)
            constants = {"loss_ptr": None, **shared}
            name = f"chunk gradients {kind}"
            yield compilation(name, chunk_kernel, dtype, ("weights_ptr",), constants, EVERY_CASE)
