"""Second derivatives of the contrastive losses, some queries at a time.

docs/math.md, "Second derivatives": with the change t of the logits along the tangents, W the
weights of the first derivative and V their change, keys and queries are multiplied by σV + γW and
their tangents by σW.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._ahead_of_time import SINGLE, Compilation, compilation
from mim4dd.kernels._chunked import (
    accumulate,
    load_pairs,
    multiply,
    row_launch,
    rows_per_chunk,
    sum_row,
)
from mim4dd.kernels._critic import (
    IGNORE,
    keeps_rest,
    load_excluded,
    load_gradient_side,
    load_scales,
    loss_of,
    pull_of,
    weights_of,
)
from mim4dd.kernels._inputs import Found, Queries, options_of
from mim4dd.reference import Critic


@triton.jit
def change_of(
    logits,
    valid,
    positive,
    tangent,
    on_loss,
    on_lse,
    means,
    single,
    lse,
    positive_lse,
    bias,
    KIND: tl.constexpr,
    DECOUPLED: tl.constexpr,
):
    """V of docs/math.md, the derivative of the weights along the tangents.

    Of positives that are as one key, t - mean is (t - positive_mean) + ahead: near p = 1 the plain
    difference has no digits left.
    """
    mean, positive_mean, ahead, share, rest = means
    gain = on_loss + on_lse
    if KIND == "nce":
        small = tl.exp(-tl.abs(logits + bias))
        change = gain * small / ((1 + small) * (1 + small)) * tangent
    else:
        unit = gain * 0 + 1
        p = weights_of(
            logits, valid, positive, 0 * unit, unit, unit, lse, positive_lse, bias, KIND, DECOUPLED,
            True,
        )  # fmt: skip
        change = gain * p * (tangent - mean)
        if KIND == "in":
            y = on_loss * tl.exp(logits - positive_lse)
            beyond = tangent - positive_mean
            of_positive = on_lse * p * (beyond + ahead) - y * (rest * beyond - share * ahead)
            change = tl.where(positive, of_positive, change)
        else:
            change = tl.where(positive & single, gain * p * ahead, change)
    return tl.where(valid, change, 0.0)


@triton.jit
def tangent_kernel(
    similarity_ptr,  # (C, M)
    tangent_ptr,  # (C, M): a·k + q·b
    products_ptr,  # (C, M), may be similarity_ptr: what multiplies keys and queries
    weights_ptr,  # (C, M), may be tangent_ptr: what multiplies their tangents
    labels_ptr,  # (N,)
    key_labels_ptr,  # (M,)
    excluded_ptr,  # see pair
    weight_ptr,  # (N,)
    scale_ptr,  # ()
    raised_ptr,  # (): scale of the negatives
    bias_ptr,  # () or (N,)
    lse_ptr,  # (N,)
    grad_loss_ptr,  # (N,)
    grad_lse_ptr,  # (N,)
    tangent_scale_ptr,  # ()
    tangent_bias_ptr,  # ()
    grad_grad_loss_ptr,  # (N,)
    grad_grad_lse_ptr,  # (N,)
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
    KIND: tl.constexpr,
    DECOUPLED: tl.constexpr,
    EXCLUDES: tl.constexpr,
    HARD: tl.constexpr,
    HAS_KEY_LABELS: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
    HAS_TANGENT_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Of one query: how its loss and lse, and its keys' weights, change along the tangents."""
    dtype: tl.constexpr = lse_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    similarity_ptr += row * M
    tangent_ptr += row * M
    products_ptr += row * M
    weights_ptr += row * M
    offs_n = first + row + tl.arange(0, 1)
    labels, on_loss, on_lse, weight, lse, bias = load_gradient_side(
        labels_ptr, weight_ptr, lse_ptr, bias_ptr, grad_loss_ptr, grad_lse_ptr, offs_n,
        offs_n < N, stride_bias, stride_loss, stride_lse, KIND, HAS_GRAD_LSE,
    )  # fmt: skip
    used = labels != IGNORE
    excluded = load_excluded(excluded_ptr, offs_n, EXCLUDES)
    single = keeps_rest(weight, KIND, DECOUPLED)
    scale, raised = load_scales(scale_ptr, raised_ptr)
    plain_scale = tl.load(scale_ptr)
    tangent_scale = tl.load(tangent_scale_ptr)
    tangent_bias = tangent_scale * 0
    if HAS_TANGENT_BIAS:
        tangent_bias = tl.load(tangent_bias_ptr)
    unit = tl.full((1,), 1.0, dtype)
    positive_lse = lse
    if KIND == "in":
        sums = sum_row(
            similarity_ptr, key_labels_ptr, similarity_ptr, excluded_ptr, labels, offs_n, excluded,
            M, single, stride_excluded, num_excluded, unit, scale, raised, bias, KIND, DECOUPLED,
            HARD, EXCLUDES, False, HAS_KEY_LABELS, BLOCK_M,
        )  # fmt: skip
        _loss, _lse, positive_lse, _rest = loss_of(sums, weight, KIND, DECOUPLED)

    # Shares of the negatives and of the positives in p, the sums of p·t over them, the mean of t
    # under y; for "nce" the sum of t under the weights.
    rest = tl.zeros((1,), dtype)
    share, along_rest, along, positive_mean = rest, rest, rest, rest
    for start in range(0, M, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)[None, :].to(tl.int64)
        similarity, _, logits, valid, positive = load_pairs(
            similarity_ptr, key_labels_ptr, similarity_ptr, excluded_ptr, labels[:, None],
            offs_n[:, None], excluded[:, None], offs_m, M, stride_excluded, num_excluded,
            unit[:, None], scale, raised, HARD, EXCLUDES, False, HAS_KEY_LABELS,
        )  # fmt: skip
        valid = valid & used[:, None]
        tangent = tl.load(tangent_ptr + offs_m, mask=offs_m < M, other=0.0)
        tangent = plain_scale * tangent + tangent_scale * similarity + tangent_bias
        one = unit[:, None]
        p = weights_of(
            logits, valid, positive, 0 * one, one, one, lse[:, None], positive_lse[:, None],
            bias[:, None], KIND, DECOUPLED, True,
        )  # fmt: skip
        rest += tl.sum(tl.where(positive, 0.0, p), axis=1)
        share += tl.sum(tl.where(positive, p, 0.0), axis=1)
        along_rest += tl.sum(tl.where(positive, 0.0, p * tangent), axis=1)
        along += tl.sum(tl.where(positive, p * tangent, 0.0), axis=1)
        if KIND != "nce":
            y = tl.exp(logits - positive_lse[:, None]) if KIND == "in" else weight[:, None]
            positive_mean += tl.sum(tl.where(positive & valid, y * tangent, 0.0), axis=1)
    mean = along_rest + along
    ahead = rest * positive_mean - along_rest
    on_on_loss = tl.where(single, -ahead, mean - positive_mean)
    tl.store(grad_grad_loss_ptr + offs_n, tl.where(weight > 0, on_on_loss, 0.0))
    tl.store(grad_grad_lse_ptr + offs_n, mean * 0 if KIND == "nce" else mean)

    pull = pull_of(weight, rest, KIND, DECOUPLED)
    means = (
        mean[:, None], positive_mean[:, None], ahead[:, None], share[:, None], rest[:, None]
    )  # fmt: skip
    grad_scale = tl.zeros((1,), dtype)
    grad_bias = grad_scale
    for start in range(0, M, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)[None, :].to(tl.int64)
        similarity, _, logits, valid, positive = load_pairs(
            similarity_ptr, key_labels_ptr, similarity_ptr, excluded_ptr, labels[:, None],
            offs_n[:, None], excluded[:, None], offs_m, M, stride_excluded, num_excluded,
            unit[:, None], scale, raised, HARD, EXCLUDES, False, HAS_KEY_LABELS,
        )  # fmt: skip
        valid = valid & used[:, None]
        direct = tl.load(tangent_ptr + offs_m, mask=offs_m < M, other=0.0)
        tangent = plain_scale * direct + tangent_scale * similarity + tangent_bias
        weights = weights_of(
            logits, valid, positive, on_loss[:, None], on_lse[:, None], pull[:, None],
            lse[:, None], positive_lse[:, None], bias[:, None], KIND, DECOUPLED, HAS_GRAD_LSE,
        )  # fmt: skip
        change = change_of(
            logits, valid, positive, tangent, on_loss[:, None], on_lse[:, None], means,
            single[:, None], lse[:, None], positive_lse[:, None], bias[:, None], KIND, DECOUPLED,
        )  # fmt: skip
        grad_scale += tl.sum(change * similarity + weights * direct, axis=1)
        grad_bias += tl.sum(change, axis=1)
        products = plain_scale * change + tangent_scale * weights
        tl.store(products_ptr + offs_m, products, mask=offs_m < M)
        tl.store(weights_ptr + offs_m, plain_scale * weights, mask=offs_m < M)
    tl.store(grad_scale_ptr + offs_n, grad_scale)
    tl.store(grad_bias_ptr + offs_n, grad_bias)


