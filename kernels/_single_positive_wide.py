"""The queries' gradient of InfoNCE of one positive, of rows too wide for one pass with the losses.

Of 256 columns the gradient alone fills half of the registers. What the losses' pass finds is known
here, so that nothing is scaled again and again as the sums grow.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from mim4dd.kernels._arguments import Features, Pairs, Scales
from mim4dd.kernels._critic import IGNORE, load_scales
from mim4dd.kernels._rows import locate
from mim4dd.kernels._single_positive_passes import (
    LOG2_E,
    NOWHERE,
    QueryGradients,
    Statistics,
    boost_of,
    plain_tiles,
    store_rows,
    stream_tile,
)
from mim4dd.kernels._tiles import Block, load_tile, multiplied, sides_of


class Known(NamedTuple):
    """Of the queries of a program, (BLOCK_OWN,) each: see Statistics."""

    labels: tl.tensor
    shift: tl.tensor
    log_sum: tl.tensor
    pull: tl.tensor  # what the positive's weight is, minus


@triton.jit
def queries_gradient_pass(
    features: Features,  # of queries that are ignored 0
    table_ptr,  # see layer_table
    pairs: Pairs,
    scales: Scales,
    share_ptr,  # as in keys_pass
    statistics: Statistics,
    gradients: QueryGradients,
    tiling: tl.constexpr,
):
    """Gradient of the losses by BLOCK_OWN queries of a layer, and their part of the scale's."""
    BLOCK_OWN: tl.constexpr = tiling.BLOCK_OWN
    BLOCK_STREAM: tl.constexpr = tiling.BLOCK_STREAM
    BLOCK_K: tl.constexpr = tiling.BLOCK_K
    BOOST: tl.constexpr = boost_of(features.query.dtype.element_ty)
    N = pairs.num_queries
    M = pairs.num_keys
    slab = locate(table_ptr, tl.program_id(1), tiling.DIVISOR)
    own, stream = sides_of(features, pairs, slab, True)
    offs_n = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    present = offs_n < N
    rows = Block(offs_n.to(tl.int64), present)
    own_tile = load_tile(own, rows, tl.arange(0, tiling.BLOCK_K), tiling.INTERPRETED)
    scale, _ = load_scales(scales.scale, scales.raised)
    at = slab.layer * N + offs_n
    labels = tl.load(statistics.labels + offs_n, mask=present, other=NOWHERE)
    known = Known(
        labels,
        tl.load(statistics.shift + at, mask=present, other=0.0),
        tl.load(statistics.log_sum + at, mask=present, other=float("inf")),
        tl.load(statistics.rest + at, mask=present, other=0.0) * 2.0**BOOST,
    )
    grad = tl.zeros((BLOCK_OWN, BLOCK_K), tl.float32)
    along = tl.zeros((BLOCK_OWN,), tl.float32)
    first = tl.min(tl.where(labels >= 0, labels, M), axis=0)
    whole, begin, hits = plain_tiles(M, first, tl.max(labels, axis=0) + 1, BLOCK_STREAM)
    SHORT: tl.constexpr = min(BLOCK_STREAM, 32)
    for step in tl.range(0, hits + M - whole, SHORT, num_stages=1):
        start = step + tl.where(step < hits, begin, whole - hits)
        grad, along = add_known(
            grad, along, own_tile, known, stream, start, scale, gradients, SHORT, True, tiling
        )
    for step in range(0, whole - hits, BLOCK_STREAM):
        start = step + tl.where(step < begin, 0, hits)
        grad, along = add_known(
            grad, along, own_tile, known, stream, start, scale, gradients, BLOCK_STREAM, False,
            tiling,
        )  # fmt: skip
    part = 2.0**-BOOST
    if share_ptr is not None:
        part /= tl.maximum(tl.load(share_ptr), 1.0)
    # A query that is ignored is 0 here, which an infinite key makes NaN.
    used = tl.load(pairs.labels + offs_n, mask=present, other=IGNORE) != IGNORE
    if gradients.scale is not None:
        tl.store(gradients.scale + at, tl.where(used, along * part, 0.0), mask=present)
    if gradients.rows is not None:
        grad = tl.where(used[:, None], grad * (scale * part), 0.0)
        store_rows(gradients.rows, slab, N, grad)


@triton.jit
def add_known(
    grad, along, own_tile, known, stream, start, scale, gradients, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, tiling: tl.constexpr,
):  # fmt: skip
    """Add BLOCK keys from ``start`` on to the gradient of some queries."""
    tile, offs, present, _loaded = stream_tile(stream, start, BLOCK, MASKED, tiling)
    similarity = tl.dot(own_tile, tl.trans(tile), out_dtype=tl.float32)
    above = tl.fma(similarity, scale * LOG2_E, -known.shift[:, None])
    weights = tl.exp2(above - known.log_sum[:, None])
    if MASKED:
        own = offs[None, :] == (known.labels - start)[:, None]
        weights = tl.where(own, -known.pull[:, None], weights)
        weights = tl.where(present[None, :], weights, 0.0)
    if gradients.scale is not None:
        along += tl.sum(weights * similarity, axis=1)
    if gradients.rows is not None:
        grad = tl.dot(multiplied(weights, stream, tile), tile, grad, out_dtype=tl.float32)
    return grad, along
