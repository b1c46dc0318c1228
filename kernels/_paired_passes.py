"""The passes of clip_loss over tiles that no memory holds; see _paired.py."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._arguments import Features, Losses
from mim4dd.kernels._critic import load_scales
from mim4dd.kernels._rows import locate
from mim4dd.kernels._single_positive_passes import (
    LN_2,
    LOG2_E,
    LOWEST,
    Own,
    QueryGradients,
    Sums,
    add_keys,
    boost_of,
    plain_tiles,
    store_losses,
    store_rows,
    stream_tile,
)
from mim4dd.kernels._tiles import Block, Side, load_tile, multiplied


class Shares(NamedTuple):
    """What makes weights of logits of base 2: factor · exp2(logit + offset)."""

    offset: Tensor  # (2, N): of queries, of keys
    factor: Tensor  # (2, N)


class PairedRows(NamedTuple):
    """The rows of a program, (BLOCK_OWN,) each."""

    offs: tl.tensor
    shares: Shares
    pair_weight: tl.tensor  # of each row's pair


@triton.jit
def either(of_keys, of_query, of_key):
    """What the side of a program has."""
    return tl.where(of_keys, of_key, of_query)


@triton.jit
def paired_sides(features, slab, N, of_keys):
    """The side whose rows a program owns, queries or keys, and the other one."""
    query = features.query, slab.query_stride
    key = features.key, slab.key_stride
    own = Side(either(of_keys, query[0], key[0]), either(of_keys, query[1], key[1]), N, slab.D)
    stream = Side(either(of_keys, key[0], query[0]), either(of_keys, key[1], query[1]), N, slab.D)
    return own, stream


@triton.jit
def paired_sums_pass(
    features: Features,
    table_ptr,  # see layer_table
    scale_ptr,  # ()
    losses: Losses,  # (2, N): of queries, of keys
    shift_ptr,  # (2, N)
    sum_ptr,  # (2, N): of exp(logit - shift)
    N,
    form: tl.constexpr,
    tiling: tl.constexpr,
):
    """Losses of BLOCK_OWN rows of one side, and what makes shares of their exponentials."""
    BLOCK_OWN: tl.constexpr = tiling.BLOCK_OWN
    BLOCK_STREAM: tl.constexpr = tiling.BLOCK_STREAM
    BOOST: tl.constexpr = boost_of(features.query.dtype.element_ty)
    NONE: tl.constexpr = QueryGradients(None, None)
    of_keys = tl.program_id(1) == 1
    slab = locate(table_ptr, 0, tiling.DIVISOR)
    own, stream = paired_sides(features, slab, N, of_keys)
    offs = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    rows = Block(offs.to(tl.int64), offs < N)
    own_tile = load_tile(own, rows, tl.arange(0, tiling.BLOCK_K), tiling.INTERPRETED)
    scale, _ = load_scales(scale_ptr, scale_ptr)

    zero = tl.zeros((BLOCK_OWN,), tl.float32)
    sums = Sums(zero + LOWEST, zero, zero, tl.zeros((BLOCK_OWN, 1), tl.float32), zero)
    first = tl.program_id(0) * BLOCK_OWN
    whole, begin, hits = plain_tiles(N, first, tl.minimum(first + BLOCK_OWN, N), BLOCK_STREAM)
    # Masks take registers: their tiles are short.
    SHORT: tl.constexpr = min(BLOCK_STREAM, 64)
    for step in tl.range(0, hits + N - whole, SHORT, num_stages=1):
        start = step + tl.where(step < hits, begin, whole - hits)
        sums = add_keys(sums, own_tile, offs, stream, start, scale, NONE, SHORT, True, tiling)
    for step in range(0, whole - hits, BLOCK_STREAM):
        start = step + tl.where(step < begin, 0, hits)
        sums = add_keys(
            sums, own_tile, offs, stream, start, scale, NONE, BLOCK_STREAM, False, tiling
        )
    out = tl.program_id(1).to(tl.int64) * N + offs
    queries = Own(rows, offs, sums.positive)
    shift, _rest, total = store_losses(sums, queries, zero + 1, scale, losses, out, N, form, BOOST)
    # The gradients' kernel has it from this one, rounded twice; no product is fused with a sum.
    rounded = shift * LN_2
    tl.store(shift_ptr + out, rounded, mask=rows.mask)
    again = tl.fma(rounded, LOG2_E, 0.0)
    tl.store(sum_ptr + out, total * tl.exp2(shift - again), mask=rows.mask)


@triton.jit
def paired_gradient_pass(
    features: Features,
    table_ptr,  # see layer_table
    scale_ptr,  # ()
    factor_ptr,  # (): scale over what the upstream gradients were multiplied by
    shares: Shares,
    pair_weight_ptr,  # (N,)
    grad_ptr,  # (2, N, D)
    grad_scale_ptr,  # (N,): parts of the sum
    N,
    tiling: tl.constexpr,
):
    """Gradient of BLOCK_OWN rows of one side, of the losses of both."""
    BLOCK_OWN: tl.constexpr = tiling.BLOCK_OWN
    BLOCK_STREAM: tl.constexpr = tiling.BLOCK_STREAM
    BLOCK_K: tl.constexpr = tiling.BLOCK_K
    of_keys = tl.program_id(1) == 1
    slab = locate(table_ptr, 0, tiling.DIVISOR)
    own, stream = paired_sides(features, slab, N, of_keys)
    offs = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    mask = offs < N
    own_tile = load_tile(
        own, Block(offs.to(tl.int64), mask), tl.arange(0, tiling.BLOCK_K), tiling.INTERPRETED
    )
    scale = tl.load(scale_ptr)  # of no temperature, it has left NaN in the factors
    at = tl.program_id(1).to(tl.int64) * N
    others = Shares(shares.offset + (N - at), shares.factor + (N - at))
    rows = PairedRows(
        offs,
        load_shares(shares, at + offs, mask),
        tl.load(pair_weight_ptr + offs, mask=mask, other=0.0),
    )

    grad = tl.zeros((BLOCK_OWN, BLOCK_K), tl.float32)
    along = tl.zeros((BLOCK_OWN,), tl.float32)
    first = tl.program_id(0) * BLOCK_OWN
    whole, begin, hits = plain_tiles(N, first, tl.minimum(first + BLOCK_OWN, N), BLOCK_STREAM)
    SHORT: tl.constexpr = min(BLOCK_STREAM, 64)
    for step in tl.range(0, hits + N - whole, SHORT, num_stages=1):
        start = step + tl.where(step < hits, begin, whole - hits)
        grad, along = add_pairs(
            grad, along, own_tile, rows, others, stream, start, scale, SHORT, True, tiling
        )
    for step in range(0, whole - hits, BLOCK_STREAM):
        start = step + tl.where(step < begin, 0, hits)
        grad, along = add_pairs(
            grad, along, own_tile, rows, others, stream, start, scale, BLOCK_STREAM, False, tiling
        )
    if tl.program_id(1) == 0:  # both sides find the same
        tl.store(grad_scale_ptr + offs, along, mask=mask)
    grad_ptr += at * slab.D
    store_rows(grad_ptr, slab, N, grad * tl.load(factor_ptr))


@triton.jit
def load_shares(shares, at, mask):
    """Of some rows; 0 of those that there are not."""
    return Shares(
        tl.load(shares.offset + at, mask=mask, other=0.0),
        tl.load(shares.factor + at, mask=mask, other=0.0),
    )


@triton.jit
def add_pairs(
    grad, along, own_tile, rows, others, stream, start, scale, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, tiling: tl.constexpr,
):  # fmt: skip
    """Add what BLOCK rows of the other side, from ``start`` on, are in the gradient."""
    tile, offs, present, loaded = stream_tile(stream, start, BLOCK, MASKED, tiling)
    shares = load_shares(others, start + offs, loaded)
    similarity = tl.dot(own_tile, tl.trans(tile), out_dtype=tl.float32)
    exponent = scale * LOG2_E
    mine = tl.exp2(tl.fma(similarity, exponent, rows.shares.offset[:, None]))
    theirs = tl.exp2(tl.fma(similarity, exponent, shares.offset[None, :]))
    weights = tl.fma(theirs, shares.factor[None, :], mine * rows.shares.factor[:, None])
    if MASKED:
        own = (start + offs)[None, :] == rows.offs[:, None]
        weights = tl.where(own, rows.pair_weight[:, None], weights)
        weights = tl.where(present[None, :], weights, 0.0)
    along += tl.sum(weights * similarity, axis=1)
    return tl.dot(multiplied(weights, stream, tile), tile, grad, out_dtype=tl.float32), along
