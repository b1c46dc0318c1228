"""Losses with the logits one tile at a time, in registers.

A program owns queries and streams over the keys with an online softmax. Where few programs would
leave the GPU idle, the keys are split among programs too; their parts are combined in order.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._ahead_of_time import SINGLE, Compilation, compilation
from mim4dd.kernels._critic import (
    IGNORE,
    add_tile,
    keeps_rest,
    load_excluded,
    load_key_labels,
    load_scales,
    logits_of,
    loss_of,
    merge_sums,
    no_sums,
    pair,
)
from mim4dd.kernels._dots import load_tile, multiply_rows
from mim4dd.kernels._inputs import Layers, Queries, kind_of, options_of, split
from mim4dd.kernels._rows import locate
from mim4dd.kernels._tiles import entries
from mim4dd.reference import Critic, Kind


@triton.jit
def forward_kernel(
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
    bias_ptr,  # () or (N,)
    loss_ptr,  # (L, N), or None: only what the gradients need of those queries that need it
    lse_ptr,  # (L, N), or None
    positives_ptr,  # (L, 2, N), or None: lse of the positives ("in"), share of the negatives
    partial_ptr,  # (splits, 4, L, N)
    N,
    M,
    stride_excluded,
    num_excluded,
    per_split,
    stride_bias,
    KIND: tl.constexpr,
    DECOUPLED: tl.constexpr,
    EXCLUDES: tl.constexpr,
    HARD: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_KEY_LABELS: tl.constexpr,
    SPLIT: tl.constexpr,
    RESIDENT: tl.constexpr,
    DIVISOR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_STREAM: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Losses of BLOCK_OWN queries of a layer against all keys, or their parts from a split."""
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    layer, D, before, stride_q, stride_k, _ = locate(table_ptr, tl.program_id(1), DIVISOR)
    # 64-bit, because rows times stride passes 2**31 long before memory runs out.
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    labels = tl.load(labels_ptr + offs_n, mask=offs_n < N, other=IGNORE)
    mask_n = labels != IGNORE
    query_ptr += before * N
    key_ptr += before * M
    offs_d = tl.arange(0, BLOCK_K)
    if RESIDENT:
        query = load_tile(query_ptr, offs_n, mask_n, stride_q, offs_d, D, INTERPRETED)
    scale, raised = load_scales(scale_ptr, raised_ptr)
    bias = tl.zeros((BLOCK_OWN,), dtype)
    if KIND == "nce":
        bias = tl.load(bias_ptr + offs_n * stride_bias, mask=mask_n, other=0.0)
    if NORMALIZE:
        query_norms = tl.load(query_norms_ptr + layer * N + offs_n, mask=mask_n, other=0.0)

    excluded = load_excluded(excluded_ptr, offs_n, EXCLUDES)
    sums = no_sums(BLOCK_OWN, KIND, dtype)
    first = tl.program_id(2) * per_split
    last = tl.minimum(first + per_split, M)
    if loss_ptr is None and KIND == "out":
        weight = tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0)
        needed = keeps_rest(weight, KIND, DECOUPLED).to(tl.int32)
        last = tl.where(tl.max(needed, axis=0) > 0, last, first)
    for start in range(first, last, BLOCK_STREAM):
        offs_m = start + tl.arange(0, BLOCK_STREAM).to(tl.int64)
        key_labels, mask_m = load_key_labels(key_labels_ptr, offs_m, offs_m < M, HAS_KEY_LABELS)
        if RESIDENT:
            key = load_tile(key_ptr, offs_m, mask_m, stride_k, offs_d, D, INTERPRETED)
            similarity = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=dtype)
        else:
            similarity = multiply_rows(
                query_ptr, offs_n, mask_n, stride_q, key_ptr, offs_m, mask_m, stride_k, D,
                BLOCK_OWN, BLOCK_STREAM, BLOCK_K, PRECISION, INTERPRETED, dtype,
            )  # fmt: skip
        if NORMALIZE:
            key_norms = tl.load(key_norms_ptr + layer * M + offs_m, mask=mask_m, other=0.0)
            similarity = similarity * query_norms[:, None] * key_norms[None, :]
        valid, positive = pair(
            labels[:, None], offs_n[:, None], excluded[:, None], key_labels[None, :],
            offs_m[None, :], mask_m[None, :], excluded_ptr, stride_excluded, num_excluded, EXCLUDES,
        )  # fmt: skip
        logits = logits_of(similarity, positive, scale, raised, HARD)
        sums = add_tile(sums, logits, bias[:, None], valid, positive, KIND, DECOUPLED)

    if SPLIT:
        size = tl.num_programs(1).to(tl.int64) * N
        out = layer * N + offs_n
        partial_ptr += tl.program_id(2) * 4 * size + out
        for part in tl.static_range(4):
            tl.store(partial_ptr + part * size, sums[part], mask=offs_n < N)
    else:
        store_losses(
            sums, loss_ptr, lse_ptr, positives_ptr, weight_ptr, layer, offs_n, offs_n < N, mask_n,
            N, KIND, DECOUPLED,
        )  # fmt: skip


