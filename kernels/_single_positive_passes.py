"""The two passes of InfoNCE of one positive; see _single_positive.py."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._arguments import Features, Groups, Losses, Pairs, Scales
from mim4dd.kernels._critic import IGNORE, load_scales, loss_of
from mim4dd.kernels._rows import locate
from mim4dd.kernels._tiles import Block, Side, load_tile, multiplied, sides_of

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # finite, so that nothing is subtracted from itself
NOWHERE = tl.constexpr(-2)  # the place of a positive that is no key
STRETCH = tl.constexpr(128)  # rows; no tile is longer


class Statistics(NamedTuple):
    """What the pass over queries needs of each; None where there is none.

    Logits and logarithms are of base 2.
    """

    labels: Tensor | None  # (N,) int32: place of the positive
    rows: Tensor | None  # layers of (N, D): the queries, 0 where they are ignored
    shift: Tensor | None  # (L, N): about the largest logit, less the boost
    log_sum: Tensor | None  # (L, N): of Σ exp2(logit − shift) / 2^boost; inf without a loss
    rest: Tensor | None  # (L, N): the negatives' share of the sum; in groups see pull_of
    # (2, stretches of keys) int32: the first stretch of queries with a positive there, −the last
    stretches: Tensor | None


class QueryGradients(NamedTuple):
    """Of the losses; None where it is not wanted."""

    rows: Tensor | None  # layers of (N, D)
    scale: Tensor | None  # (L, N): parts of the sum


class Own(NamedTuple):
    """The queries of a program, (BLOCK_OWN,) each."""

    rows: Block
    labels: tl.tensor  # place of the positive
    similarity: tl.tensor  # to it


class Sums(NamedTuple):
    """Over the negatives of some queries, (BLOCK_OWN,) or of rows."""

    shift: tl.tensor  # about the largest logit of base 2, less the boost
    exps: tl.tensor  # Σ exp2(logit − shift)
    along: tl.tensor  # of those times the similarity
    grad: tl.tensor  # of those times the key
    positive: tl.tensor  # similarity to the positive, which is none of them


@triton.constexpr_function  # Triton 3.6 makes a tensor of what its other functions return
def boost_of(dtype):
    """How far the shift is below the largest logit: for float16, whose range goes on above 1."""
    return 14.0 if dtype == tl.float16 else 0.0


@triton.jit
def keys_pass(
    features: Features,
    table_ptr,  # see layer_table
    pairs: Pairs,
    scales: Scales,
    weight_ptr,  # (N,)
    share_ptr,  # (): of how many losses the gradients are those of the mean; None for the sum
    losses: Losses,
    statistics: Statistics,
    gradients: QueryGradients,
    form: tl.constexpr,
    tiling: tl.constexpr,
):
    """Losses of BLOCK_OWN queries of a layer, and their gradient."""
    BLOCK_OWN: tl.constexpr = tiling.BLOCK_OWN
    BLOCK_STREAM: tl.constexpr = tiling.BLOCK_STREAM
    BLOCK_K: tl.constexpr = tiling.BLOCK_K
    N = pairs.num_queries
    M = pairs.num_keys
    slab = locate(table_ptr, tl.program_id(1), tiling.DIVISOR)
    own, stream = sides_of(features, pairs, slab, True)
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    labels = tl.load(pairs.labels + offs_n, mask=offs_n < N, other=IGNORE)
    rows = Block(offs_n, labels != IGNORE)
    labels = tl.where((labels >= 0) & (labels < M), labels, NOWHERE).to(tl.int32)
    own_tile = load_tile(own, rows, tl.arange(0, BLOCK_K), tiling.INTERPRETED)
    if statistics.rows is not None:
        store_rows(statistics.rows, slab, N, own_tile)
    scale, _ = load_scales(scales.scale, scales.raised)

    zero = tl.zeros((BLOCK_OWN,), tl.float32)
    sums = Sums(zero + LOWEST, zero, zero, tl.zeros((BLOCK_OWN, BLOCK_K), tl.float32), zero)
    first = tl.min(tl.where(labels >= 0, labels, M), axis=0)
    whole, begin, hits = plain_tiles(M, first, tl.max(labels, axis=0) + 1, BLOCK_STREAM)
    # Masks take registers: their tiles are short.
    SHORT: tl.constexpr = min(BLOCK_STREAM, 64)
    for step in tl.range(0, hits + M - whole, SHORT, num_stages=1):
        start = step + tl.where(step < hits, begin, whole - hits)
        sums = add_keys(
            sums, own_tile, labels, stream, start, scale, gradients, SHORT, True, tiling
        )
    for step in range(0, whole - hits, BLOCK_STREAM):
        start = step + tl.where(step < begin, 0, hits)
        sums = add_keys(
            sums, own_tile, labels, stream, start, scale, gradients, BLOCK_STREAM, False, tiling
        )
    if gradients.rows is not None:
        # 0, but of an infinite key, whose exponential may be 0.
        exps = sums.exps + tl.sum(sums.grad * 0, axis=1)
        sums = Sums(sums.shift, exps, sums.along, sums.grad, sums.positive)
    queries = Own(rows, labels, sums.positive)
    BOOST: tl.constexpr = boost_of(features.query.dtype.element_ty)
    weight = tl.load(weight_ptr + offs_n, mask=rows.mask, other=0.0)
    out = slab.layer * N + offs_n
    shift, rest, total = store_losses(sums, queries, weight, scale, losses, out, N, form, BOOST)
    if statistics.rows is not None:
        store_statistics(statistics, queries, weight > 0, shift, rest, total, out, pairs, BOOST)
    # What exponentials below the first shift are of a gradient, and what the positive is.
    before = tl.exp2(sums.shift - shift) / total
    part = tl.where(weight > 0, 1.0, 0.0)
    if share_ptr is not None:
        part /= tl.maximum(tl.load(share_ptr), 1.0)
    store_gradients(
        gradients, sums, queries, before * part, rest * part, scale, stream, slab, out, N
    )


@triton.jit
def store_rows(rows_ptr, slab, count, tile):
    """A program's rows of a layer's packed ones."""
    begin = tl.program_id(0) * tile.shape[0]
    offs = tl.arange(0, tile.shape[0])
    offs_d = tl.arange(0, tile.shape[1])
    # 32 bits for what differs within a tile: fewer registers.
    offsets = offs[:, None] * slab.D.to(tl.int32) + offs_d[None, :]
    mask = (offs < count - begin)[:, None] & (offs_d < slab.D)[None, :]
    tl.store(rows_ptr + (slab.before * count + begin * slab.D) + offsets, tile, mask=mask)


@triton.jit
def store_rows_at(rows_ptr, slab, count, order, mask, tile):
    """A program's rows, wherever they lie among a layer's packed ones."""
    offs_d = tl.arange(0, tile.shape[1])
    begins = rows_ptr + slab.before * count + order * slab.D
    mask = mask[:, None] & (offs_d < slab.D)[None, :]
    tl.store(begins[:, None] + offs_d[None, :], tile, mask=mask)


@triton.jit
def plain_tiles(count, first, last, BLOCK: tl.constexpr):
    """Rows in whole tiles; where the tiles begin that rows ``first`` to ``last`` lie in; how many.

    Without those, and what is left behind the whole tiles, all tiles are plain: they are gone
    through in one loop, which has no masks, and the others in another.
    """
    whole = count // BLOCK * BLOCK
    begin = tl.minimum(first // BLOCK * BLOCK, whole)
    end = tl.minimum(tl.maximum(tl.cdiv(last, BLOCK) * BLOCK, begin), whole)
    return whole, begin, end - begin


@triton.jit
def from_row(side, start):
    """A side without the rows before ``start``: what a loop adds to its addresses is one number."""
    begin = side.ptr + start.to(tl.int64) * side.stride
    return Side(begin, side.stride.to(tl.int32), side.count, side.D)


@triton.jit
def stream_tile(stream, start, BLOCK: tl.constexpr, MASKED: tl.constexpr, tiling: tl.constexpr):
    """BLOCK rows of a side from ``start`` on: their numbers from there; which are there and loaded.

    Without masks all of them are.
    """
    offs = tl.arange(0, BLOCK)
    present = offs < stream.count - start
    loaded = present if MASKED else tl.full((BLOCK,), True, tl.int1)
    offs_d = tl.arange(0, tiling.BLOCK_K)
    tile = load_tile(from_row(stream, start), Block(offs, loaded), offs_d, tiling.INTERPRETED)
    return tile, offs, present, loaded


@triton.jit
def add_keys(
    sums, own_tile, labels, stream, start, scale, gradients, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, tiling: tl.constexpr,
):  # fmt: skip
    """Add BLOCK keys from ``start`` on to the sums of some queries."""
    tile, offs, present, _loaded = stream_tile(stream, start, BLOCK, MASKED, tiling)
    similarity = tl.dot(own_tile, tl.trans(tile), out_dtype=tl.float32)
    inside, positive = similarity, sums.positive
    if MASKED:
        own = offs[None, :] == (labels - start)[:, None]
        inside = tl.where(own | ~present[None, :], float("-inf"), similarity)
        positive += tl.sum(tl.where(own, similarity, 0.0), axis=1)
    exponent = scale * LOG2_E
    largest = tl.max(inside, axis=1) * exponent
    shift = tl.maximum(sums.shift, largest - boost_of(stream.ptr.dtype.element_ty))
    exps = tl.exp2(tl.fma(inside, exponent, -shift[:, None]))
    if gradients.rows is None:
        exps += similarity * 0
    before = tl.exp2(sums.shift - shift)
    total = sums.exps * before + tl.sum(exps, axis=1)
    along, grad = sums.along, sums.grad
    if gradients.scale is not None:
        along = along * before + tl.sum(exps * similarity, axis=1)
    if gradients.rows is not None:
        grad = tl.dot(
            multiplied(exps, stream, tile), tile, grad * before[:, None], out_dtype=tl.float32
        )
    return Sums(shift, total, along, grad, positive)


@triton.jit
def store_losses(sums, queries, weight, scale, losses, out, N, form: tl.constexpr, BOOST):
    """Losses; the shift with the positive, the negatives' share and the sum of exponentials."""
    exponent = scale * LOG2_E
    has_loss = weight > 0
    own_shift = queries.similarity * exponent - BOOST
    shift = tl.where(has_loss, tl.maximum(sums.shift, own_shift), sums.shift)
    negative = sums.exps * tl.exp2(sums.shift - shift)
    above = tl.fma(queries.similarity, exponent, -shift)
    positive = tl.where(has_loss, tl.exp2(above), 0.0)
    parts = (tl.zeros_like(shift), negative, above * LN_2, positive)
    loss, log_sum, _, rest = loss_of(parts, weight, form)
    used = queries.rows.mask
    mask_n = queries.rows.offs < N
    tl.store(losses.loss + out, tl.where(used, loss, 0.0), mask=mask_n)
    if losses.lse is not None:
        tl.store(losses.lse + out, tl.where(used, log_sum + shift * LN_2, 0.0), mask=mask_n)
    return shift, rest, negative + positive


