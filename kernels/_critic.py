"""What a tile of logits contributes to losses and gradients: the same in every kernel.

Values that belong to queries or keys come in the shape that broadcasts over the tile, so that
either side may own the rows. docs/math.md derives the formulas.

Logits are in base e, although the hardware exponentiates in base 2 and the change costs a multiply
for each: where one key wins, its logit is the log-sum-exp to the last bit and p is 1. In base 2 the
saved log-sum-exp is rounded once more; at 1e4 that moves p in its fourth digit.
"""

import triton
import triton.language as tl

IGNORE = tl.constexpr(-1)


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
def load_key_labels(key_labels_ptr, offs, mask, HAS_KEY_LABELS: tl.constexpr):
    """Labels of keys, and which of the keys take part."""
    if HAS_KEY_LABELS:
        labels = tl.load(key_labels_ptr + offs, mask=mask, other=IGNORE)
        mask = labels != IGNORE
    else:
        labels = offs
    return labels, mask


@triton.jit
def load_excluded(excluded_ptr, offs_n, EXCLUDES: tl.constexpr):
    """The first key that each query leaves out, for :func:`pair`; before a loop over keys."""
    return tl.load(excluded_ptr + offs_n) if EXCLUDES else offs_n


@triton.jit
def pair(
    labels,
    offs_n,
    excluded,
    key_labels,
    offs_m,
    mask_m,
    excluded_ptr,  # (K, N), rows apart by stride_excluded and as long as tiles ask for
    stride_excluded,
    num_excluded,
    EXCLUDES: tl.constexpr,
):
    """Which pairs of a tile take part, and which of those are positive."""
    valid = mask_m
    if EXCLUDES:
        valid = mask_m & (offs_m != excluded)
        for _ in range(1, num_excluded):
            excluded_ptr += stride_excluded
            valid = valid & (offs_m != tl.load(excluded_ptr + offs_n))
    return valid, valid & (labels == key_labels)


@triton.jit
def finite_or_nan(logits):
    """NaN where not finite, for exp(-inf) = 0 would hide an infinite key."""
    return tl.where(tl.abs(logits) < float("inf"), logits, float("nan"))


@triton.jit
def logits_of(similarity, positive, scale, raised, HARD: tl.constexpr):
    """Logits, each by the scale of its kind of pair."""
    return finite_or_nan(similarity * (tl.where(positive, scale, raised) if HARD else scale))


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
        small = tl.exp(-tl.abs(signed))
        # To the last digit, for many keys have a tiny share.
        softplus = log_of_one_plus(small) + tl.maximum(signed, 0.0)
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
def log_sum(maximum, total):
    """Log-sum-exp; -inf of nothing."""
    return tl.where(total == 0, float("-inf"), maximum + tl.log(total))


@triton.jit
def loss_of(maximum, total, positive_maximum, positive_total, weight, KIND: tl.constexpr):
    """Loss, log-sum-exp, and the log-sum-exp of the positives ("in")."""
    positive_lse = positive_total
    if KIND == "nce":
        loss = total
        lse = total * 0
    else:
        lse = log_sum(maximum, total)
        if KIND == "in":
            positive_lse = log_sum(positive_maximum, positive_total)
            loss = lse - positive_lse - tl.log(weight)
        else:
            loss = lse - positive_total * weight
    # Not plain 0, so that a NaN survives in a row that is left out.
    loss = tl.where(weight > 0, loss, (total + positive_total) * 0)
    return loss, lse, positive_lse


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
    """What :func:`weights_of` takes of each query: labels, gain, pull, lse, positive lse, bias.

    Of a query that takes no part, gain and pull are 0.
    """
    labels = tl.load(labels_ptr + offs_n, mask=mask_n, other=IGNORE)
    mask = labels != IGNORE
    weight = tl.load(weight_ptr + offs_n, mask=mask, other=0.0)
    pull = tl.load(grad_loss_ptr + offs_n * stride_loss, mask=mask & (weight > 0), other=0.0)
    gain = pull
    positive_lse = weight
    bias = weight
    lse = weight
    if KIND == "nce":
        bias = tl.load(bias_ptr + offs_n * stride_bias, mask=mask, other=0.0)
    else:
        if HAS_GRAD_LSE:
            gain += tl.load(grad_lse_ptr + offs_n * stride_lse, mask=mask, other=0.0)
        lse = tl.load(lse_ptr + offs_n, mask=mask, other=0.0)
        if KIND == "in":
            positive_lse = tl.load(positive_lse_ptr + offs_n, mask=mask, other=0.0)
        else:
            pull *= weight
    return labels, gain, pull, lse, positive_lse, bias


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
        small = tl.exp(-tl.abs(signed))
        weights = gain * tl.where(signed < 0, small, 1.0) / (1 + small)
        weights = tl.where(positive, -weights, weights)
    else:
        weights = gain * tl.exp(logits - lse)
        if KIND == "in":
            pull = pull * tl.exp(logits - positive_lse)
        if DECOUPLED:  # no p of a positive, but its NaN
            weights = tl.where(positive, logits * 0 - pull, weights)
        else:
            weights = tl.where(positive, weights - pull, weights)
    return tl.where(valid, weights, 0.0)