@triton.jit
def store_losses(
    sums,
    loss_ptr,
    lse_ptr,
    positives_ptr,
    weight_ptr,
    layer,
    offs_n,
    mask_n,
    used,
    N,
    KIND: tl.constexpr,
    DECOUPLED: tl.constexpr,
):
    """What the sums come to; of queries that take no part losses of 0."""
    weight = tl.load(weight_ptr + offs_n, mask=used, other=0.0)
    loss, lse, positive_lse, rest = loss_of(sums, weight, KIND, DECOUPLED)
    if loss_ptr is not None:
        tl.store(loss_ptr + layer * N + offs_n, tl.where(used, loss, 0.0), mask=mask_n)
        tl.store(lse_ptr + layer * N + offs_n, tl.where(used, lse, 0.0), mask=mask_n)
    if positives_ptr is not None:
        positives_ptr += layer * 2 * N + offs_n
        tl.store(positives_ptr, positive_lse, mask=mask_n)
        tl.store(positives_ptr + N, rest, mask=mask_n)


@triton.jit
def combine_kernel(
    partial_ptr,  # (splits, 4, L, N)
    labels_ptr,  # (N,)
    weight_ptr,  # (N,)
    loss_ptr,  # (L, N)
    lse_ptr,  # (L, N)
    positives_ptr,  # (L, 2, N), or None
    N,
    splits,
    KIND: tl.constexpr,
    DECOUPLED: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """What forward_kernel gives, from its parts."""
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    layer = tl.program_id(1).to(tl.int64)
    size = tl.num_programs(1).to(tl.int64) * N
    sums = no_sums(BLOCK_N, KIND, dtype)
    partial_ptr += layer * N + offs_n
    for _ in range(0, splits):
        part = (
            tl.load(partial_ptr, mask=mask_n, other=0.0),
            tl.load(partial_ptr + size, mask=mask_n, other=0.0),
            tl.load(partial_ptr + 2 * size, mask=mask_n, other=0.0),
            tl.load(partial_ptr + 3 * size, mask=mask_n, other=0.0),
        )
        sums = merge_sums(sums, part, KIND)
        partial_ptr += 4 * size
    used = tl.load(labels_ptr + offs_n, mask=mask_n, other=IGNORE) != IGNORE
    store_losses(
        sums, loss_ptr, lse_ptr, positives_ptr, weight_ptr, layer, offs_n, mask_n, used, N, KIND,
        DECOUPLED,
    )  # fmt: skip


def fused_forward(
    layers: Layers, queries: Queries, critic: Critic
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Launch: loss and lse, each (L, N), and what :func:`fused_positives` gives."""
    loss, lse = queries.weight.new_empty(2, len(layers.sizes), layers.N)
    positives = _new_positives(layers, queries, critic)
    _launch(layers, queries, critic, loss, lse, positives)
    return loss, lse, positives


def fused_positives(layers: Layers, queries: Queries, critic: Critic) -> Tensor | None:
    """Launch: what gradients need beside the lse, (L, 2, N): see the kernel; None for nothing.

    Programs whose queries need nothing, as where each has several positives ("out"), multiply
    nothing.
    """
    positives = _new_positives(layers, queries, critic)
    if positives is not None:
        _launch(layers, queries, critic, None, None, positives)
    return positives


def _new_positives(layers: Layers, queries: Queries, critic: Critic) -> Tensor | None:
    if critic.kind == Kind.NCE or (critic.kind == Kind.OUT and critic.decoupled):
        return None
    return queries.weight.new_empty(len(layers.sizes), 2, layers.N)


def _launch(
    layers: Layers,
    queries: Queries,
    critic: Critic,
    loss: Tensor | None,
    lse: Tensor | None,
    positives: Tensor | None,
) -> None:
    N, M, L = layers.N, layers.M, len(layers.sizes)
    options, blocks = layers.options("forward", queries.num_excluded > 1)
    table = layers.table(max(layers.sizes))
    row_tiles = triton.cdiv(N, blocks["BLOCK_OWN"])
    splits, per_split = split(row_tiles * L, M, blocks["BLOCK_STREAM"], queries.weight.device)
    partial = queries.weight.new_empty(splits, 4, L, N) if splits > 1 else None
    with torch.cuda.device_of(queries.weight):
        forward_kernel[(row_tiles, L, splits)](
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
            queries.bias,
            loss,
            lse,
            positives,
            partial,
            N,
            M,
            queries.stride_excluded,
            queries.num_excluded,
            per_split,
            queries.stride_bias,
            **options_of(critic, queries),
            NORMALIZE=critic.normalize,
            HAS_KEY_LABELS=queries.key_labels is not None,
            SPLIT=splits > 1,
            **options,
            **blocks,
        )
        if splits > 1:
            combine_kernel[(triton.cdiv(N, 128), L)](
                partial,
                queries.labels,
                queries.weight,
                loss,
                lse,
                positives,
                N,
                splits,
                KIND=kind_of(critic),
                DECOUPLED=critic.decoupled,
                BLOCK_N=128,
                enable_fp_fusion=True,
            )


def compilations() -> Iterator[Compilation]:
    """The tiles of every entry, with the options that take most; and a plain one."""
    for sizes, dtype, precision, D, capabilities in entries("forward"):
        for kind, rich, several, only_positives in (
            ("out", False, False, False),
            ("out", False, False, True),
            ("in", True, False, False),
            ("in", True, False, True),
            ("nce", True, False, False),
            ("nce", True, True, False),
        ):
            if (several or not rich) and dtype != torch.bfloat16:
                continue
            tiles = sizes.for_several() if several else sizes
            absent = ["positives_ptr"] * (kind == "nce") + ["loss_ptr", "lse_ptr"] * only_positives
            constants = {
                "KIND": kind,
                "DECOUPLED": rich and kind == "in",
                "EXCLUDES": rich,
                "HARD": rich,
                "NORMALIZE": rich,
                "HAS_KEY_LABELS": True,
                "SPLIT": not rich,
                "RESIDENT": D > 0,
                "DIVISOR": 16,
                "PRECISION": precision,
                "INTERPRETED": False,
                **dict.fromkeys(absent),
                **({} if several else SINGLE),
                **tiles.launch("BLOCK_OWN", "BLOCK_STREAM", "BLOCK_K"),
            }
            narrow = ("query_ptr", "key_ptr")
            kind += " several" * several + " positives" * only_positives
            name = f"forward {kind} D<={D or 'any'} {precision}"
            yield compilation(name, forward_kernel, dtype, narrow, constants, capabilities)
    for dtype in (torch.float32, torch.float64):
        constants = {"KIND": "in", "DECOUPLED": False, "BLOCK_N": 128, "enable_fp_fusion": True}
        yield compilation("combine in", combine_kernel, dtype, (), constants)
