"""What a tile of logits contributes to losses and gradients: the same in every kernel.

Values that belong to queries or keys come in the shape that broadcasts over the tile, so that
either side may own the rows. docs/math.md derives the formulas.

Logits are in base e, although the hardware exponentiates in base 2 and the change costs a multiply
for each: where one key wins, its logit is the log-sum-exp to the last bit and p is 1. In base 2 the
saved log-sum-exp is rounded once more; at 1e4 that moves p in its fourth digit.
"""

from typing import NamedTuple

import triton
import triton.language as tl

IGNORE = tl.constexpr(-1)


class QueryTile(NamedTuple):
    """Some of the queries."""

    offs: tl.tensor
    labels: tl.tensor
    excluded: tl.tensor  # first key that each leaves out


class KeyTile(NamedTuple):
    """Some of the keys."""

    offs: tl.tensor
    labels: tl.tensor
    mask: tl.tensor  # whether they take part


class WeightTerms(NamedTuple):
    """Of some queries: what :func:`weights_of` makes weights of, beside the logits."""

    on_loss: tl.tensor  # upstream gradients
    on_lse: tl.tensor
    pull: tl.tensor  # see pull_of
    lse: tl.tensor
    positive_lse: tl.tensor
    bias: tl.tensor


@triton.jit
def lowest(dtype: tl.constexpr):
    """Where a running maximum starts: finite, so that exp(-inf - maximum) is 0 and not NaN."""
    return -1.7976931348623157e308 if dtype == tl.float64 else -3.4028234663852886e38


@triton.jit
def load_scales(scale_ptr, raised_ptr):
    """Scales of positives and of negatives; NaN where no temperature gives them."""
    scale = tl.load(scale_ptr)
    sound = (scale > 0) & (scale < float("inf"))
    raised = tl.where(sound, tl.load(raised_ptr), float("nan"))
    return tl.where(sound, scale, float("nan")), raised


@triton.jit
def load_key_labels(labels_ptr, offs, mask):
    """Labels of keys, and which of the keys take part."""
    if labels_ptr is not None:
        labels = tl.load(labels_ptr + offs, mask=mask, other=IGNORE)
        mask = labels != IGNORE
    else:
        labels = offs
    return labels, mask


@triton.jit
def load_keys(pairs, offs_m):
    """Keys ``offs_m``."""
    labels, mask = load_key_labels(pairs.key_labels, offs_m, offs_m < pairs.num_keys)
    return KeyTile(offs_m, labels, mask)


@triton.jit
def load_excluded(pairs, offs_n):
    """The first key that each query leaves out, for :func:`pair`; before a loop over keys."""
    return tl.load(pairs.excluded + offs_n) if pairs.excluded is not None else offs_n


@triton.jit
def along(values, BY_ROW: tl.constexpr):
    """One value for each row of a tile, or for each column."""
    return values[:, None] if BY_ROW else values[None, :]


@triton.jit
def queries_along(queries, BY_ROW: tl.constexpr):
    """One query for each row of a tile, or for each column."""
    return QueryTile(
        along(queries.offs, BY_ROW), along(queries.labels, BY_ROW), along(queries.excluded, BY_ROW)
    )


@triton.jit
def keys_along(keys, BY_ROW: tl.constexpr):
    """One key for each row of a tile, or for each column."""
    return KeyTile(along(keys.offs, BY_ROW), along(keys.labels, BY_ROW), along(keys.mask, BY_ROW))


@triton.jit
def terms_along(terms, BY_ROW: tl.constexpr):
    """The terms of one query for each row of a tile, or for each column."""
    return WeightTerms(
        along(terms.on_loss, BY_ROW),
        along(terms.on_lse, BY_ROW),
        along(terms.pull, BY_ROW),
        along(terms.lse, BY_ROW),
        along(terms.positive_lse, BY_ROW),
        along(terms.bias, BY_ROW),
    )


@triton.jit
def pair(queries, keys, pairs):
    """Which pairs of a tile take part, and which of those are positive."""
    valid = keys.mask
    if pairs.excluded is not None:
        valid = valid & (keys.offs != queries.excluded)
        excluded_ptr = pairs.excluded
        for _ in range(1, pairs.num_excluded):
            excluded_ptr += pairs.stride_excluded
            valid = valid & (keys.offs != tl.load(excluded_ptr + queries.offs))
    return valid, valid & (queries.labels == keys.labels)


@triton.jit
def finite_or_nan(logits):
    """NaN where not finite, for exp(-inf) = 0 would hide an infinite key."""
    return tl.where(tl.abs(logits) < float("inf"), logits, float("nan"))


