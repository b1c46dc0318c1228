"""Second derivatives of the contrastive losses, some queries at a time.

docs/math.md, "Second derivatives": with the change t of the logits along the tangents, W the
weights of the first derivative and V their change, keys and queries are multiplied by σV + γW and
their tangents by σW.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._ahead_of_time import SINGLE, Compilation, compilation
from mim4dd.kernels._arguments import (
    Form,
    Pairs,
    Saved,
    Scales,
    SecondDerivatives,
    Tangents,
    Upstream,
)
from mim4dd.kernels._chunked import (
    accumulate,
    load_pairs,
    load_row,
    multiply,
    row_launch,
    rows_per_chunk,
    sum_row,
)
from mim4dd.kernels._critic import (
    WeightTerms,
    keeps_rest,
    load_upstream,
    loss_of,
    pull_of,
    terms_along,
    weights_of,
)
from mim4dd.kernels._inputs import Found, Queries, form_of, upstream_of
from mim4dd.reference import Critic


class Direction(NamedTuple):
    """How the logits of a row change along the tangents."""

    ptr: tl.tensor  # (M,): a·k + q·b
    scale: tl.tensor  # plain: logits are NaN where it is no temperature
    tangent_scale: tl.tensor
    tangent_bias: tl.tensor


class Means(NamedTuple):
    """Of a row, (1,) each."""

    mean: tl.tensor  # of t under p; for "nce" its sum under the weights
    positive_mean: tl.tensor  # of t under y
    ahead: tl.tensor  # positive_mean - mean, where the positives are as one key
    share: tl.tensor  # of the positives in p
    rest: tl.tensor  # of the negatives in p


@triton.jit
def load_change(direction, tile, offs_m, M):
    """What was multiplied along the tangents, and t."""
    direct = tl.load(direction.ptr + offs_m, mask=offs_m < M, other=0.0)
    change = direction.scale * direct + direction.tangent_scale * tile.similarity
    return direct, change + direction.tangent_bias


@triton.jit
def means_of(
    row, direction, weight, lse, positive_lse, bias, pairs, form: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Over all keys of a row."""
    rest = tl.zeros((1,), lse.dtype)
    share, along_rest, along, positive_mean = rest, rest, rest, rest
    unit = rest + 1
    terms = terms_along(WeightTerms(rest, unit, unit, lse, positive_lse, bias), True)
    for start in range(0, pairs.num_keys, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)[None, :].to(tl.int64)
        tile = load_pairs(row, None, pairs, offs_m, form)
        _, t = load_change(direction, tile, offs_m, pairs.num_keys)
        p = weights_of(tile.logits, tile.valid, tile.positive, terms, form, True)
        rest += tl.sum(tl.where(tile.positive, 0.0, p), axis=1)
        share += tl.sum(tl.where(tile.positive, p, 0.0), axis=1)
        along_rest += tl.sum(tl.where(tile.positive, 0.0, p * t), axis=1)
        along += tl.sum(tl.where(tile.positive, p * t, 0.0), axis=1)
        if form.KIND != "nce":
            if form.KIND == "in":
                y = tl.exp(tile.logits - positive_lse[:, None])
            else:
                y = weight[:, None]
            of_positive = tl.where(tile.positive & tile.valid, y * t, 0.0)
            positive_mean += tl.sum(of_positive, axis=1)
    ahead = rest * positive_mean - along_rest
    return Means(along_rest + along, positive_mean, ahead, share, rest)


@triton.jit
def change_of(tile, t, terms, means, single, form: tl.constexpr):
    """V of docs/math.md, the derivative of the weights along the tangents.

    Of positives that are as one key, t - mean is (t - positive_mean) + ahead: near p = 1 the plain
    difference has no digits left.
    """
    ahead = means.ahead[:, None]
    gain = terms.on_loss + terms.on_lse
    if form.KIND == "nce":
        small = tl.exp(-tl.abs(tile.logits + terms.bias))
        change = gain * small / ((1 + small) * (1 + small)) * t
    else:
        unit = gain * 0 + 1
        of_lse = WeightTerms(0 * unit, unit, unit, terms.lse, terms.positive_lse, terms.bias)
        p = weights_of(tile.logits, tile.valid, tile.positive, of_lse, form, True)
        change = gain * p * (t - means.mean[:, None])
        if form.KIND == "in":
            y = terms.on_loss * tl.exp(tile.logits - terms.positive_lse)
            beyond = t - means.positive_mean[:, None]
            of_positive = terms.on_lse * p * (beyond + ahead)
            of_positive -= y * (means.rest[:, None] * beyond - means.share[:, None] * ahead)
            change = tl.where(tile.positive, of_positive, change)
        else:
            change = tl.where(tile.positive & single, gain * p * ahead, change)
    return tl.where(tile.valid, change, 0.0)


