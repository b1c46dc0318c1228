"""The op against one part of all keys: losses that sum up to those of all, and their gradients."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mim4dd import reference
from mim4dd.ops.contrastive import rules
from mim4dd.reference import IGNORE, Contrast, Critic, Kind, Reduce

__all__ = ["Pairs", "Parts", "count_of_part", "gradients_of_part", "losses_of_part"]


class Pairs(NamedTuple):
    """Queries and the keys of one part, as the op takes them. Indices are of the part's keys."""

    query: list[Tensor]  # L of (N, D)
    key: list[Tensor]  # L of (M, D)
    labels: Tensor  # (N,) int64
    key_labels: Tensor | None  # (M,) int64
    excluded: Tensor | None  # (N, K) int64
    logit_scale: Tensor  # ()
    bias: Tensor | None  # () or (N,)

    def of_rows(self, rows: slice) -> "Pairs":
        """Some queries and all keys."""
        return self._replace(
            query=[each[rows] for each in self.query],
            labels=self.labels[rows],
            excluded=None if self.excluded is None else self.excluded[rows],
            bias=self.bias[rows] if self.bias is not None and self.bias.dim() else self.bias,
        )


class Parts:
    """What the backward pass takes of every part, and no more: they are many."""

    def __init__(self, critic: Critic) -> None:
        self.kind = critic.kind
        self.loss: list[Tensor] = []
        self.lse: list[Tensor] = []
        self.positive_weight: list[Tensor] = []

    def keep(self, part: Contrast) -> None:
        """The next part."""
        self.positive_weight.append(part.positive_weight)
        if self.kind != Kind.NCE or not self.lse:
            self.lse.append(part.lse)
        if self.kind == Kind.IN or not self.loss:
            self.loss.append(part.loss)
        else:  # it counts where all positives are in one part
            self.loss[0] = part.loss.where(part.positive_weight > 0, self.loss[0])

    def saved(self) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (T or 1, L, N), lse (T or 1, L, N), weights (T, N)."""
        return torch.stack(self.loss), torch.stack(self.lse), torch.stack(self.positive_weight)

    @staticmethod
    def restored(loss: Tensor, lse: Tensor, positive_weight: Tensor) -> Iterator[Contrast]:
        """Every part, as far as it was kept."""
        for place, weight in enumerate(positive_weight):
            yield Contrast(loss[min(place, len(loss) - 1)], lse[min(place, len(lse) - 1)], weight)


def losses_of_part(pairs: Pairs, critic: Critic) -> Contrast:
    """The losses by this part's keys alone, as the reference's contrastive_of_parts takes them."""
    if critic.kind == Kind.NCE:
        count, _ = count_of_part(pairs)
        loss = pairs.logit_scale.new_zeros(len(pairs.query), len(pairs.labels))
        for call in _binary_calls(pairs, critic, count > 0):
            loss = loss + _forward(call.pairs, call.critic).loss
        weight = torch.where(count > 0, 1 / count, 0).to(loss)
        return Contrast(loss, torch.zeros_like(loss), weight)
    part = _forward(pairs, critic)
    if not critic.decoupled:
        return part
    loss, lse, weight = part
    loss = torch.where(weight > 0, loss - lse, 0)
    if (alone := _without_negatives(pairs, lse)) is not None:
        of_alone = _forward(alone, critic._replace(decoupled=False))
        has_positive = of_alone.positive_weight > 0
        loss = torch.where(has_positive, of_alone.loss - of_alone.lse, loss)
        weight = torch.where(has_positive, of_alone.positive_weight, weight)
    return Contrast(loss, lse, weight)


def gradients_of_part(
    pairs: Pairs,
    critic: Critic,
    part: Contrast,
    on_loss: Tensor,  # (L, N)
    on_lse: Tensor,  # (L, N)
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Of what is ``wanted`` of query (L), key (L), logit scale (L,) and bias (L,)."""
    # Parts are summed in float32 or wider, whatever the features are.
    dtype = pairs.logit_scale.dtype
    total: list[Tensor] = []
    for call in _calls(pairs, critic, part):
        kind, *options = call.critic
        upstream = call.lse, call.weight, on_loss, on_lse
        gradients = rules.contrastive_bwd(*call.pairs, int(kind), *options, *upstream, wanted)
        found = [each.to(dtype) for each in gradients]
        if call.mirrored:
            _mirror(found, call, pairs, wanted)
        if total:
            torch._foreach_add_(total, found)
        else:
            total = found
    return total


class _Call(NamedTuple):
    """One call of the op, of those that a part takes; together they have every query once."""

    pairs: Pairs
    critic: Critic
    lse: Tensor
    weight: Tensor  # it tells the op which queries have a loss in this call
    mirrored: bool = False  # of −query and −bias


