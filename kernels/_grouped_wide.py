"""The queries' gradient of losses by label, of rows too wide for one pass with the losses.

The rows are sorted by label, see _grouped.py; as in _single_positive_wide.py, what the losses' pass
finds is known here.
"""

import triton
import triton.language as tl

from mim4dd.kernels._arguments import Features, Groups, Pairs, Scales
from mim4dd.kernels._critic import load_scales
from mim4dd.kernels._grouped_passes import (
    Near,
    Shares,
    add_group_gradient,
    load_group,
    sorted_sides,
    store_group_gradients,
)
from mim4dd.kernels._single_positive_passes import QueryGradients, Statistics, plain_tiles
from mim4dd.kernels._single_positive_wide import add_known
from mim4dd.kernels._tiles import Block, load_tile


@triton.jit
def grouped_gradient_pass(
    features: Features,  # sorted by label; those that take no part come last
    table_ptr,  # see layer_table
    pairs: Pairs,
    groups: Groups,
    scales: Scales,
    weight_ptr,  # (N,), in the caller's order
    share_ptr,  # as in keys_pass
    statistics: Statistics,
    gradients: QueryGradients,  # in the caller's order
    tiling: tl.constexpr,
):
    """Gradient of the losses by BLOCK_OWN queries of a layer, and their part of the scale's."""
    BLOCK_OWN: tl.constexpr = tiling.BLOCK_OWN
    BLOCK_STREAM: tl.constexpr = tiling.BLOCK_STREAM
    BLOCK_K: tl.constexpr = tiling.BLOCK_K
    SHORT: tl.constexpr = min(BLOCK_STREAM, 32)  # masks take registers
    N = pairs.num_queries
    slab, own, stream = sorted_sides(features, table_ptr, pairs, groups, tiling)
    M = stream.count
    group = load_group(groups, weight_ptr, N, BLOCK_OWN)
    rows = Block(group.offs.to(tl.int64), group.used)
    own_tile = load_tile(own, rows, tl.arange(0, BLOCK_K), tiling.INTERPRETED)
    scale, _ = load_scales(scales.scale, scales.raised)
    at = slab.layer * N + group.offs
    shares = Shares(
        tl.load(statistics.shift + at, mask=group.used, other=0.0),
        tl.load(statistics.log_sum + at, mask=group.used, other=float("inf")),
        tl.load(statistics.rest + at, mask=group.used, other=0.0),
    )
    first = tl.min(tl.where(group.used, group.begin, M), axis=0)
    whole, begin, hits = plain_tiles(M, first, tl.max(group.end, axis=0), BLOCK_STREAM)
    near = Near(whole, begin, hits)

    grad = tl.zeros((BLOCK_OWN, BLOCK_K), tl.float32)
    along = tl.zeros((BLOCK_OWN,), tl.float32)
    for step in tl.range(0, hits + M - whole, SHORT, num_stages=1):
        along, grad = add_group_gradient(
            along, grad, own_tile, group, shares, stream, near, step, scale, gradients, SHORT,
            tiling,
        )  # fmt: skip
    for step in range(0, whole - hits, BLOCK_STREAM):
        start = step + tl.where(step < begin, 0, hits)
        grad, along = add_known(
            grad, along, own_tile, shares, stream, start, scale, gradients, BLOCK_STREAM, False,
            tiling,
        )  # fmt: skip
    # Loaded again: the loop above needs the registers.
    group = load_group(groups, weight_ptr, N, BLOCK_OWN)
    store_group_gradients(along, grad, group, scale, share_ptr, gradients, slab, N, stream)
