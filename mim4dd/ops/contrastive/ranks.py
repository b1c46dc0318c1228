"""The contrastive losses of local queries against the keys of all ranks, and their gradients.

The keys of a rank are one part of all: the op that serves a single process serves a part, forward
and backward, and :func:`mim4dd.reference.contrastive_of_parts` says what the parts come to.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mim4dd import reference
from mim4dd._checks import check_choice
from mim4dd.ops.contrastive.exchange import Layout, exchange_of, share_layout
from mim4dd.ops.contrastive.parts import OfPart, Pairs, gradients_of_part, losses_of_part
from mim4dd.reference import IGNORE, NO_POSITIVE, Contrast, Critic, Reduce

__all__ = ["Across", "Group", "Ranks", "Shared", "across", "over_ranks"]

_NUM_SHARED = 5
_DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64


@dataclass(frozen=True)
class Ranks:
    """The processes whose keys the queries of each see, and what becomes of their gradients.

    What ``group=`` of a loss takes in place of a process group where its defaults do not fit.

    Args:
        group: The process group, such as ``torch.distributed.group.WORLD``.
        gradients: How the gradients of parameters are combined over the ranks after the backward
            pass. ``"mean"``: averaged, as DistributedDataParallel and FSDP do. ``"sum"``: added up.
            Either way the combined gradient is that of the global loss. It concerns reductions
            alone: with ``reduction="none"`` each rank's own sum or mean is differentiated.
        exchange: How keys travel. ``"ring"``: from rank to rank, so that none holds the keys of
            more than two. ``"gather"``: all at once, to every rank. ``"auto"``: gathered where
            they are few bytes.

    Example:
        >>> import mim4dd, torch.distributed as dist
        >>> ranks = mim4dd.Ranks(dist.group.WORLD, gradients="sum")  # doctest: +SKIP
    """

    group: dist.ProcessGroup
    gradients: Literal["mean", "sum"] = "mean"
    exchange: Literal["auto", "ring", "gather"] = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.group, dist.ProcessGroup):
            raise TypeError(f"group must be a process group, got {type(self.group).__name__}")
        check_choice("gradients", self.gradients, ("mean", "sum"))
        check_choice("exchange", self.exchange, ("auto", "ring", "gather"))


Group = dist.ProcessGroup | Ranks


class Across(NamedTuple):
    """The ranks of one call, and how their rows lie."""

    ranks: Ranks
    layout: Layout


def across(group: Group, query: Sequence[Tensor], key: Sequence[Tensor]) -> Across:
    """The ranks of a group, once they agree on all but the number of rows."""
    ranks = group if isinstance(group, Ranks) else Ranks(group)
    needs = [
        torch.is_grad_enabled() and any(x.requires_grad for x in side) for side in (query, key)
    ]
    layout = share_layout(
        ranks.group,
        len(query[0]),
        len(key[0]),
        _DTYPES.index(query[0].dtype),
        *needs,
        len(query),
        # In one number, as there may be another number of layers on another rank.
        zlib.crc32(repr([rows.shape[1] for rows in query]).encode()),
        device=query[0].device,
    )
    return Across(ranks, layout)


class _Call(NamedTuple):
    """What is no tensor of a loss over ranks."""

    ranks: Ranks
    layout: Layout
    critic: Critic
    reduction: Reduce


class Shared(NamedTuple):
    """What all layers share. Indices count the keys of all ranks."""

    labels: Tensor  # (N,) int64
    key_labels: Tensor | None  # (M,) int64, of this rank
    excluded: Tensor | None  # (N, K) int64
    logit_scale: Tensor  # ()
    bias: Tensor | None  # ()


def over_ranks(
    across: Across,
    query: Sequence[Tensor],  # L of (N, D)
    key: Sequence[Tensor],  # L of (M, D)
    shared: Shared,
    critic: Critic,
    reduction: Reduce,
) -> tuple[Tensor, Tensor, Contrast]:
    """The loss reduced over all ranks, (L,), how many queries that is, and the local ones' losses.

    With :attr:`Reduce.NONE` the first two are of no use.
    """
    call = _Call(*across, critic, reduction)
    reduced, count, *of_queries = _OverRanks.apply(call, *shared, *query, *key)
    return reduced, count, Contrast(*of_queries)


class _OverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Any) -> tuple[Tensor, ...]:
        queries = _Queries(call, tensors)
        exchange = exchange_of(call.layout, queries.travelling, call.ranks.exchange)
        parts = [queries.part(*arrived) for arrived in exchange.walk(queries.travelling)]
        loss, lse, positive_weight = (torch.stack(each) for each in zip(*parts, strict=True))
        contrast = queries.of_parts(loss, lse, positive_weight).contrast
        reduced, count = _reduced(call, contrast)
        ctx.call = call
        ctx.save_for_backward(*tensors, loss, lse, positive_weight, count)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(count, contrast.positive_weight)
        return reduced, count, *contrast

    @staticmethod
    def backward(
        ctx: Any,
        grad_reduced: Tensor | None,
        _: Any,
        grad_loss: Tensor | None,
        grad_lse: Tensor | None,
        __: Any,
    ) -> tuple[Any, ...]:
        # Silence would drop what a penalty on gradients asks for.
        if torch.is_grad_enabled():
            raise RuntimeError("a loss with a group has no second derivative (create_graph=True)")
        *tensors, loss, lse, positive_weight, count = ctx.saved_tensors
        queries = _Queries(ctx.call, tensors)
        of_parts = queries.of_parts(loss, lse, positive_weight)
        on_each = _on_each(ctx.call, grad_reduced, grad_loss, count)
        on_loss, on_lse = on_each * of_parts.on_loss, on_each * of_parts.on_lse
        if grad_lse is not None:
            on_lse = on_lse + grad_lse * of_parts.share
        parts = map(OfPart, loss, lse, positive_weight)
        upstream = zip(parts, on_loss, on_lse, strict=True)
        return None, *queries.gradients(list(upstream), ctx.needs_input_grad[1:])


class _Queries:
    """The queries of this rank, and the keys that it sends to the others."""

    def __init__(self, call: _Call, tensors: Sequence[Any]) -> None:
        self.call = call
        self.shared = Shared(*tensors[:_NUM_SHARED])
        features = tensors[_NUM_SHARED:]
        self.num_layers = len(features) // 2
        self.query = list(features[: self.num_layers])
        key = list(features[self.num_layers :])
        self.sizes = [rows.shape[1] for rows in key]
        self.travelling = [_beside(key)]
        if self.shared.key_labels is not None:
            self.travelling.append(self.shared.key_labels)

    def of_parts(self, loss: Tensor, lse: Tensor, positive_weight: Tensor) -> reference.OfParts:
        """What the parts (T, L, N) come to."""
        kind = self.call.critic.kind
        return reference.contrastive_of_parts(loss, lse, positive_weight, self.shared.labels, kind)

    def part(self, source: int, held: list[Tensor]) -> OfPart:
        """The losses against the keys of one rank alone."""
        pairs = self._against(source, held)
        if pairs is None:
            none = self.shared.logit_scale.new_zeros(self.num_layers, len(self.shared.labels))
            return OfPart(none, torch.full_like(none, -torch.inf), none[0])
        return losses_of_part(pairs, self.call.critic)

    def gradients(
        self, upstream: Sequence[tuple[OfPart, Tensor, Tensor]], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Of the tensors, from every part in turn, and what reaches its loss and its lse."""
        layers = self.num_layers
        of_query, of_key = needed[_NUM_SHARED:-layers], needed[-layers:]
        wanted = [True in of_query, True in of_key, needed[3], needed[4]]
        own: list[Tensor] = []  # of queries, logit scale and bias
        steps = iter(upstream)

        def backward(source: int, held: list[Tensor]) -> list[Tensor]:
            """Add to the own ones; return those of the keys."""
            pairs, saved = self._against(source, held), next(steps)
            if pairs is None:
                return [torch.zeros_like(held[0], dtype=self.shared.logit_scale.dtype)]
            found = gradients_of_part(pairs, self.call.critic, *saved, wanted)
            begin, end = layers * wanted[0], layers * (wanted[0] + wanted[1])
            of_keys, found[begin:end] = found[begin:end], []
            if own:
                torch._foreach_add_(own, found)
            else:
                own.extend(found)
            return [_beside(of_keys)] if of_keys else []

        exchange = exchange_of(self.call.layout, self.travelling, self.call.ranks.exchange)
        home: Sequence[Tensor] = []
        if wanted[1]:
            (packed,) = exchange.walk_back(self.travelling, backward)
            home = packed.split(self.sizes, 1)
        else:
            for arrived in exchange.walk(self.travelling):
                backward(*arrived)
        return self._ordered(own, home, wanted)

    def _ordered(
        self, own: list[Tensor], home: Sequence[Tensor], wanted: list[bool]
    ) -> list[Tensor | None]:
        """In the order of the tensors."""
        none: list[Tensor | None] = [None] * self.num_layers
        dtype = self.query[0].dtype
        if not own:  # no pair anywhere; a parameter still has a gradient, for which DDP waits
            own = [torch.zeros_like(rows) for rows in self.query if wanted[0]]
            own += [self.shared.logit_scale.new_zeros(1) for each in wanted[2:] if each]
        rest = iter(own[self.num_layers * wanted[0] :])
        scale, bias = (next(rest).sum() if each else None for each in wanted[2:])
        return [
            *(None, None, None, scale, bias),
            *([each.to(dtype) for each in own[: self.num_layers]] if wanted[0] else none),
            *([each.to(dtype) for each in home] if wanted[1] else none),
        ]

    def _against(self, source: int, held: list[Tensor]) -> Pairs | None:
        """What the op takes for the keys of one rank; None where there is nothing to multiply."""
        packed, *of_keys = held
        shared = self.shared
        if not len(packed) or not len(shared.labels):
            return None
        labels, key_labels = shared.labels, of_keys[0] if of_keys else None
        if key_labels is None:
            labels = self._within(labels, source, NO_POSITIVE)
        excluded = shared.excluded
        if excluded is not None:
            excluded = self._within(excluded, source, IGNORE)
        key = list(packed.split(self.sizes, 1))
        numbers = shared.logit_scale, shared.bias
        return Pairs(self.query, key, labels, key_labels, excluded, *numbers)

    def _within(self, index: Tensor, source: int, elsewhere: int) -> Tensor:
        """Indices into all keys as those into one rank's."""
        layout = self.call.layout
        local = index - layout.keys_before(source)
        inside = (local >= 0) & (local < layout.num_keys[source])
        return local.where(inside, elsewhere).where(index != IGNORE, IGNORE)


