"""The op against one part of all keys: losses that sum up to those of all, and their gradients."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mim4dd import reference
from mim4dd.ops.contrastive import rules
from mim4dd.reference import IGNORE, Critic, Kind, Reduce

__all__ = ["OfPart", "Pairs", "gradients_of_part", "losses_of_part"]


class Pairs(NamedTuple):
    """Queries and the keys of one part, as the op takes them. Indices are of the part's keys."""

    query: list[Tensor]  # L of (N, D)
    key: list[Tensor]  # L of (M, D)
    labels: Tensor  # (N,) int64
    key_labels: Tensor | None  # (M,) int64
    excluded: Tensor | None  # (N, K) int64
    logit_scale: Tensor  # ()
    bias: Tensor | None  # ()


class OfPart(NamedTuple):
    """What :func:`mim4dd.reference.contrastive_of_parts` takes of each part."""

    loss: Tensor  # (L, N)
    lse: Tensor  # (L, N)
    positive_weight: Tensor  # (N,)


def losses_of_part(pairs: Pairs, critic: Critic) -> OfPart:
    """The losses by this part's keys alone."""
    if critic.kind != Kind.NCE:
        return OfPart(*_forward(pairs, critic))
    count = _num_positives(pairs)
    loss = pairs.logit_scale.new_zeros(len(pairs.query), len(pairs.labels))
    for _, some in _binary_calls(pairs, count > 0):
        loss = loss + _forward(some, critic)[0]
    return OfPart(loss, torch.zeros_like(loss), torch.where(count > 0, 1 / count, 0).to(loss))


def gradients_of_part(
    pairs: Pairs,
    critic: Critic,
    of_part: OfPart,
    on_loss: Tensor,  # (L, N)
    on_lse: Tensor,  # (L, N)
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Of what is ``wanted`` of query (L), key (L), logit scale (L,) and bias (L,)."""
    # Parts are summed in float32 or wider, whatever the features are.
    dtype = pairs.logit_scale.dtype
    total: list[Tensor] = []
    binary, has_positive = critic.kind == Kind.NCE, of_part.positive_weight > 0
    for sign, some in _binary_calls(pairs, has_positive) if binary else ((1, pairs),):
        weight = of_part.positive_weight
        if binary:  # it tells the op which queries have a loss in this call
            weight = (some.labels != IGNORE).to(dtype)
        kind, *options = critic
        upstream = of_part.lse, weight, on_loss, on_lse
        gradients = rules.contrastive_bwd(*some, int(kind), *options, *upstream, wanted)
        found = [each.to(dtype) for each in gradients]
        if sign < 0:  # in a call of −query and −bias
            num_queries = len(pairs.query) * wanted[0]
            for each in (*found[:num_queries], *found[len(found) - wanted[3] :]):
                each.neg_()
        if total:
            torch._foreach_add_(total, found)
        else:
            total = found
    return total


def _forward(pairs: Pairs, critic: Critic) -> tuple[Tensor, Tensor, Tensor]:
    kind, *options = critic
    _, _, loss, lse, positive_weight, *_ = rules.contrastive(
        *pairs, int(kind), *options, Reduce.NONE.value, rules.NONE_WANTED
    )
    return loss, lse, positive_weight


def _binary_calls(pairs: Pairs, has_positive: Tensor) -> Iterator[tuple[int, Pairs]]:
    """Calls of the binary critic that share the queries, each with the sign of its logits.

    The op gives a query without a positive no loss, but it may have one in another part. All keys
    here are its negatives, and −log(1 − h(s + b)) = −log h(−s − b): they are the positives of −s.
    """
    takes_part = pairs.labels != IGNORE
    # Of most parts one call is enough: to look costs less than a pass over all pairs.
    if (takes_part & has_positive).any():
        yield 1, pairs._replace(labels=pairs.labels.where(has_positive, IGNORE))
    none = takes_part & ~has_positive
    if none.any():
        assert pairs.key_labels is not None  # it has labels
        assert pairs.bias is not None  # evaluate() has refused the default
        yield (
            -1,
            pairs._replace(
                query=[-rows for rows in pairs.query],
                labels=torch.where(none, 0, IGNORE),
                key_labels=pairs.key_labels.clamp(IGNORE, 0),
                bias=-pairs.bias,
            ),
        )


def _num_positives(pairs: Pairs) -> Tensor:
    """How many keys of its class a query has here, without those that it leaves out. (N,)"""
    labels, key_labels, excluded = pairs.labels, pairs.key_labels, pairs.excluded
    assert key_labels is not None  # the binary critic has labels
    count = reference.count_each(labels, key_labels)
    if excluded is not None:
        index = excluded.sort(1).values
        named = index != IGNORE
        named[:, 1:] &= index[:, 1:] != index[:, :-1]  # a key may be named twice
        own = key_labels[index.clamp(min=0)] == labels[:, None]
        count = count - (named & own).sum(1)
    return count.masked_fill(labels == IGNORE, 0)