@triton.jit
def logits_of(similarity, positive, scale, raised, form: tl.constexpr):
    """Logits, each by the scale of its kind of pair."""
    return finite_or_nan(similarity * (tl.where(positive, scale, raised) if form.HARD else scale))


@triton.jit
def log_of_one_plus(x):
    """log(1 + x) of x ≥ 0, with what 1 + x rounds away."""
    rounded = 1 + x
    return tl.log(rounded) + (x - (rounded - 1))


@triton.jit
def add_exponentials(logits, maximum, total):
    """One step of the online softmax along axis 1."""
    new_maximum = tl.maximum(maximum, tl.max(logits, axis=1))
    total *= tl.exp(maximum - new_maximum)
    return new_maximum, total + tl.sum(tl.exp(logits - new_maximum[:, None]), axis=1)


@triton.jit
def merge(maximum, total, part_maximum, part_total):
    """The online softmax of two parts together."""
    new_maximum = tl.maximum(maximum, part_maximum)
    total *= tl.exp(maximum - new_maximum)
    return new_maximum, total + part_total * tl.exp(part_maximum - new_maximum)


@triton.jit
def no_sums(BLOCK: tl.constexpr, form: tl.constexpr, dtype: tl.constexpr):
    """What the losses of BLOCK rows are made of, of no key yet: four numbers of each.

    The largest logit and the sum of exp(logit - largest) over the negatives; then of the positives.
    "in" has a largest logit of their own and their exponentials below it. "out" has the sum of
    their logits and their exponentials below the largest of all. "nce" takes the second number.
    """
    maximum = tl.full((BLOCK,), lowest(dtype), dtype)
    zero = tl.zeros((BLOCK,), dtype)
    return maximum, zero, maximum if form.KIND == "in" else zero, zero


@triton.jit
def add_tile(sums, logits, bias, valid, positive, form: tl.constexpr):
    """Add a tile to the sums of its rows."""
    maximum, negative, positive_logits, positive_total = sums
    if form.KIND == "nce":
        signed = tl.where(positive, -(logits + bias), logits + bias)
        small = tl.exp(-tl.abs(signed))
        # To the last digit, for many keys have a tiny share.
        softplus = log_of_one_plus(small) + tl.maximum(signed, 0.0)
        negative += tl.sum(tl.where(valid, softplus, 0.0), axis=1)
    elif form.KIND == "in":
        others = tl.where(valid & ~positive, logits, float("-inf"))
        maximum, negative = add_exponentials(others, maximum, negative)
        own = tl.where(positive, logits, float("-inf"))
        positive_logits, positive_total = add_exponentials(own, positive_logits, positive_total)
    else:
        inside = (valid & ~positive) if form.DECOUPLED else valid
        logits_inside = tl.where(inside, logits, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(logits_inside, axis=1))
        exps = tl.exp(logits_inside - new_maximum[:, None])
        before = tl.exp(maximum - new_maximum)
        maximum = new_maximum
        negative = negative * before + tl.sum(tl.where(positive, 0.0, exps), axis=1)
        if not form.DECOUPLED:
            exps = tl.where(positive, exps, 0.0)
            positive_total = positive_total * before + tl.sum(exps, axis=1)
        positive_logits += tl.sum(tl.where(positive, logits, 0.0), axis=1)
    return maximum, negative, positive_logits, positive_total


@triton.jit
def merge_sums(sums, part, form: tl.constexpr):
    """The sums of two parts of the keys together."""
    maximum, negative, positive_logits, positive_total = sums
    part_maximum, part_negative, part_logits, part_total = part
    new_maximum, negative = merge(maximum, negative, part_maximum, part_negative)
    if form.KIND == "in":
        positive_logits, positive_total = merge(
            positive_logits, positive_total, part_logits, part_total
        )
    else:
        _, positive_total = merge(maximum, positive_total, part_maximum, part_total)
        positive_logits += part_logits
    return new_maximum, negative, positive_logits, positive_total


@triton.jit
def log_sum(maximum, total):
    """Log-sum-exp; -inf of nothing."""
    return tl.where(total == 0, float("-inf"), maximum + tl.log(total))


@triton.jit
def keeps_rest(weight, form: tl.constexpr):
    """Of which queries p - y is formed from the negatives: there all positives are as one key."""
    if form.KIND == "in":
        apart = weight > 0
    elif form.KIND == "out" and not form.DECOUPLED:
        apart = weight == 1
    else:
        apart = weight < 0
    return apart


