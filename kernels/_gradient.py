"""Gradients with the logits one tile at a time, in registers.

A program owns rows of one side and streams over those of the other, so the gradient of queries and
that of keys are one kernel, and no two programs add to the same place.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._ahead_of_time import SINGLE, Compilation, compilation
from mim4dd.kernels._critic import (
    IGNORE,
    load_excluded,
    load_gradient_side,
    load_key_labels,
    load_scales,
    logits_of,
    pair,
    pull_of,
    weights_of,
)
from mim4dd.kernels._dots import load_tile, multiply_rows
from mim4dd.kernels._forward import fused_positives
from mim4dd.kernels._inputs import Found, Layers, Queries, boosted, options_of, split
from mim4dd.kernels._rows import finish, locate
from mim4dd.kernels._tiles import entries
from mim4dd.reference import Critic


@triton.jit
def load_queries(
    labels_ptr,
    weight_ptr,
    lse_ptr,
    positives_ptr,
    bias_ptr,
    grad_loss_ptr,
    grad_lse_ptr,
    excluded_ptr,
    offs_n,
    mask_n,
    N,
    stride_bias,
    stride_loss,
    stride_lse,
    KIND: tl.constexpr,
    DECOUPLED: tl.constexpr,
    EXCLUDES: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
):
    """Labels and first excluded key of queries, and what :func:`weights_of` takes of each."""
    labels, on_loss, on_lse, weight, lse, bias = load_gradient_side(
        labels_ptr, weight_ptr, lse_ptr, bias_ptr, grad_loss_ptr, grad_lse_ptr, offs_n, mask_n,
        stride_bias, stride_loss, stride_lse, KIND, HAS_GRAD_LSE,
    )  # fmt: skip
    rest, positive_lse = weight, weight
    if KIND == "in":
        positive_lse = tl.load(positives_ptr + offs_n, mask=labels != IGNORE, other=0.0)
    if positives_ptr is not None:
        rest = tl.load(positives_ptr + N + offs_n, mask=labels != IGNORE, other=0.0)
    pull = pull_of(weight, rest, KIND, DECOUPLED)
    excluded = load_excluded(excluded_ptr, offs_n, EXCLUDES)
    return labels, excluded, (on_loss, on_lse, pull, lse, positive_lse, bias)


@triton.jit
def broadcast(values, BY_ROW: tl.constexpr):
    """One value for each row of a tile, or for each column."""
    return values[:, None] if BY_ROW else values[None, :]


@triton.jit
def tile_weights(
    similarity,
    labels,
    offs_n,
    excluded,
    side,
    key_labels,
    offs_m,
    mask_m,
    excluded_ptr,
    stride_excluded,
    num_excluded,
    scale,
    raised,
    OWN_QUERIES: tl.constexpr,
    KIND: tl.constexpr,
    DECOUPLED: tl.constexpr,
    EXCLUDES: tl.constexpr,
    HARD: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
):
    """Derivative of the losses by each logit of a tile, whichever side owns its rows."""
    on_loss, on_lse, pull, lse, positive_lse, bias = side
    valid, positive = pair(
        broadcast(labels, OWN_QUERIES),
        broadcast(offs_n, OWN_QUERIES),
        broadcast(excluded, OWN_QUERIES),
        broadcast(key_labels, not OWN_QUERIES),
        broadcast(offs_m, not OWN_QUERIES),
        broadcast(mask_m, not OWN_QUERIES),
        excluded_ptr,
        stride_excluded,
        num_excluded,
        EXCLUDES,
    )
    return weights_of(
        logits_of(similarity, positive, scale, raised, HARD),
        valid,
        positive,
        broadcast(on_loss, OWN_QUERIES),
        broadcast(on_lse, OWN_QUERIES),
        broadcast(pull, OWN_QUERIES),
        broadcast(lse, OWN_QUERIES),
        broadcast(positive_lse, OWN_QUERIES),
        broadcast(bias, OWN_QUERIES),
        KIND,
        DECOUPLED,
        HAS_GRAD_LSE,
    )


@triton.jit
def gradient_kernel(
    query_ptr,  # layers of (N, D)
    key_ptr,  # layers of (M, D)
    table_ptr,  # see layer_table
    labels_ptr,  # (N,)
    key_labels_ptr,  # (M,)
    excluded_ptr,  # see pair
    weight_ptr,  # (N,)
    query_norms_ptr,  # (L, N)
    key_norms_ptr,  # (L, M)
    scale_ptr,  # ()
    raised_ptr,  # (): scale of the negatives
    factor_ptr,  # (): scale over what the upstream gradients were multiplied by
    bias_ptr,  # () or (N,)
    lse_ptr,  # (L, N)
    positives_ptr,  # (L, 2, N), or None: lse of the positives ("in"), share of the negatives
    grad_loss_ptr,  # (L, N)
    grad_lse_ptr,  # (L, N)
    grad_ptr,  # (splits, layers of (N, D) or (M, D))
    grad_scale_ptr,  # (splits, L, N or M)
    grad_bias_ptr,  # (splits, L, N or M)
    N,
    M,
    stride_excluded,
    num_excluded,
    per_split,
    stride_split,
    stride_bias,
    stride_loss_l,
    stride_loss_n,
    stride_lse_l,
    stride_lse_n,
    num_layers,
    OWN_QUERIES: tl.constexpr,
    KIND: tl.constexpr,
    DECOUPLED: tl.constexpr,
    EXCLUDES: tl.constexpr,
    HARD: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_KEY_LABELS: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
    WANT_ROWS: tl.constexpr,
    WANT_SCALE: tl.constexpr,
    WANT_BIAS: tl.constexpr,
    RESIDENT: tl.constexpr,
    DIVISOR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_STREAM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradient of BLOCK_OWN rows of a layer, in BLOCK_D columns, and their part of the scalars'."""
    dtype: tl.constexpr = lse_ptr.dtype.element_ty
    layer, D, before, stride_q, stride_k, start_d = locate(table_ptr, tl.program_id(1), DIVISOR)
    lse_ptr += layer * N
    grad_loss_ptr += layer * stride_loss_l
    if positives_ptr is not None:
        positives_ptr += layer * 2 * N
    if HAS_GRAD_LSE:
        grad_lse_ptr += layer * stride_lse_l
    own_ptr, own_stride, num_own = query_ptr + before * N, stride_q, N
    stream_ptr, stream_stride, num_stream = key_ptr + before * M, stride_k, M
    own_norms_ptr, stream_norms_ptr = query_norms_ptr, key_norms_ptr
    if not OWN_QUERIES:
        own_ptr, own_stride, num_own, stream_ptr, stream_stride, num_stream = (
            stream_ptr, stream_stride, num_stream, own_ptr, own_stride, num_own,
        )  # fmt: skip
        own_norms_ptr, stream_norms_ptr = key_norms_ptr, query_norms_ptr
    offs_own = tl.program_id(0).to(tl.int64) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    if OWN_QUERIES:
        labels, excluded, side = load_queries(
            labels_ptr, weight_ptr, lse_ptr, positives_ptr, bias_ptr, grad_loss_ptr, grad_lse_ptr,
            excluded_ptr, offs_own, offs_own < N, N, stride_bias, stride_loss_n,
            stride_lse_n, KIND, DECOUPLED, EXCLUDES, HAS_GRAD_LSE,
        )  # fmt: skip
        mask_own = labels != IGNORE
    else:
        key_labels, mask_own = load_key_labels(
            key_labels_ptr, offs_own, offs_own < M, HAS_KEY_LABELS
        )
    offs_d = start_d + tl.arange(0, BLOCK_D)
    if RESIDENT:
        own = load_tile(own_ptr, offs_own, mask_own, own_stride, offs_d, D, INTERPRETED)
    if NORMALIZE:
        own_norms = tl.load(own_norms_ptr + layer * num_own + offs_own, mask=mask_own, other=0.0)
    scale, raised = load_scales(scale_ptr, raised_ptr)

    grad = tl.zeros((BLOCK_OWN, BLOCK_D), dtype)
    grad_scale = tl.zeros((BLOCK_OWN,), dtype)
    grad_bias = grad_scale
    first = tl.program_id(2) * per_split
    for start in range(first, tl.minimum(first + per_split, num_stream), BLOCK_STREAM):
        offs_stream = start + tl.arange(0, BLOCK_STREAM).to(tl.int64)
        if OWN_QUERIES:
            key_labels, mask_stream = load_key_labels(
                key_labels_ptr, offs_stream, offs_stream < M, HAS_KEY_LABELS
            )
            offs_n, offs_m, mask_m = offs_own, offs_stream, mask_stream
        else:
            labels, excluded, side = load_queries(
                labels_ptr, weight_ptr, lse_ptr, positives_ptr, bias_ptr, grad_loss_ptr,
                grad_lse_ptr, excluded_ptr, offs_stream, offs_stream < N, N,
                stride_bias, stride_loss_n, stride_lse_n, KIND, DECOUPLED, EXCLUDES, HAS_GRAD_LSE,
            )  # fmt: skip
            mask_stream = labels != IGNORE
            offs_n, offs_m, mask_m = offs_stream, offs_own, mask_own
        stream = load_tile(
            stream_ptr, offs_stream, mask_stream, stream_stride, offs_d, D, INTERPRETED
        )
        if RESIDENT:
            similarity = tl.dot(own, tl.trans(stream), input_precision=PRECISION, out_dtype=dtype)
        else:
            similarity = multiply_rows(
                own_ptr, offs_own, mask_own, own_stride, stream_ptr, offs_stream, mask_stream,
                stream_stride, D, BLOCK_OWN, BLOCK_STREAM, BLOCK_K, PRECISION, INTERPRETED, dtype,
            )  # fmt: skip
        if NORMALIZE:
            stream_norms_of = stream_norms_ptr + layer * num_stream + offs_stream
            stream_norms = tl.load(stream_norms_of, mask=mask_stream, other=0.0)
            norms = own_norms[:, None] * stream_norms[None, :]
            similarity *= norms
        weights = tile_weights(
            similarity, labels, offs_n, excluded, side, key_labels, offs_m, mask_m, excluded_ptr,
            stride_excluded, num_excluded, scale, raised, OWN_QUERIES, KIND, DECOUPLED, EXCLUDES,
            HARD, HAS_GRAD_LSE,
        )  # fmt: skip
        if WANT_SCALE:
            grad_scale += tl.sum(weights * similarity, axis=1)
        if WANT_BIAS:
            grad_bias += tl.sum(weights, axis=1)
        if WANT_ROWS:
            if NORMALIZE:
                weights *= norms
            grad = tl.dot(
                weights.to(stream.dtype), stream, grad, input_precision=PRECISION, out_dtype=dtype
            )

    out = (tl.program_id(2).to(tl.int64) * num_layers + layer) * num_own + offs_own
    if WANT_ROWS:
        grad *= tl.load(factor_ptr)
        pointers = before * num_own + offs_own[:, None] * D + offs_d[None, :]
        grad_ptr += tl.program_id(2).to(tl.int64) * stride_split
        mask = (offs_own < num_own)[:, None] & (offs_d < D)[None, :]
        tl.store(grad_ptr + pointers, grad, mask=mask)
    if start_d == 0:  # every stretch of columns finds the same
        if WANT_SCALE:
            tl.store(grad_scale_ptr + out, grad_scale, mask=offs_own < num_own)
        if WANT_BIAS:
            tl.store(grad_bias_ptr + out, grad_bias, mask=offs_own < num_own)