@triton.jit
def store_statistics(statistics, queries, has_loss, shift, rest, total, out, pairs, BOOST):
    """What the pass over queries needs of these."""
    offs_n = queries.rows.offs
    mask_n = offs_n < pairs.num_queries
    log_sum = tl.where(has_loss, tl.log2(total) - BOOST, float("inf"))
    tl.store(statistics.labels + offs_n, queries.labels, mask=mask_n)  # each layer stores the same
    tl.store(statistics.shift + out, shift, mask=mask_n)
    tl.store(statistics.log_sum + out, log_sum, mask=mask_n)
    tl.store(statistics.rest + out, rest, mask=mask_n)
    # Minima, so that the order in which programs come to it does not matter.
    tile = tl.program_id(0) * offs_n.shape[0] // STRETCH
    nearest = statistics.stretches + queries.labels // STRETCH
    tl.atomic_min(nearest, tile, mask=has_loss)
    tl.atomic_min(nearest + tl.cdiv(pairs.num_keys, STRETCH), -tile, mask=has_loss)


@triton.jit
def store_gradients(gradients, sums, queries, before, rest, scale, keys, slab, out, N):
    """Of queries, whose negatives are as ``before`` times the sums, and positives as -``rest``."""
    used = queries.rows.mask
    if gradients.scale is not None:
        along = sums.along * before - queries.similarity * rest
        mask = queries.rows.offs < N
        tl.store(gradients.scale + out, tl.where(used, along, 0.0), mask=mask)
    if gradients.rows is not None:
        block = Block(queries.labels.to(tl.int64), queries.labels >= 0)
        positives = load_tile(keys, block, tl.arange(0, sums.grad.shape[1]), False)
        grad = sums.grad * (scale * before)[:, None]
        grad -= (scale * rest)[:, None] * positives.to(tl.float32)
        grad = tl.where(used[:, None], grad, 0.0)
        store_rows(gradients.rows, slab, N, grad)


