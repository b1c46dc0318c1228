"""Rows of logits made by cuBLAS, a chunk at a time, and turned into gradient weights in one pass.

For rows too wide for the fused kernels, where the products cost far more than the traffic of the
logits: the forward makes both gradients from the same logits. And for second derivatives of every
width.
"""

from collections.abc import Iterator, Sequence

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
    load_gradient_side,
    load_key_labels,
    load_scales,
    logits_of,
    loss_of,
    no_sums,
    pair,
    pull_of,
    weights_of,
)
from mim4dd.kernels._inputs import (
    LARGEST_UPSTREAM,
    Found,
    Layers,
    Queries,
    boosted,
    options_of,
    packed,
)
from mim4dd.kernels._rows import finish
from mim4dd.reference import Critic

WORKSPACE = 2**26  # bytes of logits at a time; not tuned on a GPU yet


@triton.jit
def load_pairs(
    similarity_ptr,
    key_labels_ptr,
    key_norms_ptr,
    excluded_ptr,
    labels,
    offs_n,
    excluded,
    offs_m,
    M,
    stride_excluded,
    num_excluded,
    query_norm,
    scale,
    raised,
    HARD: tl.constexpr,
    EXCLUDES: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_KEY_LABELS: tl.constexpr,
):
    """Similarities, the product of the norms, logits, valid and positive of a row's keys."""
    key_labels, mask_m = load_key_labels(key_labels_ptr, offs_m, offs_m < M, HAS_KEY_LABELS)
    similarity = tl.load(similarity_ptr + offs_m, mask=mask_m, other=0.0)
    norms = query_norm
    if NORMALIZE:
        norms = query_norm * tl.load(key_norms_ptr + offs_m, mask=mask_m, other=0.0)
        similarity *= norms
    valid, positive = pair(
        labels,
        offs_n,
        excluded,
        key_labels,
        offs_m,
        mask_m,
        excluded_ptr,
        stride_excluded,
        num_excluded,
        EXCLUDES,
    )
    logits = logits_of(similarity, positive, scale, raised, HARD)
    return similarity, norms, logits, valid, positive


