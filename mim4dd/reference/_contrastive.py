"""The contrastive losses, unit rows and the bound on mutual information; see docs/math.md."""

import math
from enum import IntEnum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -1  # the label of a query or key that takes no part
_SMALLEST_LENGTH = 1e-12  # shorter rows are divided by this, as in torch.nn.functional.normalize
NO_POSITIVE = -2  # the positive index of a query that only wants its log-sum-exp


class Kind(IntEnum):
    """Of a contrastive loss. Ops take the number: csrc/contrastive.h has the same ones."""

    OUT = 0  # softmax, mean of the positives outside the logarithm
    IN = 1  # inside
    NCE = 2  # a binary critic


class Critic(NamedTuple):
    """Which contrastive loss; one set of options for reference, kernels and ops."""

    kind: Kind = Kind.OUT
    decoupled: bool = False  # positives left out of the softmax's denominator
    hardness: float = 0.0  # α: the logits of negatives are raised by a constant α·q·k
    normalize: bool = False  # rows of both sides are scaled to unit length first


class Reduce(IntEnum):
    """A reduction's number, as ops take it: those of at::Reduction and csrc/contrastive.h."""

    NONE = 0
    MEAN = 1
    SUM = 2


class Contrast(NamedTuple):
    """What every contrastive loss gives per query, each (N,)."""

    loss: Tensor
    lse: Tensor  # log-sum-exp of the logits in the denominator; 0 for NCE
    positive_weight: Tensor  # 1 / |P(i)|; 0 where the query is left out of mean and sum


