"""Gradients with the logits one tile at a time, in registers.

A program owns rows of one side and streams over those of the other, so the gradient of queries and
that of keys are one kernel, and no two programs add to the same place.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._ahead_of_time import EVERY_CASE, SINGLE, Compilation, compilation
from mim4dd.kernels._arguments import (
    Features,
    Form,
    GradientParts,
    Norms,
    Pairs,
    Saved,
    Scales,
    Upstream,
)
from mim4dd.kernels._critic import (
    IGNORE,
    QueryTile,
    WeightTerms,
    keys_along,
    load_excluded,
    load_keys,
    load_scales,
    load_upstream,
    logits_of,
    pair,
    pull_of,
    queries_along,
    terms_along,
    weights_of,
)
from mim4dd.kernels._forward import fused_positives
from mim4dd.kernels._inputs import Found, Layers, Queries, boosted, form_of, split, upstream_of
from mim4dd.kernels._rows import join_parts, locate
from mim4dd.kernels._tiles import (
    Block,
    entries,
    load_norms,
    load_tile,
    multiplied,
    sides_of,
    similarity_of,
)
from mim4dd.reference import Critic


@triton.jit
def load_queries(pairs, scales, saved, upstream, layer, offs_n, form: tl.constexpr):
    """Queries ``offs_n``, and what :func:`weights_of` takes of each."""
    N = pairs.num_queries
    labels = tl.load(pairs.labels + offs_n, mask=offs_n < N, other=IGNORE)
    used = labels != IGNORE
    on_loss, on_lse, weight, lse, bias = load_upstream(
        scales, saved, upstream, layer, offs_n, used, N, form
    )
    rest, positive_lse = weight, weight
    if saved.positives is not None:
        positives_ptr = saved.positives + layer * 2 * N + offs_n
        if form.KIND == "in":
            positive_lse = tl.load(positives_ptr, mask=used, other=0.0)
        rest = tl.load(positives_ptr + N, mask=used, other=0.0)
    pull = pull_of(weight, rest, form)
    queries = QueryTile(offs_n, labels, load_excluded(pairs, offs_n))
    return queries, WeightTerms(on_loss, on_lse, pull, lse, positive_lse, bias)


@triton.jit
def tile_weights(
    similarity, queries, terms, keys, pairs, scale, raised, OWN_QUERIES: tl.constexpr,
    form: tl.constexpr, HAS_GRAD_LSE: tl.constexpr,
):  # fmt: skip
    """Derivative of the losses by each logit of a tile, whichever side owns its rows."""
    valid, positive = pair(
        queries_along(queries, OWN_QUERIES), keys_along(keys, not OWN_QUERIES), pairs
    )
    logits = logits_of(similarity, positive, scale, raised, form)
    terms = terms_along(terms, OWN_QUERIES)
    return weights_of(logits, valid, positive, terms, form, HAS_GRAD_LSE)


@triton.jit
def gradient_kernel(
    features: Features,
    norms: Norms,
    table_ptr,  # see layer_table
    pairs: Pairs,
    scales: Scales,
    factor_ptr,  # (): scale over what the upstream gradients were multiplied by
    saved: Saved,
    upstream: Upstream,
    parts: GradientParts,
    per_split,
    stride_split,
    num_layers,
    OWN_QUERIES: tl.constexpr,
    form: tl.constexpr,
    tiling: tl.constexpr,
):
    """Gradient of BLOCK_OWN rows of a layer, in BLOCK_D columns, and their part of the scalars'."""
    BLOCK_OWN: tl.constexpr = tiling.BLOCK_OWN
    BLOCK_STREAM: tl.constexpr = tiling.BLOCK_STREAM
    BLOCK_D: tl.constexpr = tiling.BLOCK_D
    dtype: tl.constexpr = saved.lse.dtype.element_ty
    slab = locate(table_ptr, tl.program_id(1), tiling.DIVISOR)
    layer = slab.layer
    own, stream = sides_of(features, pairs, slab, OWN_QUERIES)
    own_norms_ptr = norms.query if OWN_QUERIES else norms.key
    stream_norms_ptr = norms.key if OWN_QUERIES else norms.query
    offs_own = tl.program_id(0).to(tl.int64) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    if OWN_QUERIES:
        queries, terms = load_queries(pairs, scales, saved, upstream, layer, offs_own, form)
        rows = Block(offs_own, queries.labels != IGNORE)
    else:
        keys = load_keys(pairs, offs_own)
        rows = Block(offs_own, keys.mask)
    offs_d = slab.first + tl.arange(0, BLOCK_D)
    own_tile = load_tile(own, rows, offs_d, tiling.INTERPRETED) if tiling.RESIDENT else None
    if own_norms_ptr is not None:
        own_norms = load_norms(own_norms_ptr, own, layer, rows)
    scale, raised = load_scales(scales.scale, scales.raised)

    grad = tl.zeros((BLOCK_OWN, BLOCK_D), dtype)
    grad_scale = tl.zeros((BLOCK_OWN,), dtype)
    grad_bias = grad_scale
    first = tl.program_id(2) * per_split
    for start in range(first, tl.minimum(first + per_split, stream.count), BLOCK_STREAM):
        offs_stream = start + tl.arange(0, BLOCK_STREAM).to(tl.int64)
        if OWN_QUERIES:
            keys = load_keys(pairs, offs_stream)
            columns = Block(offs_stream, keys.mask)
        else:
            queries, terms = load_queries(pairs, scales, saved, upstream, layer, offs_stream, form)
            columns = Block(offs_stream, queries.labels != IGNORE)
        tile = load_tile(stream, columns, offs_d, tiling.INTERPRETED)
        similarity = similarity_of(own, rows, own_tile, stream, columns, tile, tiling, dtype)
        if stream_norms_ptr is not None:
            stream_norms = load_norms(stream_norms_ptr, stream, layer, columns)
            products = own_norms[:, None] * stream_norms[None, :]
            similarity *= products
        weights = tile_weights(
            similarity, queries, terms, keys, pairs, scale, raised, OWN_QUERIES, form,
            upstream.lse is not None,
        )  # fmt: skip
        if parts.scale is not None:
            grad_scale += tl.sum(weights * similarity, axis=1)
        if parts.bias is not None:
            grad_bias += tl.sum(weights, axis=1)
        if parts.rows is not None:
            if stream_norms_ptr is not None:
                weights *= products
            grad = tl.dot(
                multiplied(weights, stream, tile),
                tile,
                grad,
                input_precision=tiling.PRECISION,
                out_dtype=dtype,
            )
    sums = GradientParts(grad, grad_scale, grad_bias)
    store_parts(parts, sums, factor_ptr, own, slab, offs_own, stride_split, num_layers, tiling)