@triton.jit
def tangent_kernel(
    similarity_ptr,  # (C, M)
    tangent_ptr,  # (C, M): a·k + q·b
    products_ptr,  # (C, M), may be similarity_ptr: what multiplies keys and queries
    weights_ptr,  # (C, M), may be tangent_ptr: what multiplies their tangents
    pairs: Pairs,
    scales: Scales,
    saved: Saved,
    upstream: Upstream,
    tangents: Tangents,
    found: SecondDerivatives,
    first,
    form: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Of one query: how its loss and lse, and its keys' weights, change along the tangents."""
    dtype: tl.constexpr = saved.lse.dtype.element_ty
    M = pairs.num_keys
    row = load_row(similarity_ptr, None, pairs, scales, first, dtype)
    offs_n = row.query.offs
    on_loss, on_lse, weight, lse, bias = load_upstream(
        scales, saved, upstream, 0, offs_n, row.used, pairs.num_queries, form
    )
    single = keeps_rest(weight, form)
    scale = tl.load(scales.scale)
    tangent_scale = tl.load(tangents.scale)
    tangent_bias = tl.load(tangents.bias) if tangents.bias is not None else tangent_scale * 0
    begin = tl.program_id(0).to(tl.int64) * M
    direction = Direction(tangent_ptr + begin, scale, tangent_scale, tangent_bias)
    positive_lse = lse
    if form.KIND == "in":
        sums = sum_row(row, None, pairs, bias, single, form, BLOCK_M)
        _loss, _lse, positive_lse, _rest = loss_of(sums, weight, form)

    means = means_of(row, direction, weight, lse, positive_lse, bias, pairs, form, BLOCK_M)
    on_on_loss = tl.where(single, -means.ahead, means.mean - means.positive_mean)
    tl.store(found.grad_loss + offs_n, tl.where(weight > 0, on_on_loss, 0.0))
    tl.store(found.grad_lse + offs_n, means.mean * 0 if form.KIND == "nce" else means.mean)

    pull = pull_of(weight, means.rest, form)
    terms = terms_along(WeightTerms(on_loss, on_lse, pull, lse, positive_lse, bias), True)
    products_ptr += begin
    weights_ptr += begin
    grad_scale = tl.zeros((1,), dtype)
    grad_bias = grad_scale
    for start in range(0, M, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)[None, :].to(tl.int64)
        tile = load_pairs(row, None, pairs, offs_m, form)
        direct, t = load_change(direction, tile, offs_m, M)
        weights = weights_of(
            tile.logits, tile.valid, tile.positive, terms, form, upstream.lse is not None
        )
        change = change_of(tile, t, terms, means, single[:, None], form)
        grad_scale += tl.sum(change * tile.similarity + weights * direct, axis=1)
        grad_bias += tl.sum(change, axis=1)
        products = scale * change + tangent_scale * weights
        tl.store(products_ptr + offs_m, products, mask=offs_m < M)
        tl.store(weights_ptr + offs_m, scale * weights, mask=offs_m < M)
    tl.store(found.scale + offs_n, grad_scale)
    tl.store(found.bias + offs_n, grad_bias)


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
                queries.pairs(M),
                queries.scales,
                Saved(queries.weight, lse, None),
                upstream_of(grad_loss, grad_lse),
                Tangents(tangent_scale, tangent_bias),
                SecondDerivatives(grad_grad_loss, grad_grad_lse, grad_scale, grad_bias),
                first,
                form=form_of(critic),
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
            absent = ["upstream.lse"] if kind == "nce" else ["tangents.bias"]
            constants = {
                **dict.fromkeys([*absent, "saved.positives"]),
                "form": Form(kind, kind == "in", True),
                **SINGLE,
                **row_launch(1024),
            }
            narrow = ("products_ptr", "weights_ptr")
            yield compilation(f"tangent {kind}", tangent_kernel, dtype, narrow, constants)
