"""The contrastive losses of queries whose keys come in parts, from what each part gives alone."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mim4dd.reference._contrastive import IGNORE, Contrast, Critic, Kind


class OfPart(NamedTuple):
    """How the losses against all keys depend on those against a part, (L, N) each."""

    on_loss: Tensor  # dℓ/dℓ_t
    on_lse: Tensor  # dℓ/dlse_t
    share: Tensor  # dlse/dlse_t


def contrastive_of_two(first: Contrast, second: Contrast, critic: Critic) -> Contrast:
    r"""The losses against two parts of the keys together; loss and lse are (L, N).

    A part is what :func:`contrastive` gives for its keys. With |P_t| positives in part t and
    :math:`a_t = |P_t| / (|P_1| + |P_2|)`, the mean outside the logarithm is :math:`\ell = \sum_t
    a_t (\ell_t + \mathrm{lse} - \mathrm{lse}_t)`. Inside, with :math:`c_t = \mathrm{lse}_t - \ell_t
    + \log |P_t|` the log-sum-exp of the positives alone, :math:`\ell = \mathrm{lse} -
    \mathrm{lse}(c_1, c_2) + \log (|P_1| + |P_2|)`. Both are sums of what is not negative, so that
    at p = 1 the loss has as many digits as those of the parts.

    With ``decoupled`` a part may have positives and no denominator: losses of parts are without
    their :math:`\mathrm{lse}_t`, which then is not subtracted either. The binary critic's losses
    add up, and a part gives every query one, whether the query has a positive there or not.
    """
    parts = first, second
    counts = [_count(part) for part in parts]
    total = counts[0] + counts[1]
    weight = torch.where(total > 0, 1 / total, 0)
    if critic.kind == Kind.NCE:
        return Contrast(first.loss + second.loss, first.lse, weight)
    lse = torch.logaddexp(first.lse, second.lse)
    form = _inside if critic.kind == Kind.IN else _outside
    loss = form(parts, counts, lse, critic.decoupled)
    return Contrast(torch.where(total > 0, loss, 0), lse, weight)


def contrastive_of_parts(together: Contrast, labels: Tensor, critic: Critic) -> Contrast:
    """What :func:`contrastive` gives for all keys, from all parts together."""
    loss, lse, weight = together
    counted = (weight > 0).expand_as(lse)
    if critic.decoupled:
        loss, counted = lse + loss, counted & (lse != -torch.inf)
    ignored = labels == IGNORE
    # A NaN survives in a row that has no positive.
    rest = loss if critic.kind == Kind.NCE else lse
    none = torch.where(rest.isnan(), rest, 0)
    return Contrast(
        torch.where(counted, loss, none).masked_fill(ignored, 0),
        lse.masked_fill(ignored, 0),
        weight.where(counted[0], 0),
    )


def contrastive_of_part(part: Contrast, of_all: Contrast, critic: Critic) -> OfPart:
    """How ``of_all``, the losses against all keys, depends on those against a part.

    With the mean outside, the loss of a part counts only where it has all positives of a query.
    """
    zero = torch.zeros_like(of_all.lse)
    counted = of_all.positive_weight > 0
    if critic.kind == Kind.NCE:
        return OfPart(zero.masked_fill(counted, 1), zero, zero)
    share = _exp_of_difference(part.lse, of_all.lse)
    count, total = _count(part), _count(of_all)
    some = (count > 0) & counted
    # How far the log-sum-exp is above that of the positives, here and in all.
    above = part.loss - count.clamp(min=1).log()
    inside = of_all.loss - total.clamp(min=1).log()
    if critic.kind == Kind.IN:
        own = -above if critic.decoupled else part.lse - above
        on_loss = torch.where(some, (own - (of_all.lse - inside)).exp(), 0)
        on_lse = on_loss * (above - inside).expm1()
    else:
        on_loss = torch.where(some, count / total.clamp(min=1), 0).expand_as(zero)
        # With all positives here, the difference has the digits of the loss, also at p = 1.
        on_lse = torch.where(on_loss == 1, (part.loss - of_all.loss).expm1(), share - on_loss)
    if critic.decoupled:
        on_lse = share - on_loss
    on_lse = torch.where(some, on_lse, share)
    return OfPart(on_loss, torch.where(counted, on_lse, 0), share)


def _count(part: Contrast) -> Tensor:
    """|P|, (N,)."""
    weight = part.positive_weight
    return torch.where(weight > 0, 1 / weight, 0).round()


def _outside(
    parts: tuple[Contrast, Contrast], counts: list[Tensor], lse: Tensor, decoupled: bool
) -> Tensor:
    """lse − the mean over the positives; decoupled without the lse."""
    total = (counts[0] + counts[1]).clamp(min=1)
    loss = torch.zeros_like(lse)
    for part, other, count in zip(parts, parts[::-1], counts, strict=True):
        # lse − lse_t. Not softplus, which PyTorch replaces by its asymptote from 20 on.
        above = torch.zeros_like(lse) if decoupled else -F.logsigmoid(part.lse - other.lse)
        loss += torch.where(count > 0, count / total * (part.loss + above), 0)
    return loss


def _inside(
    parts: tuple[Contrast, Contrast], counts: list[Tensor], lse: Tensor, decoupled: bool
) -> Tensor:
    """lse − lse of the positives + log of their number; decoupled without the lse."""
    log_total = (counts[0] + counts[1]).clamp(min=1).log()
    # lse_t − c_t; not negative, but where decoupled
    above = [p.loss - count.clamp(min=1).log() for p, count in zip(parts, counts, strict=True)]
    own = [
        torch.where(count > 0, -each if decoupled else part.lse - each, -torch.inf)
        for part, each, count in zip(parts, above, counts, strict=True)
    ]
    of_positives = torch.logaddexp(*own)
    if decoupled:
        return log_total - of_positives
    # Near p = 1 the difference has no digits, but this sum does.
    excess = torch.zeros_like(lse)
    for part, each, one, count in zip(parts, above, own, counts, strict=True):
        share = _exp_of_difference(one, of_positives)
        excess += torch.where(count > 0, share * each.expm1(), (part.lse - of_positives).exp())
    difference = lse - of_positives
    return torch.where(difference > 1, difference, excess.log1p()) + log_total


def _exp_of_difference(of_part: Tensor, of_all: Tensor) -> Tensor:
    """exp(of_part − of_all), with 0 where nothing is summed at all."""
    return torch.where(of_part == -torch.inf, 0, (of_part - of_all).exp())
