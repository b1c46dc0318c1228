"""Passes over all keys of one query, whose products with them are in memory."""

from typing import NamedTuple

import triton
import triton.language as tl

from mim4dd.kernels._critic import (
    IGNORE,
    QueryTile,
    add_tile,
    load_excluded,
    load_keys,
    load_scales,
    logits_of,
    no_sums,
    pair,
    queries_along,
)


class Row(NamedTuple):
    """The query of a program, (1,) each, and its scales."""

    similarity_ptr: tl.tensor  # (M,): products with the keys
    query: QueryTile
    used: tl.tensor  # whether it takes part
    norm: tl.tensor
    scale: tl.tensor
    raised: tl.tensor


class PairTile(NamedTuple):
    """A row's pairs with some keys, (1, BLOCK_M) each."""

    similarity: tl.tensor
    norms: tl.tensor  # products of the norms, which are in it
    logits: tl.tensor
    valid: tl.tensor
    positive: tl.tensor


@triton.jit
def load_row(similarity_ptr, query_norms_ptr, pairs, scales, first, dtype: tl.constexpr):
    """The row of this program, in a chunk that begins with query ``first``."""
    row = tl.program_id(0).to(tl.int64)
    offs_n = first + row + tl.arange(0, 1)
    labels = tl.load(pairs.labels + offs_n)
    if query_norms_ptr is not None:
        norm = tl.load(query_norms_ptr + offs_n)
    else:
        norm = tl.full((1,), 1.0, dtype)
    scale, raised = load_scales(scales.scale, scales.raised)
    query = QueryTile(offs_n, labels, load_excluded(pairs, offs_n))
    similarity_ptr += row * pairs.num_keys
    return Row(similarity_ptr, query, labels != IGNORE, norm, scale, raised)


@triton.jit
def load_pairs(row, key_norms_ptr, pairs, offs_m, form: tl.constexpr):
    """A row's pairs with keys ``offs_m``, (1, BLOCK_M)."""
    keys = load_keys(pairs, offs_m)
    similarity = tl.load(row.similarity_ptr + offs_m, mask=keys.mask, other=0.0)
    norms = row.norm[:, None]
    if key_norms_ptr is not None:
        norms = norms * tl.load(key_norms_ptr + offs_m, mask=keys.mask, other=0.0)
        similarity *= norms
    valid, positive = pair(queries_along(row.query, True), keys, pairs)
    logits = logits_of(similarity, positive, row.scale, row.raised, form)
    return PairTile(similarity, norms, logits, valid & row.used[:, None], positive)


@triton.jit
def sum_row(row, key_norms_ptr, pairs, bias, needed, form: tl.constexpr, BLOCK_M: tl.constexpr):
    """What the loss of a row is made of, over all keys; of none unless it is ``needed``."""
    sums = no_sums(1, form, bias.dtype)
    last = tl.where(tl.max(needed.to(tl.int32), axis=0) > 0, pairs.num_keys, 0)
    for start in range(0, last, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)[None, :].to(tl.int64)
        tile = load_pairs(row, key_norms_ptr, pairs, offs_m, form)
        sums = add_tile(sums, tile.logits, bias[:, None], tile.valid, tile.positive, form)
    return sums