@triton.jit
def sum_row(
    similarity_ptr,
    key_labels_ptr,
    key_norms_ptr,
    excluded_ptr,
    labels,
    offs_n,
    excluded,
    M,
    needed,
    stride_excluded,
    num_excluded,
    query_norm,
    scale,
    raised,
    bias,
    KIND: tl.constexpr,
    DECOUPLED: tl.constexpr,
    HARD: tl.constexpr,
    EXCLUDES: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_KEY_LABELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """What the loss of one query is made of, over all keys; of none unless it is ``needed``."""
    sums = no_sums(1, KIND, bias.dtype)
    last = tl.where(tl.max(needed.to(tl.int32), axis=0) > 0, M, 0)
    for start in range(0, last, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)[None, :].to(tl.int64)
        _, _, logits, valid, positive = load_pairs(
            similarity_ptr, key_labels_ptr, key_norms_ptr, excluded_ptr, labels[:, None],
            offs_n[:, None], excluded[:, None], offs_m, M, stride_excluded, num_excluded,
            query_norm[:, None], scale, raised, HARD, EXCLUDES, NORMALIZE, HAS_KEY_LABELS,
        )  # fmt: skip
        sums = add_tile(sums, logits, bias[:, None], valid, positive, KIND, DECOUPLED)
    return sums


@triton.jit
def chunk_kernel(
    similarity_ptr,  # (C, M)
    weights_ptr,  # (C, M), may be the same
    labels_ptr,  # (N,)
    key_labels_ptr,  # (M,)
    excluded_ptr,  # see pair
    weight_ptr,  # (N,)
    query_norms_ptr,  # (N,)
    key_norms_ptr,  # (M,)
    scale_ptr,  # ()
    raised_ptr,  # (): scale of the negatives
    bias_ptr,  # () or (N,)
    loss_ptr,  # (N,)
    lse_ptr,  # (N,)
    grad_loss_ptr,  # (N,)
    grad_lse_ptr,  # (N,)
    grad_scale_ptr,  # (N,)
    grad_bias_ptr,  # (N,)
    first,
    N,
    M,
    stride_excluded,
    num_excluded,
    stride_bias,
    stride_loss,
    stride_lse,
    FORWARD: tl.constexpr,
    UPSTREAM: tl.constexpr,  # in the forward, of every loss
    WANT_WEIGHTS: tl.constexpr,
    KIND: tl.constexpr,
    DECOUPLED: tl.constexpr,
    EXCLUDES: tl.constexpr,
    HARD: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_KEY_LABELS: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Of one query: loss and lse in the forward, then the weights of its keys."""
    dtype: tl.constexpr = lse_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    similarity_ptr += row * M
    weights_ptr += row * M
    offs_n = first + row + tl.arange(0, 1)
    labels = tl.load(labels_ptr + offs_n)
    excluded = load_excluded(excluded_ptr, offs_n, EXCLUDES)
    query_norm = tl.full((1,), 1.0, dtype)
    if NORMALIZE:
        query_norm = tl.load(query_norms_ptr + offs_n)
    scale, raised = load_scales(scale_ptr, raised_ptr)
    if FORWARD:
        weight = tl.load(weight_ptr + offs_n)
        on_loss = tl.where(weight > 0, UPSTREAM, 0.0).to(dtype)
        on_lse = tl.zeros((1,), dtype)
        lse, bias = weight, weight
        if KIND == "nce":
            bias = tl.load(bias_ptr + offs_n * stride_bias)
        needed = labels == labels
    else:
        _, on_loss, on_lse, weight, lse, bias = load_gradient_side(
            labels_ptr, weight_ptr, lse_ptr, bias_ptr, grad_loss_ptr, grad_lse_ptr, offs_n,
            offs_n < N, stride_bias, stride_loss, stride_lse, KIND, HAS_GRAD_LSE,
        )  # fmt: skip
        needed = keeps_rest(weight, KIND, DECOUPLED)

    sums = sum_row(
        similarity_ptr, key_labels_ptr, key_norms_ptr, excluded_ptr, labels, offs_n, excluded, M,
        needed, stride_excluded, num_excluded, query_norm, scale, raised, bias, KIND, DECOUPLED,
        HARD, EXCLUDES, NORMALIZE, HAS_KEY_LABELS, BLOCK_M,
    )  # fmt: skip
    loss, found_lse, positive_lse, rest = loss_of(sums, weight, KIND, DECOUPLED)
    if FORWARD:
        used = labels != IGNORE
        tl.store(loss_ptr + offs_n, tl.where(used, loss, 0.0))
        tl.store(lse_ptr + offs_n, tl.where(used, found_lse, 0.0))
        lse = found_lse

    if WANT_WEIGHTS:
        pull = pull_of(weight, rest, KIND, DECOUPLED)
        grad_scale = tl.zeros((1,), dtype)
        grad_bias = grad_scale
        for start in range(0, M, BLOCK_M):
            offs_m = start + tl.arange(0, BLOCK_M)[None, :].to(tl.int64)
            similarity, norms, logits, valid, positive = load_pairs(
                similarity_ptr, key_labels_ptr, key_norms_ptr, excluded_ptr, labels[:, None],
                offs_n[:, None], excluded[:, None], offs_m, M, stride_excluded, num_excluded,
                query_norm[:, None], scale, raised, HARD, EXCLUDES, NORMALIZE, HAS_KEY_LABELS,
            )  # fmt: skip
            weights = weights_of(
                logits, valid & (labels != IGNORE)[:, None], positive, on_loss[:, None],
                on_lse[:, None], pull[:, None], lse[:, None], positive_lse[:, None],
                bias[:, None], KIND, DECOUPLED, HAS_GRAD_LSE,
            )  # fmt: skip
            grad_scale += tl.sum(weights * similarity, axis=1)
            grad_bias += tl.sum(weights, axis=1)
            if NORMALIZE:
                weights *= norms
            tl.store(weights_ptr + offs_m, weights, mask=offs_m < M)
        tl.store(grad_scale_ptr + offs_n, grad_scale)
        tl.store(grad_bias_ptr + offs_n, grad_bias)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the accumulation type; float32 as torch.set_float32_matmul_precision asks."""
    with torch.autocast(a.device.type, enabled=False):  # it would multiply float32 in half
        if a.dtype not in (torch.float16, torch.bfloat16):
            return torch.mm(a, b)
        if a.is_cuda:
            return torch.mm(a, b, out_dtype=torch.float32)
        return torch.mm(a.float(), b.float())


def rows_per_chunk(N: int, M: int, bytes_per_pair: int) -> int:
    """Queries whose pairs with all keys fit the workspace."""
    return max(1, min(N, WORKSPACE // (M * bytes_per_pair)))


def row_launch(M: int) -> dict[str, int | bool]:
    """Options of the kernels that have one program per row; not tuned on a GPU yet."""
    return {
        "BLOCK_M": min(1024, max(16, triton.next_power_of_2(M))),
        "num_warps": 4,
        "enable_fp_fusion": True,
    }


def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b; addmm cannot add half products to a float32 in every torch."""
    if a.dtype != total.dtype:
        total += multiply(a, b)
        return
    with torch.autocast(a.device.type, enabled=False):
        total.addmm_(a, b)


def chunk_pass(
    query: Tensor,  # (N, D)
    key: Tensor,  # (M, D)
    queries: Queries,
    critic: Critic,
    gradients: Sequence[bool],
    lse: Tensor,  # (N,): written where there is a loss
    loss: Tensor | None,  # (N,): written; then the gradients are those of its sum
    grad_loss: Tensor | None,  # (N,)
    grad_lse: Tensor | None,  # (N,)
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
    rows = rows_per_chunk(N, M, 4 + 2 * (query.dtype != wide))
    for first in range(0, N, rows):
        some = slice(first, first + rows)
        similarity = multiply(query[some], key.T)
        weights = similarity if query.dtype == wide else query.new_empty(similarity.shape)
        with torch.cuda.device_of(query):
            chunk_kernel[(len(similarity),)](
                similarity,
                weights,
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
                grad_loss,
                grad_lse,
                grad_scale,
                grad_bias,
                first,
                N,
                M,
                queries.stride_excluded,
                queries.num_excluded,
                queries.stride_bias,
                1 if grad_loss is None else grad_loss.stride(0),
                1 if grad_lse is None else grad_lse.stride(0),
                FORWARD=loss is not None,
                UPSTREAM=divisor if loss is not None else 1.0,
                WANT_WEIGHTS=any(gradients),
                **options_of(critic, queries),
                NORMALIZE=critic.normalize,
                HAS_KEY_LABELS=queries.key_labels is not None,
                HAS_GRAD_LSE=grad_lse is not None,
                **row_launch(M),
            )
        if grad_query is not None:
            grad_query[some] = multiply(weights, key)
        if grad_key is not None:
            accumulate(grad_key, weights.T, query[some])
        del similarity, weights  # before the next are made

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
    return finish(partial, rows, norms, labels, slabs, (D,), R, dtype).view_as(rows)


def compilations() -> Iterator[Compilation]:
    """All passes at once, for the softmax with most terms and for "nce"."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for kind in ("in", "nce"):
            constants = {
                "FORWARD": True,
                "UPSTREAM": 1.0,
                "WANT_WEIGHTS": True,
                "KIND": kind,
                "DECOUPLED": kind == "in",
                "EXCLUDES": True,
                "HARD": True,
                "NORMALIZE": True,
                "HAS_KEY_LABELS": True,
                "HAS_GRAD_LSE": False,
                **SINGLE,
                **row_launch(1024),
            }
            yield compilation(f"chunk {kind}", chunk_kernel, dtype, ("weights_ptr",), constants)