def _beside(layers: Sequence[Tensor]) -> Tensor:
    """All layers in one message."""
    return layers[0].contiguous() if len(layers) == 1 else torch.cat([*layers], 1)


def _reduced(call: _Call, contrast: Contrast) -> tuple[Tensor, Tensor]:
    """The loss over all ranks, (L,), and how many of their queries have a positive."""
    count = reference.count_queries(contrast.positive_weight)
    if call.reduction == Reduce.NONE:
        return contrast.loss.new_empty(0), count
    # In float64, which counts exactly.
    sums = torch.cat([contrast.loss.sum(1), count[None]]).double()
    dist.all_reduce(sums, group=call.layout.group)
    *_, count = sums
    reduced = sums[:-1] / count if call.reduction == Reduce.MEAN else sums[:-1]
    return reduced.to(contrast.loss.dtype), count.to(contrast.loss.dtype)


def _on_each(
    call: _Call, grad_reduced: Tensor | None, grad_loss: Tensor | None, count: Tensor
) -> Tensor:
    """What reaches the loss of every query, (L, N) or broadcast to it."""
    on_each = count.new_zeros(1, 1) if grad_loss is None else grad_loss
    if grad_reduced is None or call.reduction == Reduce.NONE:
        return on_each
    # The reduced loss is one number that every rank has: each rank's use of it counts.
    of_all = grad_reduced.contiguous().clone()
    dist.all_reduce(of_all, group=call.layout.group)
    if call.ranks.gradients == "sum":
        of_all = of_all / len(call.layout.num_keys)
    if call.reduction == Reduce.MEAN:
        of_all = of_all / count
    return on_each + of_all[:, None]
