"""Losses with the logits one tile at a time, in registers.

A program owns queries and streams over the keys with an online softmax. Where few programs would
leave the GPU idle, the keys are split among programs too; their parts are combined in order.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._ahead_of_time import EVERY_CASE, SINGLE, Compilation, compilation
from mim4dd.kernels._arguments import Features, Form, Losses, Norms, Pairs, Scales
from mim4dd.kernels._critic import (
    IGNORE,
    QueryTile,
    add_tile,
    keeps_rest,
    keys_along,
    load_bias,
    load_excluded,
    load_keys,
    load_scales,
    logits_of,
    loss_of,
    merge_sums,
    no_sums,
    pair,
    queries_along,
)
from mim4dd.kernels._inputs import Layers, Queries, form_of, split
from mim4dd.kernels._rows import locate
from mim4dd.kernels._tiles import (
    Block,
    entries,
    load_norms,
    load_tile,
    sides_of,
    similarity_of,
)
from mim4dd.reference import Critic, Kind


@triton.jit
def forward_kernel(
    features: Features,
    norms: Norms,
    table_ptr,  # see layer_table
    pairs: Pairs,
    scales: Scales,
    weight_ptr,  # (N,)
    losses: Losses,
    partial_ptr,  # (splits, 4, L, N), or None: each program sees all keys
    per_split,
    form: tl.constexpr,
    tiling: tl.constexpr,
):
    """Losses of BLOCK_OWN queries of a layer against all keys, or their parts from a split."""
    BLOCK_OWN: tl.constexpr = tiling.BLOCK_OWN
    BLOCK_STREAM: tl.constexpr = tiling.BLOCK_STREAM
    BLOCK_K: tl.constexpr = tiling.BLOCK_K
    DIVISOR: tl.constexpr = tiling.DIVISOR
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    N = pairs.num_queries
    slab = locate(table_ptr, tl.program_id(1), DIVISOR)
    own, stream = sides_of(features, pairs, slab, True)
    # 64-bit, because rows times stride passes 2**31 long before memory runs out.
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    labels = tl.load(pairs.labels + offs_n, mask=offs_n < N, other=IGNORE)
    rows = Block(offs_n, labels != IGNORE)
    offs_d = tl.arange(0, BLOCK_K)
    own_tile = load_tile(own, rows, offs_d, tiling.INTERPRETED) if tiling.RESIDENT else None
    scale, raised = load_scales(scales.scale, scales.raised)
    shown = rows
    if dtype == tl.float64:  # Triton 3.6 loses the layout of a mask that is made of labels
        shown = Block(offs_n, offs_n < N)
    bias = load_bias(scales, tl.zeros((BLOCK_OWN,), dtype), offs_n, shown.mask, form)
    if norms.query is not None:
        own_norms = load_norms(norms.query, own, slab.layer, shown)

    queries = queries_along(QueryTile(offs_n, labels, load_excluded(pairs, offs_n)), True)
    sums = no_sums(BLOCK_OWN, form, dtype)
    first = tl.program_id(2) * per_split
    last = tl.minimum(first + per_split, pairs.num_keys)
    if losses.loss is None and form.KIND == "out":
        weight = tl.load(weight_ptr + offs_n, mask=rows.mask, other=0.0)
        needed = keeps_rest(weight, form).to(tl.int32)
        last = tl.where(tl.max(needed, axis=0) > 0, last, first)
    for start in range(first, last, BLOCK_STREAM):
        offs_m = start + tl.arange(0, BLOCK_STREAM).to(tl.int64)
        keys = load_keys(pairs, offs_m)
        columns = Block(offs_m, keys.mask)
        key_tile = (
            load_tile(stream, columns, offs_d, tiling.INTERPRETED) if tiling.RESIDENT else None
        )
        similarity = similarity_of(own, rows, own_tile, stream, columns, key_tile, tiling, dtype)
        if norms.key is not None:
            stream_norms = load_norms(norms.key, stream, slab.layer, columns)
            similarity = similarity * own_norms[:, None] * stream_norms[None, :]
        valid, positive = pair(queries, keys_along(keys, False), pairs)
        logits = logits_of(similarity, positive, scale, raised, form)
        sums = add_tile(sums, logits, bias[:, None], valid, positive, form)

    if partial_ptr is not None:
        size = tl.num_programs(1).to(tl.int64) * N
        partial_ptr += tl.program_id(2) * 4 * size + slab.layer * N + offs_n
        for part in tl.static_range(4):
            tl.store(partial_ptr + part * size, sums[part], mask=offs_n < N)
    else:
        store_losses(sums, losses, weight_ptr, slab.layer, rows, N, form)


@triton.jit
def store_losses(sums, losses, weight_ptr, layer, rows, N, form: tl.constexpr):
    """What the sums come to; of queries that take no part losses of 0."""
    offs_n = rows.offs
    used = rows.mask
    mask_n = offs_n < N
    weight = tl.load(weight_ptr + offs_n, mask=used, other=0.0)
    loss, lse, positive_lse, rest = loss_of(sums, weight, form)
    if losses.loss is not None:
        tl.store(losses.loss + layer * N + offs_n, tl.where(used, loss, 0.0), mask=mask_n)
        tl.store(losses.lse + layer * N + offs_n, tl.where(used, lse, 0.0), mask=mask_n)
    if losses.positives is not None:
        positives_ptr = losses.positives + layer * 2 * N + offs_n
        tl.store(positives_ptr, positive_lse, mask=mask_n)
        tl.store(positives_ptr + N, rest, mask=mask_n)


@triton.jit
def combine_kernel(
    partial_ptr,  # (splits, 4, L, N)
    labels_ptr,  # (N,)
    weight_ptr,  # (N,)
    losses: Losses,
    N,
    splits,
    form: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """What forward_kernel gives, from its parts."""
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    layer = tl.program_id(1).to(tl.int64)
    size = tl.num_programs(1).to(tl.int64) * N
    sums = no_sums(BLOCK_N, form, dtype)
    partial_ptr += layer * N + offs_n
    for _ in range(0, splits):
        part = (
            tl.load(partial_ptr, mask=mask_n, other=0.0),
            tl.load(partial_ptr + size, mask=mask_n, other=0.0),
            tl.load(partial_ptr + 2 * size, mask=mask_n, other=0.0),
            tl.load(partial_ptr + 3 * size, mask=mask_n, other=0.0),
        )
        sums = merge_sums(sums, part, form)
        partial_ptr += 4 * size
    used = tl.load(labels_ptr + offs_n, mask=mask_n, other=IGNORE) != IGNORE
    store_losses(sums, losses, weight_ptr, layer, Block(offs_n, used), N, form)


def fused_forward(
    layers: Layers, queries: Queries, critic: Critic
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Launch: loss and lse, each (L, N), and what :func:`fused_positives` gives."""
    loss, lse = (queries.weight.new_empty(len(layers.sizes), layers.N) for _ in range(2))
    positives = _new_positives(layers, queries, critic)
    _launch(layers, queries, critic, Losses(loss, lse, positives))
    return loss, lse, positives