def fused_backward(
    layers: Layers,
    queries: Queries,
    critic: Critic,
    lse: Tensor,
    grad_loss: Tensor,
    grad_lse: Tensor | None,
    gradients: Sequence[bool],
    dtype: torch.dtype,
    positives: Tensor | None = None,
) -> list[Found]:
    """Launch: the wanted gradients of each layer, those of rows in ``dtype``.

    ``positives`` are those of :func:`fused_forward`. The op saves lse alone: without them the
    products of the logits are made once more, where a query needs it.
    """
    want_query, want_key, want_scale, want_bias = gradients
    if positives is None:
        positives = fused_positives(layers, queries, critic)
    grad_loss, grad_lse, boost = boosted(layers.query, grad_loss, grad_lse)
    factor = queries.scale if boost is None else queries.scale / boost
    upstream = (lse, positives, grad_loss, grad_lse, factor, dtype)
    query, key = None, None
    scale, bias = None, None
    if want_query or want_scale or want_bias:
        scalars = (want_scale, want_bias)
        query, scale, bias = _launch(True, want_query, scalars, layers, queries, critic, *upstream)
    if want_key:
        key, _, _ = _launch(False, True, (False, False), layers, queries, critic, *upstream)
    if boost is not None:
        scale, bias = (None if part is None else part / boost for part in (scale, bias))
    empty = [None] * len(layers.sizes)
    return [
        Found(q, k, *(None if part is None else part[i] for part in (scale, bias)))
        for i, (q, k) in enumerate(zip(query or empty, key or empty, strict=True))
    ]