@triton.jit
def queries_pass(
    features: Features,  # of queries that are ignored 0
    table_ptr,  # see layer_table
    pairs: Pairs,
    groups: Groups,
    scales: Scales,
    share_ptr,  # as in keys_pass
    statistics: Statistics,
    grad_ptr,  # layers of (M, D)
    tiling: tl.constexpr,
):
    """Gradient of the losses by BLOCK_OWN keys of a layer."""
    BLOCK_OWN: tl.constexpr = tiling.BLOCK_OWN
    BLOCK_STREAM: tl.constexpr = tiling.BLOCK_STREAM
    BLOCK_K: tl.constexpr = tiling.BLOCK_K
    BOOST: tl.constexpr = boost_of(features.query.dtype.element_ty)
    N = pairs.num_queries
    M = pairs.num_keys
    slab = locate(table_ptr, tl.program_id(1), tiling.DIVISOR)
    own, stream = sides_of(features, pairs, slab, False)
    offs_m = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    present = offs_m < M
    count = N
    if groups.counts is not None:
        present = offs_m < tl.load(groups.counts + 1)
        count = tl.load(groups.counts)
        stream = Side(stream.ptr, stream.stride, count, stream.D)
    own_rows = Block(offs_m.to(tl.int64), present)
    own_tile = load_tile(own, own_rows, tl.arange(0, BLOCK_K), tiling.INTERPRETED)
    scale, _ = load_scales(scales.scale, scales.raised)
    grad = tl.zeros((BLOCK_OWN, BLOCK_K), tl.float32)
    if groups.first is not None:
        first = tl.min(tl.load(groups.first + offs_m, mask=present, other=N), axis=0)
        last = tl.max(tl.load(groups.last + offs_m, mask=present, other=0), axis=0)
    else:
        nearest = statistics.stretches + tl.program_id(0) * BLOCK_OWN // STRETCH
        first = tl.load(nearest) * STRETCH
        last = (1 - tl.load(nearest + tl.cdiv(M, STRETCH))) * STRETCH
    whole, begin, hits = plain_tiles(count, first, last, BLOCK_STREAM)
    before = slab.layer * N
    for step in tl.range(0, hits + count - whole, BLOCK_STREAM, num_stages=1):
        start = step + tl.where(step < hits, begin, whole - hits)
        grad = add_queries(
            grad, own_tile, offs_m, stream, start, scale, statistics, groups, before, True, tiling
        )
    for step in range(0, whole - hits, BLOCK_STREAM):
        start = step + tl.where(step < begin, 0, hits)
        grad = add_queries(
            grad, own_tile, offs_m, stream, start, scale, statistics, groups, before, False, tiling
        )
    factor = scale * 2.0**-BOOST
    if share_ptr is not None:
        factor /= tl.maximum(tl.load(share_ptr), 1.0)
    if groups.key_order is not None:
        order = tl.load(groups.key_order + offs_m, mask=offs_m < M, other=0)
        grad = tl.where(present[:, None], grad * factor, 0.0)
        store_rows_at(grad_ptr, slab, M, order, offs_m < M, grad)
    else:
        store_rows(grad_ptr, slab, M, grad * factor)


