"""The pass over keys of losses by label, whose rows are sorted by it; see _grouped.py."""

from typing import NamedTuple

import triton
import triton.language as tl

from mim4dd.kernels._arguments import Features, Groups, Losses, Pairs, Scales
from mim4dd.kernels._critic import load_scales, loss_of, pull_of
from mim4dd.kernels._rows import locate
from mim4dd.kernels._single_positive_passes import (
    LN_2,
    LOG2_E,
    LOWEST,
    QueryGradients,
    Statistics,
    Sums,
    add_keys,
    boost_of,
    from_row,
    plain_tiles,
    pulled,
    store_rows_at,
)
from mim4dd.kernels._tiles import Block, Side, load_tile, multiplied, sides_of


class Group(NamedTuple):
    """The queries of a program, (BLOCK_OWN,) each; their positives go from begin to end."""

    offs: tl.tensor
    used: tl.tensor  # whether they take part
    order: tl.tensor  # where they lie in the caller's order
    begin: tl.tensor
    end: tl.tensor
    weight: tl.tensor  # 0 where there is no loss


class GroupSums(NamedTuple):
    """Over the keys of some tiles that hold positives, (BLOCK_OWN,) each."""

    shift: tl.tensor  # about the largest logit of base 2, less the boost
    negative: tl.tensor  # Σ exp2(logit − shift)
    positive: tl.tensor
    similarity: tl.tensor  # the positives' sum


class Near(NamedTuple):
    """The keys in tiles with positives, and those behind the last whole tile."""

    whole: tl.tensor  # keys in whole tiles
    begin: tl.tensor
    hits: tl.tensor  # how many, in whole tiles


class Shares(NamedTuple):
    """What makes p − y of logits, (BLOCK_OWN,) each."""

    shift: tl.tensor
    log_sum: tl.tensor
    pull: tl.tensor  # see pull_of


