"""The contrastive losses of queries whose keys come in parts, from what each part gives alone."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mim4dd.reference._contrastive import IGNORE, Contrast, Kind


class OfParts(NamedTuple):
    """Losses against the keys of all parts, and how they depend on each part's own."""

    contrast: Contrast  # loss and lse (L, N), positive_weight (N,)
    on_loss: Tensor  # dℓ/dℓ_t of the part's loss, (T, L, N)
    on_lse: Tensor  # dℓ/dlse_t of its log-sum-exp
    share: Tensor  # dlse/dlse_t


def contrastive_of_parts(
    loss: Tensor,  # (T, L, N)
    lse: Tensor,  # (T, L, N)
    positive_weight: Tensor,  # (T, N)
    labels: Tensor,  # (N,)
    kind: Kind,
) -> OfParts:
    r"""The losses of :func:`contrastive` over all keys from its results for T parts of them.

    With |P_t| positives in part t, :math:`a_t = |P_t| / \sum_s |P_s|`, the mean outside the
    logarithm is :math:`\ell = \sum_t a_t (\ell_t + \mathrm{lse} - \mathrm{lse}_t)`. Inside, with
    :math:`c_t = \mathrm{lse}_t - \ell_t + \log |P_t|` the log-sum-exp of the positives alone,
    :math:`\ell = \mathrm{lse} - \mathrm{lse}(c_1, …) + \log \sum_t |P_t|`. Both are sums of what is
    not negative, so that at p = 1 the loss has as many digits as those of the parts.

    The binary critic's is the sum of its parts, where a part gives every query a loss, whether the
    query has a positive there or not.
    """
    count = torch.where(positive_weight > 0, 1 / positive_weight, 0).round()  # (T, N)
    total = count.sum(0)
    counted = (total > 0).expand_as(lse[0])
    zero = torch.zeros_like(lse)
    if kind == Kind.NCE:
        combined, of_all = loss.sum(0), zero[0]
        on_loss, on_lse, share = torch.ones_like(lse), zero, zero
    else:
        of_all = lse.logsumexp(0)
        share = _exp_of_difference(lse, of_all)
        form = _inside if kind == Kind.IN else _outside
        combined, on_loss, on_lse = form(loss, lse, of_all, share, count[:, None])
    ignored = labels == IGNORE
    # A NaN survives in a row that has no positive.
    rest = combined if kind == Kind.NCE else of_all
    none = torch.where(rest.isnan(), rest, 0)
    return OfParts(
        Contrast(
            torch.where(counted, combined, none).masked_fill(ignored, 0),
            of_all.masked_fill(ignored, 0),
            torch.where(total > 0, 1 / total, 0),
        ),
        torch.where(counted, on_loss, 0),
        torch.where(counted, on_lse, 0),
        share,
    )


def _outside(
    loss: Tensor, lse: Tensor, of_all: Tensor, share: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """lse − the mean over the positives, and its derivatives by part."""
    rest = _of_the_others(lse)
    on_loss = (count / count.sum(0).clamp(min=1)).expand_as(lse)
    # lse − lse_t. Not softplus, which PyTorch replaces by its asymptote from 20 on.
    above = torch.where(on_loss > 0, -F.logsigmoid(lse - rest), 0)
    combined = (on_loss * (loss + above)).sum(0)
    others = _exp_of_difference(rest, of_all)
    on_lse = torch.where(on_loss == 1, -others, share - on_loss)
    return combined, on_loss, on_lse


def _inside(
    loss: Tensor, lse: Tensor, of_all: Tensor, share: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """lse − lse of the positives + log of their number, and its derivatives by part."""
    some = count > 0
    above = loss - count.clamp(min=1).log()  # lse_t − c_t, not negative
    of_positives = torch.where(some, lse - above, -torch.inf)
    of_all_positives = of_positives.logsumexp(0)
    on_loss = _exp_of_difference(of_positives, of_all_positives)
    # Near p = 1 the difference has no digits, but this sum does.
    excess = torch.where(some, on_loss * above.expm1(), (lse - of_all_positives).exp()).sum(0)
    difference = of_all - of_all_positives
    inside = torch.where(difference > 1, difference, excess.log1p())
    on_lse = torch.where(some, on_loss * (above - inside).expm1(), share)
    return inside + count.sum(0).clamp(min=1).log(), on_loss, on_lse


def _exp_of_difference(of_part: Tensor, of_all: Tensor) -> Tensor:
    """exp(of_part − of_all), with 0 where nothing is summed at all."""
    return torch.where(of_part == -torch.inf, 0, (of_part - of_all).exp())


def _of_the_others(lse: Tensor) -> Tensor:
    """The log-sum-exp of all parts but the one, by part. (T, L, N)"""
    none = torch.full_like(lse[:1], -torch.inf)
    before = torch.cat([none, lse[:-1]]).logcumsumexp(0)
    after = torch.cat([none, lse.flip(0)[:-1]]).logcumsumexp(0).flip(0)
    return torch.logaddexp(before, after)