@triton.jit
def store_parts(
    parts, sums, factor_ptr, own, slab, offs_own, stride_split, num_layers, tiling: tl.constexpr
):
    """What a program has found."""
    DIVISOR: tl.constexpr = tiling.DIVISOR  # a plain number to Triton 3.6, which takes none as such
    mask = offs_own < own.count
    split = tl.program_id(2).to(tl.int64)
    if parts.rows is not None:
        offs_d = slab.first + tl.arange(0, tiling.BLOCK_D)
        offsets = slab.before * own.count + offs_own[:, None] * own.D + offs_d[None, :]
        pointers = parts.rows + tl.multiple_of(split * stride_split, DIVISOR) + offsets
        mask_d = offs_d < own.D
        tl.store(pointers, sums.rows * tl.load(factor_ptr), mask=mask[:, None] & mask_d[None, :])
    if slab.first == 0:  # every stretch of columns finds the same
        out = (split * num_layers + slab.layer) * own.count + offs_own
        if parts.scale is not None:
            tl.store(parts.scale + out, sums.scale, mask=mask)
        if parts.bias is not None:
            tl.store(parts.bias + out, sums.bias, mask=mask)


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
    pairs = queries.pairs(M)
    tiling, options = layers.options("gradient", pairs.num_excluded > 1)
    table = layers.table(tiling.BLOCK_D if want_rows else max(layers.sizes))
    row_tiles = triton.cdiv(own, tiling.BLOCK_OWN)
    splits, per_split = split(row_tiles * len(table), stream, tiling.BLOCK_STREAM, lse.device)
    direct = splits == 1 and not critic.normalize
    size = own * sum(layers.sizes)
    stored = dtype if direct else lse.dtype
    grad = torch.empty(splits, size, dtype=stored, device=lse.device) if want_rows else None
    scalars = [lse.new_empty(splits, L, own) if want else None for want in want_scalars]
    with torch.cuda.device_of(lse):
        gradient_kernel[(row_tiles, len(table), splits)](
            layers.features,
            layers.norms,
            table,
            pairs,
            queries.scales,
            factor,
            Saved(queries.weight, lse.contiguous(), positives),
            upstream_of(grad_loss, grad_lse),
            GradientParts(grad, *scalars),
            per_split,
            size,
            L,
            OWN_QUERIES=own_queries,
            form=form_of(critic),
            tiling=tiling,
            **options,
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
        grad = join_parts(grad, rows, norms, labels, slabs, layers.sizes, own, dtype)
    parts = grad.split([own * D for D in layers.sizes])
    return [p.view(own, D) for p, D in zip(parts, layers.sizes, strict=True)], scale, bias


def compilations() -> Iterator[Compilation]:
    """The tiles of every entry and both sides, with the options that take most; and a plain one."""
    for sizes, dtype, precision, D, users in entries("gradient"):
        for own_queries, kind, rich, several in (
            (True, "out", False, False),
            (False, "out", False, False),
            (True, "in", True, False),
            (False, "nce", True, False),
            (False, "nce", True, True),
        ):
            if (several or not rich) and dtype != torch.bfloat16:
                continue
            most = rich or not own_queries
            capabilities = tuple(user for user in users if most or user in EVERY_CASE)
            tiles = sizes.for_several() if several else sizes
            absent = [] if rich else ["pairs.excluded", "norms.query", "norms.key", "upstream.lse"]
            absent += ["parts.scale"] * (not own_queries)
            absent += ["parts.bias"] * (not (own_queries and rich))
            absent += ["saved.positives"] * (kind == "nce")
            constants = {
                **dict.fromkeys(absent),
                "OWN_QUERIES": own_queries,
                "form": Form(kind, rich and kind == "in", rich),
                "tiling": tiles.tiling(0 < D <= tiles.BLOCK_K, 16, precision, False),
                **tiles.launch(),
                **({} if several else SINGLE),
            }
            kind += " several" * several
            side = "query" if own_queries else "key"
            name = f"gradient {side} {kind} D<={D or 'any'} {precision}"
            narrow = ("features.query", "features.key", "parts.rows")
            yield compilation(name, gradient_kernel, dtype, narrow, constants, capabilities)