def _launch(
    own_queries: bool,
    want_rows: bool,
    want_scalars: tuple[bool, bool],
    layers: Layers,
    queries: Queries,
    critic: Critic,
    lse: Tensor,
    positives: Tensor | None,
    grad_loss: Tensor,
    grad_lse: Tensor | None,
    factor: Tensor,
    dtype: torch.dtype,
) -> tuple[list[Tensor] | None, Tensor | None, Tensor | None]:
    """Gradients of the queries' or the keys' rows, one by layer, and of the scalars (L,)."""
    N, M, L = layers.N, layers.M, len(layers.sizes)
    own, stream = (N, M) if own_queries else (M, N)
    rows = layers.query if own_queries else layers.key
    options, blocks = layers.options("gradient", queries.num_excluded > 1)
    table = layers.table(blocks["BLOCK_D"] if want_rows else max(layers.sizes))
    row_tiles = triton.cdiv(own, blocks["BLOCK_OWN"])
    splits, per_split = split(row_tiles * len(table), stream, blocks["BLOCK_STREAM"], lse.device)
    direct = splits == 1 and not critic.normalize
    size = own * sum(layers.sizes)
    stored = dtype if direct else lse.dtype
    grad = torch.empty(splits, size, dtype=stored, device=lse.device) if want_rows else None
    scalars = [lse.new_empty(splits, L, own) if want else None for want in want_scalars]
    with torch.cuda.device_of(lse):
        gradient_kernel[(row_tiles, len(table), splits)](
            layers.query,
            layers.key,
            table,
            queries.labels,
            queries.key_labels,
            queries.excluded,
            queries.weight,
            layers.query_norms,
            layers.key_norms,
            queries.scale,
            queries.raised,
            factor,
            queries.bias,
            lse.contiguous(),
            positives,
            grad_loss,
            grad_lse,
            grad,
            *scalars,
            N,
            M,
            queries.stride_excluded,
            queries.num_excluded,
            per_split,
            size,
            queries.stride_bias,
            *grad_loss.stride(),
            *((0, 0) if grad_lse is None else grad_lse.stride()),
            L,
            OWN_QUERIES=own_queries,
            **options_of(critic, queries),
            NORMALIZE=critic.normalize,
            HAS_KEY_LABELS=queries.key_labels is not None,
            HAS_GRAD_LSE=grad_lse is not None,
            WANT_ROWS=want_rows,
            WANT_SCALE=want_scalars[0],
            WANT_BIAS=want_scalars[1],
            **options,
            **blocks,
        )
    scale, bias = (None if part is None else part.sum((0, 2)) for part in scalars)
    if grad is None:
        return None, scale, bias
    if direct:
        grad = grad[0]
    else:
        norms = layers.query_norms if own_queries else layers.key_norms
        labels = queries.labels if own_queries else queries.key_labels
        slabs = layers.table(max(layers.sizes))
        grad = finish(grad, rows, norms, labels, slabs, layers.sizes, own, dtype)
    parts = grad.split([own * D for D in layers.sizes])
    return [p.view(own, D) for p, D in zip(parts, layers.sizes, strict=True)], scale, bias


