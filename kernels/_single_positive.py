"""InfoNCE of one positive by index, where nothing is left out: few instructions for each logit.

The plain case, for operands of half precision, whose products the tensor cores make faster than
other kernels' arithmetic around each logit can follow. Here

- the loss and the gradient of the queries come from one pass, an attention whose values are the
  keys, so that the logits are made twice in all and not three times: 8·N·M·D operations;
- exponentials are of base 2, and logits are scaled and shifted in one instruction. It rounds the
  difference alone, and the shift, rounded before, is the same in all that is added up or divided:
  logits of 1e4 keep their digits;
- 0 · similarity, added to its exponential, is what makes a row with an infinite logit NaN. The
  gradient of the queries has it for nothing: no weight makes an infinite key finite;
- the positive's place is looked for only in the tiles that the positives of a program lie in, and
  its weight, minus the negatives' share, is formed apart from the others'. So gradients have their
  digits near p = 1.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._ahead_of_time import CAPABILITIES, EVERY_CASE, Compilation, compilation
from mim4dd.kernels._arguments import Features, Form, Losses, Pairs, Scales
from mim4dd.kernels._critic import IGNORE, load_scales, loss_of
from mim4dd.kernels._inputs import Found, Layers, Queries, capability, form_of, num_multiprocessors
from mim4dd.kernels._rows import divisor, locate
from mim4dd.kernels._tiles import Block, Side, Tiles, families, load_tile, operands, sides_of
from mim4dd.reference import Critic

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # finite, so that nothing is subtracted from itself
NOWHERE = tl.constexpr(-2)  # the place of a positive that is no key
STRETCH = tl.constexpr(128)  # rows; no tile is longer
PLAIN = Form("out", False, False)

# (pass, D up to, least compute capability). Over keys a program has in registers what is wanted:
# the losses' sums alone, the rows' gradient too, or the scale's as well.
TILES: dict[tuple[str, int, int], Tiles] = {
    ("loss", 64, 80): Tiles(128, 64, 64, 64, 8, 3),
    ("loss", 64, 90): Tiles(128, 128, 64, 64, 8, 3),
    ("loss", 128, 80): Tiles(128, 64, 128, 128, 8, 2),
    ("loss", 128, 90): Tiles(128, 128, 128, 128, 8, 2),
    ("rows", 64, 80): Tiles(128, 64, 64, 64, 8, 3),
    ("rows", 64, 90): Tiles(128, 128, 64, 64, 8, 3),
    ("rows", 128, 80): Tiles(128, 32, 128, 128, 8, 2),
    ("rows", 128, 90): Tiles(128, 128, 128, 128, 8, 2),
    ("scale", 64, 80): Tiles(128, 64, 64, 64, 8, 3),
    ("scale", 64, 90): Tiles(128, 128, 64, 64, 8, 3),
    ("scale", 64, 100): Tiles(128, 64, 64, 64, 8, 3),
    ("scale", 128, 80): Tiles(128, 32, 128, 128, 8, 2),
    ("scale", 128, 90): Tiles(128, 128, 128, 128, 8, 2),
    ("scale", 128, 100): Tiles(128, 32, 128, 128, 8, 2),
    ("queries", 64, 80): Tiles(128, 128, 64, 64, 8, 2),
    ("queries", 64, 90): Tiles(128, 128, 64, 64, 8, 3),
    ("queries", 128, 80): Tiles(128, 128, 128, 128, 8, 2),
}
WIDTHS = (64, 128)
WIDE_LOADS = 8  # columns of 16 bytes
LONGEST_STRIDE = 2**24  # a tile's addresses are 32-bit numbers from its first row on


class Statistics(NamedTuple):
    """What the pass over queries needs of each; None where there is none.

    Logits and logarithms are of base 2.
    """

    labels: Tensor | None  # (N,) int32: place of the positive
    rows: Tensor | None  # layers of (N, D): the queries, 0 where they are ignored
    shift: Tensor | None  # (L, N): about the largest logit, less the boost
    log_sum: Tensor | None  # (L, N): of Σ exp2(logit − shift) / 2^boost; inf without a loss
    rest: Tensor | None  # (L, N): the negatives' share of the sum
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


@triton.jit
def boost_of(dtype: tl.constexpr):
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
def add_keys(
    sums, own_tile, labels, stream, start, scale, gradients, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, tiling: tl.constexpr,
):  # fmt: skip
    """Add BLOCK keys from ``start`` on to the sums of some queries."""
    offs = tl.arange(0, BLOCK)
    offs_d = tl.arange(0, tiling.BLOCK_K)
    present = offs < stream.count - start
    loaded = present if MASKED else tl.full((BLOCK,), True, tl.int1)
    tile = load_tile(from_row(stream, start), Block(offs, loaded), offs_d, tiling.INTERPRETED)
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
        grad = tl.dot(exps.to(tile.dtype), tile, grad * before[:, None], out_dtype=tl.float32)
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
    own_rows = Block(offs_m.to(tl.int64), offs_m < M)
    own_tile = load_tile(own, own_rows, tl.arange(0, BLOCK_K), tiling.INTERPRETED)
    scale, _ = load_scales(scales.scale, scales.raised)
    grad = tl.zeros((BLOCK_OWN, BLOCK_K), tl.float32)
    nearest = statistics.stretches + tl.program_id(0) * BLOCK_OWN // STRETCH
    first = tl.load(nearest) * STRETCH
    last = (1 - tl.load(nearest + tl.cdiv(M, STRETCH))) * STRETCH
    whole, begin, hits = plain_tiles(N, first, last, BLOCK_STREAM)
    for step in tl.range(0, hits + N - whole, BLOCK_STREAM, num_stages=1):
        start = step + tl.where(step < hits, begin, whole - hits)
        grad = add_queries(
            grad, own_tile, offs_m, stream, start, scale, statistics, slab.layer, True, tiling
        )
    for step in range(0, whole - hits, BLOCK_STREAM):
        start = step + tl.where(step < begin, 0, hits)
        grad = add_queries(
            grad, own_tile, offs_m, stream, start, scale, statistics, slab.layer, False, tiling
        )
    factor = scale * 2.0**-BOOST
    if share_ptr is not None:
        factor /= tl.maximum(tl.load(share_ptr), 1.0)
    store_rows(grad_ptr, slab, M, grad * factor)


@triton.jit
def add_queries(
    grad, own_tile, offs_m, stream, start, scale, statistics, layer, MASKED: tl.constexpr,
    tiling: tl.constexpr,
):  # fmt: skip
    """Add what the queries from ``start`` on are in the gradient of some keys."""
    N = stream.count
    offs = tl.arange(0, tiling.BLOCK_STREAM)
    offs_n = start + offs
    offs_d = tl.arange(0, tiling.BLOCK_K)
    present = offs_n < N if MASKED else tl.full((tiling.BLOCK_STREAM,), True, tl.int1)
    rows = Block(offs, present)
    tile = load_tile(from_row(stream, start), rows, offs_d, tiling.INTERPRETED)
    at = layer * N + offs_n
    shift = tl.load(statistics.shift + at, mask=present, other=0.0)
    log_sum = tl.load(statistics.log_sum + at, mask=present, other=float("inf"))
    # Queries along the rows, though keys are owned: a thread has few rows, and many columns.
    similarity = tl.dot(tile, tl.trans(own_tile), out_dtype=tl.float32)
    above = tl.fma(similarity, scale * LOG2_E, -shift[:, None])
    weights = tl.exp2(above - log_sum[:, None])
    if MASKED:
        labels = tl.load(statistics.labels + offs_n, mask=present, other=NOWHERE)
        rest = tl.load(statistics.rest + at, mask=present, other=0.0)
        rest *= 2.0 ** boost_of(stream.ptr.dtype.element_ty)
        weights = tl.where(labels[:, None] == offs_m[None, :], -rest[:, None], weights)
    return tl.dot(tl.trans(weights.to(tile.dtype)), tile, grad, out_dtype=tl.float32)


def serves(layers: Layers, queries: Queries, critic: Critic) -> bool:
    """Whether these kernels are for this: the plain case, with work for most of the GPU."""
    if form_of(critic) != PLAIN or critic.normalize:
        return False
    if queries.key_labels is not None or queries.excluded is not None:
        return False
    if operands(layers.query.dtype, "ieee") != "half" or not (layers.N and layers.M):
        return False
    strides = (*layers.query_strides, *layers.key_strides)
    if max(layers.sizes) > max(WIDTHS) or max(strides) >= LONGEST_STRIDE:
        return False
    if divisor(*layers.sizes, *strides) < WIDE_LOADS:
        return False
    programs = triton.cdiv(min(layers.N, layers.M), STRETCH.value) * len(layers.sizes)
    return 2 * programs > num_multiprocessors(layers.query.device)


def entry(kind: str, D: int, capability: int) -> tuple[str, int, int]:
    """Key of the entry of the newest capability not above ``capability``."""
    width = next(each for each in WIDTHS if each >= D)
    keys = [(kind, width, family) for family in families(capability)]
    return next(key for key in keys if key in TILES)


def single_positive(
    layers: Layers, queries: Queries, gradients: Sequence[bool], share: Tensor | None
) -> tuple[Tensor, Tensor, list[Found]]:
    """Launch: loss and lse, each (L, N), and the wanted gradients of the summed losses by share."""
    want_query, want_key, want_scale, _ = gradients
    N, M, L, sizes = layers.N, layers.M, len(layers.sizes), layers.sizes
    new = queries.weight.new_empty
    loss, lse = new(2, L, N)
    query = new(N * sum(sizes)) if want_query else None
    key = new(M * sum(sizes)) if want_key else None
    scale = new(L, N) if want_scale else None
    scales = queries.scales._replace(bias=None, stride_bias=0)
    statistics = _new_statistics(layers, queries) if want_key else Statistics(*[None] * 6)
    kind = "scale" if want_scale else "rows" if want_query else "loss"
    over_keys, over_queries = (
        TILES[entry(each, max(sizes), capability(loss.device))] for each in (kind, "queries")
    )
    with torch.cuda.device_of(loss):
        keys_pass[(triton.cdiv(N, over_keys.BLOCK_OWN), L)](
            layers.features,
            layers.table(max(sizes)),
            queries.pairs(M),
            scales,
            queries.weight,
            share,
            Losses(loss, lse, None),
            statistics,
            QueryGradients(query, scale),
            PLAIN,
            layers.tiling(over_keys),
            **over_keys.launch(),
        )
        if statistics.rows is not None:
            clean = layers._replace(query=statistics.rows, query_strides=sizes)
            queries_pass[(triton.cdiv(M, over_queries.BLOCK_OWN), L)](
                clean.features,
                clean.table(max(sizes)),
                queries.pairs(M),
                scales,
                share,
                statistics,
                key,
                clean.tiling(over_queries),
                **over_queries.launch(),
            )
    by_layer = (_unpacked(rows, count, sizes) for rows, count in ((query, N), (key, M)))
    by_number = [None] * L if scale is None else scale.sum(1).unbind()
    return loss, lse, [Found(*each) for each in zip(*by_layer, by_number, strict=True)]


def _new_statistics(layers: Layers, queries: Queries) -> Statistics:
    N, L, stretch = layers.N, len(layers.sizes), STRETCH.value
    integers = {"dtype": torch.int32, "device": queries.labels.device}
    return Statistics(
        torch.empty(N, **integers),
        layers.query.new_empty(N * sum(layers.sizes)),
        *queries.weight.new_empty(3, L, N),
        torch.full((2, triton.cdiv(layers.M, stretch)), triton.cdiv(N, stretch), **integers),
    )


def _unpacked(rows: Tensor | None, count: int, sizes: tuple[int, ...]) -> list[Tensor | None]:
    if rows is None:
        return [None] * len(sizes)
    parts = rows.split([count * D for D in sizes])
    return [part.view(count, D) for part, D in zip(parts, sizes, strict=True)]


ABSENT = ("pairs.key_labels", "pairs.excluded", "scales.bias")
LOSSES = ("losses.positives",)
STATISTICS = tuple(f"statistics.{field}" for field in Statistics._fields)
# The pass over keys, by what is wanted: its tiles, and what a launch for that leaves out.
OVER_KEYS = {
    "loss": ("loss", (*STATISTICS, "gradients.rows", "gradients.scale", "share_ptr")),
    "key": ("loss", ("gradients.rows", "gradients.scale")),
    "query": ("rows", (*STATISTICS, "gradients.scale")),
    "query and key": ("rows", ("gradients.scale",)),
    "scale": ("scale", (*STATISTICS, "gradients.rows")),
    "query and scale": ("scale", STATISTICS),
    "key and scale": ("scale", ("gradients.rows",)),
    "all": ("scale", ()),
}


def compilations() -> Iterator[Compilation]:
    """The tiles of every entry: all that a launch may want, and for each GPU what takes most."""
    for (kind, width, least), tiles in TILES.items():
        users = [c for c in CAPABILITIES if entry(kind, width, c) == (kind, width, least)]
        over_keys = [(f"keys for {w}", out) for w, (of, out) in OVER_KEYS.items() if of == kind]
        cases = over_keys or [("queries", ())]
        for name, absent in cases:
            most = name == cases[-1][0]
            constants = {
                **dict.fromkeys((*ABSENT, *LOSSES, *absent) if over_keys else ABSENT),
                **({"form": PLAIN} if over_keys else {}),
                "tiling": tiles.tiling(True, 16, "ieee", False),
                **tiles.launch(),
            }
            for dtype in (torch.bfloat16, torch.float16):
                # Of what takes less, and of the other GPUs, one dtype: they take the same.
                both = most + (dtype == torch.bfloat16)
                capabilities = tuple(c for c in users if both > (c not in EVERY_CASE))
                yield compilation(
                    f"single positive, over {name} D<={width}",
                    keys_pass if over_keys else queries_pass,
                    dtype,
                    ("features.query", "features.key", "statistics.rows"),
                    constants,
                    capabilities,
                )