@triton.jit
def loss_of(sums, weight, form: tl.constexpr):
    """Loss and log-sum-exp; that of the positives ("in"), and the negatives' share of the sum."""
    maximum, negative, positive_logits, positive = sums
    # Not plain 0, so that a NaN survives in a row that is left out.
    none = (negative + positive + positive_logits) * 0
    shift, own, positive_lse = maximum, positive, none
    if form.KIND == "in":
        # Above all logits where there is no loss, so that y is 0.
        positive_lse = tl.where(weight > 0, log_sum(positive_logits, positive), float("inf"))
        if form.DECOUPLED:
            own = none
        else:
            shift = tl.maximum(maximum, positive_logits)
            negative *= tl.exp(maximum - shift)
            own = positive * tl.exp(positive_logits - shift)
    total = negative + own
    lse = log_sum(shift, total)
    if form.KIND == "nce":
        loss, lse, rest = negative, none, none
    else:
        if form.KIND == "in":
            loss = tl.log(total) - tl.log(positive) + (shift - positive_logits)
        else:
            loss = tl.log(total) + (shift - positive_logits * weight)
        # Near p = 1 the logarithm of the sum has no digits left.
        near = keeps_rest(weight, form) & (own > negative)
        loss = tl.where(near, log_of_one_plus(negative / own), loss)
        if form.KIND == "in":
            loss -= tl.log(weight)
        rest = tl.where(weight > 0, negative / total, 0.0)
    return tl.where(weight > 0, loss, none), lse, positive_lse, rest


@triton.jit
def load_bias(scales, like, offs_n, mask_n, form: tl.constexpr):
    """Of "nce"; elsewhere what is ``like`` it, and not used."""
    if form.KIND == "nce":
        bias = tl.load(scales.bias + offs_n * scales.stride_bias, mask=mask_n, other=0.0)
    else:
        bias = like
    return bias


@triton.jit
def load_upstream(scales, saved, upstream, layer, offs_n, mask_n, N, form: tl.constexpr):
    """Of each query: upstream gradients of loss and lse, weight, lse and bias.

    Of a query that takes no part, as ``mask_n`` tells, the gradients are 0.
    """
    weight = tl.load(saved.weight + offs_n, mask=mask_n, other=0.0)
    grad_loss = upstream.loss + layer * upstream.layer_loss
    counted = mask_n & (weight > 0)
    on_loss = tl.load(grad_loss + offs_n * upstream.stride_loss, mask=counted, other=0.0)
    on_lse = tl.zeros_like(on_loss)
    lse = weight
    bias = load_bias(scales, weight, offs_n, mask_n, form)
    if form.KIND != "nce":
        if upstream.lse is not None:
            grad_lse = upstream.lse + layer * upstream.layer_lse
            on_lse = tl.load(grad_lse + offs_n * upstream.stride_lse, mask=mask_n, other=0.0)
        lse = tl.load(saved.lse + layer * N + offs_n, mask=mask_n, other=0.0)
    return on_loss, on_lse, weight, lse, bias


@triton.jit
def pull_of(weight, rest, form: tl.constexpr):
    """What multiplies y, for :func:`weights_of`: 1/|P|, or minus the share of the negatives.

    The sign tells where all positives are as one key: there p - y = -rest·y, for near p = 1 the
    difference has no digits left. A flag of its own would take registers in every tile.
    """
    return tl.where(keeps_rest(weight, form), -rest, weight)


@triton.jit
def weights_of(logits, valid, positive, terms, form: tl.constexpr, HAS_GRAD_LSE: tl.constexpr):
    """Derivative of the losses by each logit, W of docs/math.md, in full precision.

    y is 1 here, or the softmax of the positives ("in").
    """
    gain = terms.on_loss + terms.on_lse
    if form.KIND == "nce":
        signed = tl.where(positive, -(logits + terms.bias), logits + terms.bias)
        small = tl.exp(-tl.abs(signed))
        weights = gain * tl.where(signed < 0, small, 1.0) / (1 + small)
        weights = tl.where(positive, -weights, weights)
    else:
        p = tl.exp(logits - terms.lse)
        weights = gain * p
        attraction = terms.on_loss * tl.abs(terms.pull)
        if form.KIND == "in":
            attraction = attraction * tl.exp(logits - terms.positive_lse)
        if form.DECOUPLED:  # no p of a positive, but its NaN
            of_positive = logits * 0 - attraction
        elif HAS_GRAD_LSE:
            of_positive = tl.where(terms.pull <= 0, terms.on_lse, gain) * p - attraction
        else:
            of_positive = weights * tl.where(terms.pull <= 0, 0.0, 1.0) - attraction
        weights = tl.where(positive, of_positive, weights)
    return tl.where(valid, weights, 0.0)