def contrastive(
    query: Tensor,  # (N, D)
    key: Tensor,  # (M, D)
    labels: Tensor,  # (N,)
    key_labels: Tensor | None,  # (M,); None: labels are indices into key
    excluded: Tensor | None,  # (N, K); indices into key, or IGNORE
    logit_scale: Tensor,  # ()
    bias: Tensor | None = None,  # ()
    critic: Critic = Critic(),  # noqa: B008  immutable
) -> Contrast:
    """The loss of each query against all keys, by the table in docs/math.md.

    s_ij = logit_scale·q_i·k_j. A(i): the keys whose label is not IGNORE and whose index is not
    ``excluded`` of query i; P(i) those of them with the query's label. A query labelled IGNORE, one
    without a positive, and with ``decoupled`` one without a negative are left out: their loss is 0.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(dtype), key.to(dtype)
    if key_labels is None:
        key_labels = torch.arange(key.shape[0], device=query.device)
    query, key = taking_part(query, labels), taking_part(key, key_labels)
    if critic.normalize:
        query, key = unit_rows(query)[0], unit_rows(key)[0]
    valid = (key_labels != IGNORE).expand(query.shape[0], -1)
    if excluded is not None:
        valid = valid & ~_among(excluded, key.shape[0])
    positive = valid & (labels[:, None] == key_labels)
    negative = valid & ~positive

    with torch.autocast(query.device.type, enabled=False):  # it would multiply in half precision
        similarity = query @ key.T
    # No temperature gives such a scale, and its loss would be a finite number that means nothing.
    sound = (logit_scale > 0) & logit_scale.isfinite()
    logits = logit_scale.where(sound, math.nan) * similarity
    # exp(-inf) = 0 would hide an infinite key behind a finite loss.
    logits = logits.masked_fill(~logits.isfinite(), math.nan)
    # Constant: it moves the weights of the negatives, as if they occurred more often.
    logits = logits + (critic.hardness * similarity.detach()).where(negative, 0)
    if critic.kind == Kind.NCE:
        loss, lse, counted = _nce(logits, positive, negative, bias)
    else:
        loss, lse, counted = _softmax(logits, positive, negative, critic)

    ignored = labels == IGNORE
    counted = counted & ~ignored
    num_positives = positive.sum(1).clamp(min=1).to(dtype)
    return Contrast(
        # lse * 0 rather than 0, so that a NaN survives in a row that has no positive.
        loss.where(counted, logits.where(valid, 0).sum(1) * 0).masked_fill(ignored, 0),
        lse.masked_fill(ignored, 0),
        (1 / num_positives).where(counted, 0),
    )


def _among(index: Tensor, num_keys: int) -> Tensor:
    """Where a row of ``index`` (N, K) names a key, (N, num_keys)."""
    # IGNORE has a column of its own, which is dropped.
    named = torch.zeros(len(index), num_keys + 1, dtype=torch.bool, device=index.device)
    return named.scatter(1, index.where(index != IGNORE, num_keys), True)[:, :num_keys]


def taking_part(rows: Tensor, labels: Tensor | None) -> Tensor:
    """Rows (N, D) with 0 where they are ignored: there may be anything, NaN too."""
    return rows if labels is None else rows.where((labels != IGNORE)[:, None], 0)


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (…, D) scaled to unit length, float32 or wider, and their length (…, 1).

    As :func:`torch.nn.functional.normalize`, but of rows of any finite size: there the square of a
    large element is infinite, and the row becomes 0.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    # A power of two, so that nothing is rounded; a constant, since it leaves the result alone.
    finfo = torch.finfo(rows.dtype)
    largest = rows.detach().abs().amax(-1, keepdim=True).clamp(min=finfo.tiny)
    size = largest.log2().floor().clamp(max=math.log2(finfo.max) - 2).exp2()
    length = _length(rows / size) * size
    return rows / length.clamp(min=_SMALLEST_LENGTH), length


def _length(rows: Tensor) -> Tensor:
    """Of rows (…, D), as (…, 1); its derivatives are 0 at a row of zeros."""
    square = rows.square().sum(-1, keepdim=True)
    return square.where(square > 0, 1).sqrt().where(square > 0, 0)


def unit_rows_bwd(of_unit: Tensor, unit: Tensor, length: Tensor) -> Tensor:
    """The gradient of rows from that of :func:`unit_rows`."""
    along = (of_unit * unit).sum(-1, keepdim=True).where(length > _SMALLEST_LENGTH, 0)
    return (of_unit - unit * along) / length.clamp(min=_SMALLEST_LENGTH)


def log_sum_exp(logits: Tensor, among: Tensor) -> Tensor:
    """Over the ``among`` of each row, (N,); −inf, with gradient 0, where there is none."""
    some = among.any(1)
    # An empty row keeps all its logits: the gradient of a logsumexp over nothing is NaN.
    lse = logits.masked_fill(~among & some[:, None], -math.inf).logsumexp(1)
    return lse.where(some, -math.inf)


def _softmax(
    logits: Tensor, positive: Tensor, negative: Tensor, critic: Critic
) -> tuple[Tensor, Tensor, Tensor]:
    """lse over the denominator minus what the positives give; that lse; which rows count."""
    num_positives = positive.sum(1)
    counted = num_positives > 0
    lse = log_sum_exp(logits, negative if critic.decoupled else positive | negative)
    if critic.decoupled:
        counted = counted & negative.any(1)
    divisor = num_positives.clamp(min=1).to(logits.dtype)
    if critic.kind == Kind.OUT:
        attraction = logits.where(positive, 0).sum(1) / divisor
    else:
        attraction = log_sum_exp(logits, positive).where(counted, 0) - divisor.log()
    return lse.where(counted, 0) - attraction, lse, counted


def _nce(
    logits: Tensor, positive: Tensor, negative: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """−Σ_P log h − Σ_{A∖P} log(1 − h), h = σ(s + bias); zeros; which rows count.

    Without a ``bias`` it is −log(N_i / |A(i)|), with N_i negatives, at least 1.
    """
    if bias is None:
        num_negatives = negative.sum(1, keepdim=True).clamp(min=1).to(logits.dtype)
        num_keys = (positive | negative).sum(1, keepdim=True).clamp(min=1)
        bias = -(num_negatives / num_keys).log()
    # Not softplus, which PyTorch replaces by its asymptote from 20 on.
    terms = -F.logsigmoid((logits + bias).where(positive, -(logits + bias)))
    loss = terms.where(positive | negative, 0).sum(1)
    return loss, torch.zeros_like(loss), positive.any(1)


def count_queries(positive_weight: Tensor) -> Tensor:
    """How many queries have a positive: what a mean is divided by."""
    return (positive_weight > 0).sum(dtype=positive_weight.dtype)


def reduce_queries(loss: Tensor, count: Tensor, how: Reduce) -> Tensor:
    """Reduce over the last axis, where the loss of a query without a positive is 0."""
    total = loss.sum(-1)
    return total / count if how == Reduce.MEAN else total


def mi_lower_bound(loss: Tensor, labels: Tensor, key_labels: Tensor) -> Tensor:
    """log M − InfoNCE, in nats: the mutual information that the losses (…, N) certify.

    Each class counts by its share of the keys, not of the queries: then a query is one drawn for a
    random key, whose M − 1 others are marginal negatives (docs/math.md, "The bound"). Keys of
    classes without a query are not counted in M. So it never passes the entropy of the shares, at
    most log C.
    """
    taking_part = labels != IGNORE
    per_class = taking_part * count_each(labels, key_labels) / count_each(labels, labels)  # (N,)
    num_keys = (torch.isin(key_labels, labels) & (key_labels != IGNORE)).sum()
    return num_keys.to(loss.dtype).log() - (per_class * loss).sum(-1) / per_class.sum()


def count_each(values: Tensor, among: Tensor) -> Tensor:
    """How often each value occurs in ``among``, in O(N + M) memory."""
    ordered = among.sort().values
    first = torch.searchsorted(ordered, values.contiguous())
    return torch.searchsorted(ordered, values.contiguous(), right=True) - first