def tangent_pass(
    rows: tuple[Tensor, Tensor],  # (N, D), (M, D)
    tangents: tuple[Tensor, Tensor],  # (N, D), (M, D)
    queries: Queries,
    critic: Critic,
    lse: Tensor,  # (N,)
    grad_loss: Tensor,  # (N,)
    grad_lse: Tensor | None,  # (N,)
    tangent_scale: Tensor,  # ()
    tangent_bias: Tensor | None,  # ()
    gradients: Sequence[bool],
    grad_grad_loss: Tensor,  # (N,), written
    grad_grad_lse: Tensor,  # (N,), written
) -> Found:
    """One layer's second derivatives."""
    want_query, want_key, want_scale, want_bias = gradients
    query, key = queries.without_ignored(*rows)
    tangent_query, tangent_key = queries.without_ignored(*tangents)
    (N, D), M = query.shape, key.shape[0]
    wide, dtype = lse.dtype, query.dtype
    if dtype == torch.float16:  # nothing bounds what multiplies tangents
        query, key, tangent_query, tangent_key = (
            each.to(wide) for each in (query, key, tangent_query, tangent_key)
        )
    # a·k + q·b in one product.
    left = torch.cat([tangent_query, query], 1)
    right = torch.cat([key, tangent_key], 1).T
    grad_query = query.new_empty(N, D, dtype=dtype) if want_query else None
    grad_key = key.new_zeros(M, D, dtype=wide) if want_key else None
    grad_scale, grad_bias = lse.new_empty(2, N)
    size = rows_per_chunk(N, M, 8 + 4 * (query.dtype != wide))
    for first in range(0, N, size):
        some = slice(first, first + size)
        similarity, tangent = multiply(query[some], key.T), multiply(left[some], right)
        products, weights = similarity, tangent
        if query.dtype != wide:
            products, weights = query.new_empty(2, *similarity.shape)
        with torch.cuda.device_of(query):
            tangent_kernel[(len(similarity),)](
                similarity,
                tangent,
                products,
                weights,
                queries.labels,
                queries.key_labels,
                queries.excluded,
                queries.weight,
                queries.scale,
                queries.raised,
                queries.bias,
                lse,
                grad_loss,
                grad_lse,
                tangent_scale,
                tangent_bias,
                grad_grad_loss,
                grad_grad_lse,
                grad_scale,
                grad_bias,
                first,
                N,
                M,
                queries.stride_excluded,
                queries.num_excluded,
                queries.stride_bias,
                grad_loss.stride(0),
                0 if grad_lse is None else grad_lse.stride(0),
                **options_of(critic, queries),
                HAS_KEY_LABELS=queries.key_labels is not None,
                HAS_GRAD_LSE=grad_lse is not None,
                HAS_TANGENT_BIAS=tangent_bias is not None,
                **row_launch(M),
            )
        if grad_query is not None:
            total = multiply(products, key)
            accumulate(total, weights, tangent_key)
            grad_query[some] = total
        if grad_key is not None:
            accumulate(grad_key, products.T, query[some])
            accumulate(grad_key, weights.T, tangent_query[some])
        del similarity, tangent, products, weights  # before the next are made
    return Found(
        grad_query,
        None if grad_key is None else grad_key.to(dtype),
        grad_scale.sum() if want_scale else None,
        grad_bias.sum() if want_bias else None,
    )


def compilations() -> Iterator[Compilation]:
    """The softmax with most terms, and "nce"."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for kind in ("in", "nce"):
            constants = {
                "KIND": kind,
                "DECOUPLED": kind == "in",
                "EXCLUDES": True,
                "HARD": True,
                "HAS_KEY_LABELS": True,
                "HAS_GRAD_LSE": kind == "in",
                "HAS_TANGENT_BIAS": kind == "nce",
                **SINGLE,
                **row_launch(1024),
            }
            narrow = ("products_ptr", "weights_ptr")
            yield compilation(f"tangent {kind}", tangent_kernel, dtype, narrow, constants)