def fused_positives(layers: Layers, queries: Queries, critic: Critic) -> Tensor | None:
    """Launch: what gradients need beside the lse, (L, 2, N): see the kernel; None for nothing.

    Programs whose queries need nothing, as where each has several positives ("out"), multiply
    nothing.
    """
    positives = _new_positives(layers, queries, critic)
    if positives is not None:
        _launch(layers, queries, critic, Losses(None, None, positives))
    return positives


def _new_positives(layers: Layers, queries: Queries, critic: Critic) -> Tensor | None:
    if critic.kind == Kind.NCE or (critic.kind == Kind.OUT and critic.decoupled):
        return None
    return queries.weight.new_empty(len(layers.sizes), 2, layers.N)


def _launch(layers: Layers, queries: Queries, critic: Critic, losses: Losses) -> None:
    N, M, L = layers.N, layers.M, len(layers.sizes)
    pairs, form = queries.pairs(M), form_of(critic)
    tiling, options = layers.options("forward", pairs.num_excluded > 1)
    table = layers.table(max(layers.sizes))
    row_tiles = triton.cdiv(N, tiling.BLOCK_OWN)
    splits, per_split = split(row_tiles * L, M, tiling.BLOCK_STREAM, queries.weight.device)
    partial = queries.weight.new_empty(splits, 4, L, N) if splits > 1 else None
    with torch.cuda.device_of(queries.weight):
        forward_kernel[(row_tiles, L, splits)](
            layers.features,
            layers.norms,
            table,
            pairs,
            queries.scales,
            queries.weight,
            losses,
            partial,
            per_split,
            form,
            tiling,
            **options,
        )
        if partial is not None:
            combine_kernel[(triton.cdiv(N, 128), L)](
                partial,
                queries.labels,
                queries.weight,
                losses,
                N,
                splits,
                form,
                BLOCK_N=128,
                enable_fp_fusion=True,
            )


def compilations() -> Iterator[Compilation]:
    """The tiles of every entry, with the options that take most; and a plain one."""
    for sizes, dtype, precision, D, users in entries("forward"):
        for kind, rich, several, only_positives, most in (
            ("out", False, False, False, True),
            ("out", False, False, True, False),
            ("in", True, False, False, False),
            ("in", True, False, True, False),
            ("nce", True, False, False, True),
            ("nce", True, True, False, True),
        ):
            if (several or not rich) and dtype != torch.bfloat16:
                continue
            capabilities = tuple(user for user in users if most or user in EVERY_CASE)
            tiles = sizes.for_several() if several else sizes
            absent = ["losses.positives"] * (kind == "nce") + ["partial_ptr"] * rich
            absent += ["losses.loss", "losses.lse"] * only_positives
            absent += [] if rich else ["pairs.excluded", "norms.query", "norms.key"]
            odd = kind == "nce" and not D and dtype == torch.bfloat16  # rows that take most
            multiple = 1 if odd else 16
            constants = {
                **dict.fromkeys(absent),
                "form": Form(kind, rich and kind == "in", rich),
                "tiling": tiles.tiling(0 < D <= tiles.BLOCK_K, multiple, precision, False),
                **({} if several else SINGLE),
                **tiles.launch(),
            }
            narrow = ("features.query", "features.key")
            kind += " several" * several + " positives" * only_positives + " odd rows" * odd
            name = f"forward {kind} D<={D or 'any'} {precision}"
            yield compilation(name, forward_kernel, dtype, narrow, constants, capabilities)
    for dtype in (torch.float32, torch.float64):
        constants = {"form": Form("in", False, False), "BLOCK_N": 128, "enable_fp_fusion": True}
        yield compilation("combine in", combine_kernel, dtype, (), constants)
