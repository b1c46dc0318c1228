"""What a tile of logits contributes to losses and gradients: the same in every kernel.

Logits are in base 2, because the hardware exponentiates in base 2. Values that belong to queries or
keys come in the shape that broadcasts over the tile, so that either side may own the rows.
docs/math.md derives the formulas.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
IGNORE = tl.constexpr(-1)


@triton.jit
def lowest(dtype: tl.constexpr):
    """Where a running maximum starts: finite, so that exp2(-inf - maximum) is 0 and not NaN."""
    return -1.7976931348623157e308 if dtype == tl.float64 else -3.4028234663852886e38


@triton.jit
def load_scales(scale_ptr, raised_ptr):
    """Scales of positives and of negatives, in base 2; NaN where no temperature gives them."""
    scale = tl.load(scale_ptr)
    sound = (scale > 0) & (scale < float("inf"))
    raised = tl.where(sound, tl.load(raised_ptr), float("nan"))
    return tl.where(sound, scale, float("nan")) * LOG2_E, raised * LOG2_E


@triton.jit
def load_key_labels(key_labels_ptr, offs, mask, HAS_KEY_LABELS: tl.constexpr):
    """Labels of keys, and which of the keys take part."""
    if HAS_KEY_LABELS:
        labels = tl.load(key_labels_ptr + offs, mask=mask, other=IGNORE)
        mask = labels != IGNORE
    else:
        labels = offs
    return labels, mask


@triton.jit
def pair(labels, offs_n, key_labels, offs_m, mask_m, EXCLUDE_SELF: tl.constexpr):
    """Which pairs of a tile take part, and which of those are positive."""
    valid = mask_m
    if EXCLUDE_SELF:
        valid = valid & (offs_n != offs_m)
    return valid, valid & (labels == key_labels)


@triton.jit
def logits_of(similarity, positive, scale, raised, HARD: tl.constexpr):
    """Logits in base 2; NaN where not finite, for exp2(-inf) = 0 would hide an infinite key."""
    logits = similarity * (tl.where(positive, scale, raised) if HARD else scale)
    return tl.where(tl.abs(logits) < float("inf"), logits, float("nan"))


@triton.jit
def add_exponentials(logits, maximum, total):
    """One step of the online softmax along axis 1."""
    new_maximum = tl.maximum(maximum, tl.max(logits, axis=1))
    total *= tl.exp2(maximum - new_maximum)
    return new_maximum, total + tl.sum(tl.exp2(logits - new_maximum[:, None]), axis=1)


@triton.jit
def add_tile(
    logits,
    bias,
    valid,
    positive,
    maximum,
    total,
    positive_maximum,
    positive_total,
    KIND: tl.constexpr,
    DECOUPLED: tl.constexpr,
):
    """Add a tile to what the loss of its rows is made of; see :func:`loss_of`."""
    if KIND == "nce":
        signed = tl.where(positive, -(logits + bias), logits + bias)
        small = tl.exp2(-tl.abs(signed))
        # log2(1 + small), with what 1 + small rounds away: many keys have a tiny share.
        rounded = 1 + small
        softplus = tl.log2(rounded) + (small - (rounded - 1)) * LOG2_E + tl.maximum(signed, 0.0)
        total += tl.sum(tl.where(valid, softplus, 0.0), axis=1)
    else:
        inside = (valid & ~positive) if DECOUPLED else valid
        maximum, total = add_exponentials(tl.where(inside, logits, float("-inf")), maximum, total)
        if KIND == "in":
            positive_maximum, positive_total = add_exponentials(
                tl.where(positive, logits, float("-inf")), positive_maximum, positive_total
            )
        else:
            positive_total += tl.sum(tl.where(positive, logits, 0.0), axis=1)
    return maximum, total, positive_maximum, positive_total


@triton.jit
def log2_sum(maximum, total):
    """Log-sum-exp in base 2; -inf of nothing."""
    return tl.where(total == 0, float("-inf"), maximum + tl.log2(total))


@triton.jit
def loss_of(maximum, total, positive_maximum, positive_total, weight, KIND: tl.constexpr):
    """Loss and log-sum-exp in nats, and the positives' log-sum-exp in base 2."""
    positive_lse = positive_total
    if KIND == "nce":
        loss = total
        lse = total * 0
    else:
        lse = log2_sum(maximum, total)
        if KIND == "in":
            positive_lse = log2_sum(positive_maximum, positive_total)
            loss = lse - positive_lse - tl.log2(weight)
        else:
            loss = lse - positive_total * weight
    # Not plain 0, so that a NaN survives in a row that is left out.
    loss = tl.where(weight > 0, loss, (total + positive_total) * 0)
    return loss * LN_2, lse * LN_2, positive_lse


@triton.jit
def load_gradient_side(
    labels_ptr,
    weight_ptr,
    lse_ptr,
    positive_lse_ptr,
    bias_ptr,
    grad_loss_ptr,
    grad_lse_ptr,
    offs_n,
    mask_n,
    stride_bias,
    stride_loss,
    stride_lse,
    KIND: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
):
    """What :func:`weights_of` takes of each query, and its labels.

    Of a query that takes no part, gain and pull are 0. ``lse`` is in base 2, where it is rounded
    once more; at 1e4 that would cost p its third digit, so ``correction`` makes p good again.
    """
    labels = tl.load(labels_ptr + offs_n, mask=mask_n, other=IGNORE)
    mask = labels != IGNORE
    weight = tl.load(weight_ptr + offs_n, mask=mask, other=0.0)
    pull = tl.load(grad_loss_ptr + offs_n * stride_loss, mask=mask & (weight > 0), other=0.0)
    gain = pull
    positive_lse = weight
    bias = weight
    lse = weight
    correction = weight * 0 + 1
    if KIND == "nce":
        bias = tl.load(bias_ptr + offs_n * stride_bias, mask=mask, other=0.0) * LOG2_E
    else:
        if HAS_GRAD_LSE:
            gain += tl.load(grad_lse_ptr + offs_n * stride_lse, mask=mask, other=0.0)
        exact = tl.load(lse_ptr + offs_n, mask=mask, other=0.0).to(tl.float64) * LOG2_E
        lse = exact.to(weight.dtype)
        lost = tl.where(tl.abs(exact) < float("inf"), lse.to(tl.float64) - exact, 0.0)
        correction = tl.exp2(lost.to(weight.dtype))
        if KIND == "in":
            positive_lse = tl.load(positive_lse_ptr + offs_n, mask=mask, other=0.0)
        else:
            pull *= weight
    return labels, gain, correction, pull, lse, positive_lse, bias


@triton.jit
def weights_of(
    logits,
    valid,
    positive,
    gain,
    pull,
    lse,
    positive_lse,
    bias,
    KIND: tl.constexpr,
    DECOUPLED: tl.constexpr,
):
    """Derivative of the losses by each logit: gain·p - pull·y, in full precision."""
    if KIND == "nce":
        signed = tl.where(positive, -(logits + bias), logits + bias)
        small = tl.exp2(-tl.abs(signed))
        weights = gain * tl.where(signed < 0, small, 1.0) / (1 + small)
        weights = tl.where(positive, -weights, weights)
    else:
        weights = gain * tl.exp2(logits - lse)
        if KIND == "in":
            pull = pull * tl.exp2(logits - positive_lse)
        if DECOUPLED:  # no p of a positive, but its NaN
            weights = tl.where(positive, logits * 0 - pull, weights)
        else:
            weights = tl.where(positive, weights - pull, weights)
    return tl.where(valid, weights, 0.0)