def compilations() -> Iterator[Compilation]:
    """The tiles of every entry and both sides, with the options that take most; and a plain one."""
    for sizes, dtype, precision, D, capabilities in entries("gradient"):
        for own_queries, kind, rich, several in (
            (True, "out", False, False),
            (False, "out", False, False),
            (True, "in", True, False),
            (False, "nce", True, False),
            (False, "nce", True, True),
        ):
            if (several or not rich) and dtype != torch.bfloat16:
                continue
            tiles = sizes.for_several() if several else sizes
            constants = {
                "OWN_QUERIES": own_queries,
                "KIND": kind,
                "DECOUPLED": rich and kind == "in",
                "EXCLUDES": rich,
                "HARD": rich,
                "NORMALIZE": rich,
                "HAS_KEY_LABELS": True,
                "HAS_GRAD_LSE": rich,
                "WANT_ROWS": True,
                "WANT_SCALE": own_queries,
                "WANT_BIAS": own_queries and rich,
                "RESIDENT": D > 0,
                "DIVISOR": 16,
                "PRECISION": precision,
                "INTERPRETED": False,
                **tiles.launch("BLOCK_OWN", "BLOCK_STREAM", "BLOCK_K", "BLOCK_D"),
                **({"positives_ptr": None} if kind == "nce" else {}),
                **({} if several else SINGLE),
            }
            kind += " several" * several
            side = "query" if own_queries else "key"
            name = f"gradient {side} {kind} D<={D or 'any'} {precision}"
            narrow = ("query_ptr", "key_ptr", "grad_ptr")
            yield compilation(name, gradient_kernel, dtype, narrow, constants, capabilities)