@triton.jit
def add_queries(
    grad, own_tile, offs_m, stream, start, scale, statistics, groups, before,
    MASKED: tl.constexpr, tiling: tl.constexpr,
):  # fmt: skip
    """Add what the queries from ``start`` on are in the gradient of some keys.

    ``before`` is how many numbers other layers have.
    """
    BOOST: tl.constexpr = boost_of(stream.ptr.dtype.element_ty)
    offs = tl.arange(0, tiling.BLOCK_STREAM)
    offs_n = start + offs
    offs_d = tl.arange(0, tiling.BLOCK_K)
    present = offs_n < stream.count if MASKED else tl.full((tiling.BLOCK_STREAM,), True, tl.int1)
    rows = Block(offs, present)
    tile = load_tile(from_row(stream, start), rows, offs_d, tiling.INTERPRETED)
    at = before + offs_n
    shift = tl.load(statistics.shift + at, mask=present, other=0.0)
    log_sum = tl.load(statistics.log_sum + at, mask=present, other=float("inf"))
    # Queries along the rows, though keys are owned: a thread has few rows, and many columns.
    similarity = tl.dot(tile, tl.trans(own_tile), out_dtype=tl.float32)
    above = tl.fma(similarity, scale * LOG2_E, -shift[:, None])
    weights = tl.exp2(above - log_sum[:, None])
    if MASKED:
        rest = tl.load(statistics.rest + at, mask=present, other=0.0)
        if groups.begin is not None:
            begin = tl.load(groups.begin + offs_n, mask=present, other=0)
            end = tl.load(groups.end + offs_n, mask=present, other=0)
            own = (offs_m[None, :] >= begin[:, None]) & (offs_m[None, :] < end[:, None])
            weights = pulled(weights, own, rest[:, None], BOOST)
        else:
            labels = tl.load(statistics.labels + offs_n, mask=present, other=NOWHERE)
            rest *= 2.0**BOOST
            weights = tl.where(labels[:, None] == offs_m[None, :], -rest[:, None], weights)
    return tl.dot(tl.trans(multiplied(weights, stream, tile)), tile, grad, out_dtype=tl.float32)


@triton.jit
def pulled(weights, positive, pull, BOOST: tl.constexpr):
    """p - y of the pairs of a tile, times 2**BOOST, in full precision, where ``weights`` are p."""
    of_positive = tl.where(pull > 0, weights, 0.0) - tl.abs(pull) * 2.0**BOOST
    return tl.where(positive, of_positive, weights)