def _calls(pairs: Pairs, critic: Critic, part: Contrast) -> Iterator[_Call]:
    """For the gradients of a part."""
    lse, weight = part.lse, part.positive_weight
    if critic.kind == Kind.NCE:
        yield from _binary_calls(pairs, critic, weight > 0)
        return
    if critic.decoupled and (alone := _without_negatives(pairs, lse)) is not None:
        coupled = critic._replace(decoupled=False)
        # The shift of exponentials, which only a forward pass tells; few queries have no negative.
        of_alone = _forward(alone, coupled)
        yield _Call(alone, coupled, of_alone.lse, of_alone.positive_weight)
        taken = alone.labels != IGNORE
        weight = weight.masked_fill(taken, 0)
        pairs = pairs._replace(labels=pairs.labels.masked_fill(taken, IGNORE))
    yield _Call(pairs, critic, lse, weight)


def _forward(pairs: Pairs, critic: Critic) -> Contrast:
    kind, *options = critic
    _, _, loss, lse, positive_weight, *_ = rules.contrastive(
        *pairs, int(kind), *options, Reduce.NONE.value, rules.NONE_WANTED
    )
    return Contrast(loss, lse, positive_weight)


def _without_negatives(pairs: Pairs, lse: Tensor) -> Pairs | None:
    """The queries that have no negative here, so no denominator; the op gives them no loss."""
    alone = (pairs.labels != IGNORE) & (lse[0] == -torch.inf)
    return pairs._replace(labels=pairs.labels.where(alone, IGNORE)) if alone.any() else None


def _binary_calls(pairs: Pairs, critic: Critic, has_positive: Tensor) -> Iterator[_Call]:
    """Calls of the binary critic that share the queries.

    The op gives a query without a positive no loss, but it may have one in another part. All keys
    here are its negatives, and −log(1 − h(s + b)) = −log h(−s − b): they are the positives of −s.
    A hardness raises the logits of negatives, which here is a larger scale.
    """
    takes_part = pairs.labels != IGNORE
    assert pairs.bias is not None  # evaluate() has formed the default
    # Of most parts one call is enough: to look costs less than a pass over all pairs.
    if (takes_part & has_positive).any():
        yield _binary_call(pairs._replace(labels=pairs.labels.where(has_positive, IGNORE)), critic)
    none = takes_part & ~has_positive
    if none.any():
        assert pairs.key_labels is not None  # it has labels
        mirrored = pairs._replace(
            query=[-rows for rows in pairs.query],
            labels=torch.where(none, 0, IGNORE),
            key_labels=pairs.key_labels.clamp(IGNORE, 0),
            logit_scale=pairs.logit_scale + critic.hardness,
            bias=-pairs.bias,
        )
        yield _binary_call(mirrored, critic._replace(hardness=0.0), mirrored=True)


def _binary_call(pairs: Pairs, critic: Critic, mirrored: bool = False) -> _Call:
    weight = (pairs.labels != IGNORE).to(pairs.logit_scale.dtype)
    lse = weight.new_zeros(len(pairs.query), len(weight))
    return _Call(pairs, critic, lse, weight, mirrored)


def _mirror(found: list[Tensor], call: _Call, pairs: Pairs, wanted: Sequence[bool]) -> None:
    """Make the gradients of a mirrored call those of the pairs, in place."""
    # The hardness is constant: it moves the weights, and is no factor of what they multiply.
    factor = pairs.logit_scale / call.pairs.logit_scale
    end_of_query = len(pairs.query) * wanted[0]
    end_of_key = end_of_query + len(pairs.key) * wanted[1]
    for each in found[:end_of_query]:
        each.mul_(-factor)
    for each in found[end_of_query:end_of_key]:
        each.mul_(factor)
    if wanted[3]:
        found[-1].neg_()


def count_of_part(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """How many keys of its class a query has here, and how many in all, without those left out."""
    labels, key_labels, excluded = pairs.labels, pairs.key_labels, pairs.excluded
    assert key_labels is not None  # the binary critic has labels
    positives = reference.count_each(labels, key_labels)
    keys = (key_labels != IGNORE).sum().expand(len(labels))
    if excluded is not None:
        index = excluded.sort(1).values
        named = index != IGNORE
        named[:, 1:] &= index[:, 1:] != index[:, :-1]  # a key may be named twice
        of_named = key_labels[index.clamp(min=0)]
        positives = positives - (named & (of_named == labels[:, None])).sum(1)
        keys = keys - (named & (of_named != IGNORE)).sum(1)
    ignored = labels == IGNORE
    return positives.masked_fill(ignored, 0), keys.masked_fill(ignored, 0)
