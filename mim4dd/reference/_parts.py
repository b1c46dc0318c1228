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


def contrastive_of_parts(
    part: Contrast,  # of each part: loss and lse (T, L, N), positive_weight (T, N)
    labels: Tensor,  # (N,)
    critic: Critic,
) -> Contrast:
    r"""The losses of :func:`contrastive` over all keys from its results for T parts of them.

    With |P_t| positives in part t, :math:`a_t = |P_t| / \sum_s |P_s|`, the mean outside the
    logarithm is :math:`\ell = \sum_t a_t (\ell_t + \mathrm{lse} - \mathrm{lse}_t)`. Inside, with
    :math:`c_t = \mathrm{lse}_t - \ell_t + \log |P_t|` the log-sum-exp of the positives alone,
    :math:`\ell = \mathrm{lse} - \mathrm{lse}(c_1, …) + \log \sum_t |P_t|`. Both are sums of what is
    not negative, so that at p = 1 the loss has as many digits as those of the parts.

    With ``decoupled`` a part may have positives and no denominator: its loss is given without
    :math:`\mathrm{lse}_t`, which then is not subtracted either.

    The binary critic's is the sum of its parts, where a part gives every query a loss, whether the
    query has a positive there or not.
    """
    loss, lse, positive_weight = part
    count = _counts(positive_weight)  # (T, N)
    total = count.sum(0)
    counted = (total > 0).expand_as(lse[0])
    if critic.kind == Kind.NCE:
        combined, of_all = loss.sum(0), torch.zeros_like(lse[0])
        rest = combined
    else:
        of_all = rest = lse.logsumexp(0)
        form = _inside if critic.kind == Kind.IN else _outside
        combined = form(loss, lse, of_all, count[:, None], critic.decoupled)
        if critic.decoupled:
            counted = counted & (of_all != -torch.inf)
    ignored = labels == IGNORE
    # A NaN survives in a row that has no positive.
    none = torch.where(rest.isnan(), rest, 0)
    return Contrast(
        torch.where(counted, combined, none).masked_fill(ignored, 0),
        of_all.masked_fill(ignored, 0),
        torch.where(counted[0], 1 / total, 0),
    )


def contrastive_of_part(part: Contrast, of_all: Contrast, critic: Critic) -> OfPart:
    """The derivatives of :func:`contrastive_of_parts`, ``of_all``, by the results of one part."""
    zero = torch.zeros_like(part.lse)
    counted = of_all.positive_weight > 0
    if critic.kind == Kind.NCE:
        return OfPart(zero.masked_fill(counted, 1), zero, zero)
    share = _exp_of_difference(part.lse, of_all.lse)
    count, total = _counts(part.positive_weight), _counts(of_all.positive_weight)
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


def _counts(positive_weight: Tensor) -> Tensor:
    return torch.where(positive_weight > 0, 1 / positive_weight, 0).round()


def _outside(loss: Tensor, lse: Tensor, of_all: Tensor, count: Tensor, decoupled: bool) -> Tensor:
    """lse − the mean over the positives."""
    weight = (count / count.sum(0).clamp(min=1)).expand_as(lse)
    if decoupled:
        return of_all + (weight * loss).sum(0)
    # lse − lse_t. Not softplus, which PyTorch replaces by its asymptote from 20 on.
    above = torch.where(weight > 0, -F.logsigmoid(lse - _of_the_others(lse)), 0)
    return (weight * (loss + above)).sum(0)


def _inside(loss: Tensor, lse: Tensor, of_all: Tensor, count: Tensor, decoupled: bool) -> Tensor:
    """lse − lse of the positives + log of their number."""
    some = count > 0
    above = loss - count.clamp(min=1).log()  # lse_t − c_t; not negative, but where decoupled
    own = -above if decoupled else lse - above
    of_positives = torch.where(some, own, -torch.inf)
    of_all_positives = of_positives.logsumexp(0)
    inside = of_all - of_all_positives
    if not decoupled:
        # Near p = 1 the difference has no digits, but this sum does.
        shares = _exp_of_difference(of_positives, of_all_positives)
        excess = torch.where(some, shares * above.expm1(), (lse - of_all_positives).exp()).sum(0)
        inside = torch.where(inside > 1, inside, excess.log1p())
    return inside + count.sum(0).clamp(min=1).log()


def _exp_of_difference(of_part: Tensor, of_all: Tensor) -> Tensor:
    """exp(of_part − of_all), with 0 where nothing is summed at all."""
    return torch.where(of_part == -torch.inf, 0, (of_part - of_all).exp())


def _of_the_others(lse: Tensor) -> Tensor:
    """The log-sum-exp of all parts but the one, by part. (T, L, N)"""
    none = torch.full_like(lse[:1], -torch.inf)
    before = torch.cat([none, lse[:-1]]).logcumsumexp(0)
    after = torch.cat([none, lse.flip(0)[:-1]]).logcumsumexp(0).flip(0)
    return torch.logaddexp(before, after)