@triton.jit
def grouped_keys_pass(
    features: Features,  # sorted by label; those that take no part come last
    table_ptr,  # see layer_table
    pairs: Pairs,
    groups: Groups,
    scales: Scales,
    weight_ptr,  # (N,), in the caller's order
    share_ptr,  # as in keys_pass
    losses: Losses,  # in the caller's order
    statistics: Statistics,
    gradients: QueryGradients,  # in the caller's order
    form: tl.constexpr,
    tiling: tl.constexpr,
):
    """Losses of BLOCK_OWN queries of a layer, and their gradient.

    Tiles with positives are gone through twice: for the sums, and for p - y once those are known.
    """
    BLOCK_OWN: tl.constexpr = tiling.BLOCK_OWN
    BLOCK_STREAM: tl.constexpr = tiling.BLOCK_STREAM
    BLOCK_K: tl.constexpr = tiling.BLOCK_K
    SUMS_ALONE: tl.constexpr = gradients.rows is None and gradients.scale is None
    # Masks take registers, and so do gradients: their tiles are short.
    SHORT: tl.constexpr = min(BLOCK_STREAM, 64) if SUMS_ALONE else min(BLOCK_STREAM // 2, 32)
    N = pairs.num_queries
    slab, own, stream = sorted_sides(features, table_ptr, pairs, groups, tiling)
    M = stream.count
    offs_n = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    used = offs_n < tl.load(groups.counts)
    own_tile = load_tile(
        own, Block(offs_n.to(tl.int64), used), tl.arange(0, BLOCK_K), tiling.INTERPRETED
    )
    scale, _ = load_scales(scales.scale, scales.raised)
    first = tl.min(tl.load(groups.begin + offs_n, mask=used, other=M), axis=0)
    last = tl.max(tl.load(groups.end + offs_n, mask=used, other=0), axis=0)
    whole, begin, hits = plain_tiles(M, first, last, BLOCK_STREAM)

    zero = tl.zeros((BLOCK_OWN,), tl.float32)
    grad = tl.zeros((BLOCK_OWN, BLOCK_K), tl.float32)
    sums = Sums(zero + LOWEST, zero, zero, grad, zero)
    for step in range(0, whole - hits, BLOCK_STREAM):
        start = step + tl.where(step < begin, 0, hits)
        sums = add_keys(
            sums, own_tile, offs_n, stream, start, scale, gradients, BLOCK_STREAM, False, tiling
        )
    negative = sums.exps
    if gradients.rows is not None:
        negative += tl.sum(sums.grad * 0, axis=1)  # as in keys_pass
    # Only now, for the loop above needs the registers.
    group = load_group(groups, weight_ptr, N, BLOCK_OWN)
    near = Near(whole, begin, hits)
    parts = GroupSums(sums.shift, negative, zero, zero)
    for step in tl.range(0, hits + M - whole, SHORT, num_stages=1):
        parts = add_group(parts, own_tile, group, stream, near, step, scale, SHORT, tiling)
    shares = store_group_losses(parts, group, scale, losses, slab.layer * N, N, form, stream)
    if statistics.shift is not None:
        at = slab.layer * N + group.offs
        tl.store(statistics.shift + at, shares.shift, mask=group.used)
        tl.store(statistics.log_sum + at, shares.log_sum, mask=group.used)
        tl.store(statistics.rest + at, shares.pull, mask=group.used)
    if not SUMS_ALONE:
        # What exponentials below the first shift are, as weights are in the tiles: 2**BOOST is 1.
        share = tl.exp2(sums.shift - parts.shift - shares.log_sum)
        along, grad = sums.along * share, sums.grad * share[:, None]
        for step in tl.range(0, hits + M - whole, SHORT, num_stages=1):
            along, grad = add_group_gradient(
                along, grad, own_tile, group, shares, stream, near, step, scale, gradients, SHORT,
                tiling,
            )  # fmt: skip
        store_group_gradients(along, grad, group, scale, share_ptr, gradients, slab, N, stream)


@triton.jit
def sorted_sides(features, table_ptr, pairs, groups, tiling: tl.constexpr):
    """The slab of this program, the queries, and those keys that take part."""
    slab = locate(table_ptr, tl.program_id(1), tiling.DIVISOR)
    own, keys = sides_of(features, pairs, slab, True)
    return slab, own, Side(keys.ptr, keys.stride, tl.load(groups.counts + 1), keys.D)


@triton.jit
def load_group(groups, weight_ptr, N, BLOCK_OWN: tl.constexpr):
    """The queries of this program; anew, so that no compiler keeps what was loaded before."""
    offs_n = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    used = offs_n < tl.load(groups.counts)
    order = tl.load(groups.query_order + offs_n, mask=offs_n < N, other=0)
    begin = tl.load(groups.begin + offs_n, mask=used, other=0, volatile=True)
    end = tl.load(groups.end + offs_n, mask=used, other=0, volatile=True)
    weight = tl.load(weight_ptr + order, mask=used, other=0.0)
    return Group(offs_n, used, order, begin, end, weight)


@triton.jit
def near_tile(own_tile, group, stream, near, step, BLOCK: tl.constexpr, tiling: tl.constexpr):
    """Some of the near keys, and of each pair the similarity; which are there, and positive."""
    start = step + tl.where(step < near.hits, near.begin, near.whole - near.hits)
    offs = tl.arange(0, BLOCK)
    present = offs < stream.count - start
    offs_d = tl.arange(0, tiling.BLOCK_K)
    tile = load_tile(from_row(stream, start), Block(offs, present), offs_d, tiling.INTERPRETED)
    similarity = tl.dot(own_tile, tl.trans(tile), out_dtype=tl.float32)
    offs_m = (start + offs)[None, :]
    positive = (offs_m >= group.begin[:, None]) & (offs_m < group.end[:, None])
    return tile, similarity, present[None, :], positive


@triton.jit
def add_group(
    sums, own_tile, group, stream, near, step, scale, BLOCK: tl.constexpr, tiling: tl.constexpr
):
    """Add some of the near keys to the sums of some queries."""
    _tile, similarity, present, own = near_tile(own_tile, group, stream, near, step, BLOCK, tiling)
    exponent = scale * LOG2_E
    inside = tl.where(present, similarity, float("-inf"))
    largest = tl.max(inside, axis=1) * exponent
    shift = tl.maximum(sums.shift, largest - boost_of(stream.ptr.dtype.element_ty))
    exps = tl.exp2(tl.fma(inside, exponent, -shift[:, None])) + similarity * 0
    before = tl.exp2(sums.shift - shift)
    return GroupSums(
        shift,
        sums.negative * before + tl.sum(tl.where(own, 0.0, exps), axis=1),
        sums.positive * before + tl.sum(tl.where(own, exps, 0.0), axis=1),
        sums.similarity + tl.sum(tl.where(own, similarity, 0.0), axis=1),
    )


@triton.jit
def store_group_losses(sums, group, scale, losses, before, N, form: tl.constexpr, stream):
    """Losses; what makes p - y of logits. ``before`` is how many other layers have."""
    weight = group.weight
    has_loss = weight > 0
    # Of the mean of the positives, above the shift; loss_of takes their sum.
    above = tl.fma(sums.similarity * weight, scale * LOG2_E, -sums.shift) * LN_2
    above = tl.where(has_loss, above / weight, sums.similarity * 0)
    parts = (tl.zeros_like(above), sums.negative, above, sums.positive)
    loss, log_sum, _, rest = loss_of(parts, weight, form)
    out, mask = before + group.order, group.offs < N
    tl.store(losses.loss + out, tl.where(group.used, loss, 0.0), mask=mask)
    lse = tl.where(group.used, log_sum + sums.shift * LN_2, 0.0)
    tl.store(losses.lse + out, lse, mask=mask)
    total = tl.log2(sums.negative + sums.positive) - boost_of(stream.ptr.dtype.element_ty)
    total = tl.where(has_loss, total, float("inf"))
    return Shares(sums.shift, total, pull_of(weight, rest, form))


@triton.jit
def add_group_gradient(
    along, grad, own_tile, group, shares, stream, near, step, scale, gradients,
    BLOCK: tl.constexpr, tiling: tl.constexpr,
):  # fmt: skip
    """Add some of the near keys to the gradient of some queries."""
    BOOST: tl.constexpr = boost_of(stream.ptr.dtype.element_ty)
    tile, similarity, present, own = near_tile(own_tile, group, stream, near, step, BLOCK, tiling)
    above = tl.fma(similarity, scale * LOG2_E, -shares.shift[:, None]) - shares.log_sum[:, None]
    weights = pulled(tl.exp2(above), own, shares.pull[:, None], BOOST)
    weights = tl.where(present, weights, 0.0)
    if gradients.scale is not None:
        along += tl.sum(weights * similarity, axis=1)
    if gradients.rows is not None:
        grad = tl.dot(multiplied(weights, stream, tile), tile, grad, out_dtype=tl.float32)
    return along, grad


@triton.jit
def store_group_gradients(along, grad, group, scale, share_ptr, gradients, slab, N, stream):
    """Of queries, whose weights were times 2**BOOST."""
    part = 2.0 ** -boost_of(stream.ptr.dtype.element_ty)
    if share_ptr is not None:
        part /= tl.maximum(tl.load(share_ptr), 1.0)
    mask = group.offs < N
    if gradients.scale is not None:
        along = tl.where(group.used, along * part, 0.0)
        tl.store(gradients.scale + slab.layer * N + group.order, along, mask=mask)
    if gradients.rows is not None:
        grad = tl.where(group.used[:, None], grad * (scale * part), 0.0)
        store_rows_at(gradients.rows, slab, N, group.order, mask, grad)
