"""The contrastive losses of local queries against the keys of all ranks, and their gradients.

The keys of a rank are one part of all: the op that serves a single process serves a part, forward
and backward, and :func:`mim4dd.reference.contrastive_of_parts` says what the parts come to.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mim4dd import reference
from mim4dd._checks import check_choice
from mim4dd.ops.contrastive.exchange import Layout, Piece, exchange_of, share_layout
from mim4dd.ops.contrastive.parts import (
    Pairs,
    Parts,
    count_of_part,
    gradients_of_part,
    losses_of_part,
)
from mim4dd.reference import IGNORE, NO_POSITIVE, Contrast, Critic, Kind, Reduce

__all__ = ["Across", "Group", "Ranks", "Shared", "across", "over_ranks"]

_NUM_SHARED = 5
# Of so many queries at a time gradients are formed, where keys come in pieces: the kernel of a CPU
# copies its queries, and stores the weights of many pairs. That of a GPU does not.
BLOCK = 512
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
    bias: Tensor | None  # (), or (N,) where the binary critic has its default


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
    if critic.kind == Kind.NCE and shared.bias is None:
        shared = shared._replace(bias=_Queries(call, [*shared, *query, *key]).default_bias())
    reduced, count, *of_queries = _OverRanks.apply(call, *shared, *query, *key)
    return reduced, count, Contrast(*of_queries)


class _OverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Any) -> tuple[Tensor, ...]:
        queries = _Queries(call, tensors)
        parts, together = Parts(call.critic), None
        for piece in queries.exchange.walk(queries.own_keys):
            part = queries.part(piece)
            parts.keep(part)
            together = (
                part
                if together is None
                else reference.contrastive_of_two(together, part, call.critic)
            )
        assert together is not None  # there is a rank
        labels = queries.shared.labels
        contrast = reference.contrastive_of_parts(together, labels, call.critic)
        reduced, count = _reduced(call, contrast)
        ctx.call = call
        ctx.save_for_backward(*tensors, *parts.saved(), *contrast, count)
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
        *tensors, count = ctx.saved_tensors
        of_all = Contrast(*tensors[-3:])
        saved = tensors[-6:-3]
        queries = _Queries(ctx.call, tensors[:-6])
        on_each = _on_each(ctx.call, grad_reduced, grad_loss, count)

        def upstream() -> Iterator[_Upstream]:
            """Part by part: all of them at a time would be as large as features."""
            for part in Parts.restored(*saved):
                of_part = reference.contrastive_of_part(part, of_all, ctx.call.critic)
                on_lse = on_each * of_part.on_lse
                if grad_lse is not None:
                    on_lse += grad_lse * of_part.share
                yield _Upstream(part, on_each * of_part.on_loss, on_lse)

        return None, *queries.gradients(upstream(), ctx.needs_input_grad[1:])


class _Upstream(NamedTuple):
    """What a part gave, and what reaches that: (L, N) each."""

    part: Contrast
    on_loss: Tensor
    on_lse: Tensor

    def of_rows(self, rows: slice) -> tuple[Contrast, Tensor, Tensor]:
        """Those of some queries."""
        part = Contrast(*(each[..., rows] for each in self.part))
        return part, self.on_loss[:, rows], self.on_lse[:, rows]


class _Queries:
    """The queries of this rank, and the keys that it sends to the others."""

    def __init__(self, call: _Call, tensors: Sequence[Any]) -> None:
        self.call = call
        self.shared = Shared(*tensors[:_NUM_SHARED])
        features = tensors[_NUM_SHARED:]
        self.num_layers = len(features) // 2
        self.query = list(features[: self.num_layers])
        self.key = list(features[self.num_layers :])
        self.sizes = [rows.shape[1] for rows in self.key]
        key_labels = self.shared.key_labels
        row_bytes = sum(self.sizes) * self.key[0].element_size()
        row_bytes += 0 if key_labels is None else key_labels.element_size()
        self.exchange = exchange_of(call.layout, row_bytes, self.key[0].device, call.ranks.exchange)

    def own_keys(self, first: int, last: int) -> list[Tensor]:
        """What travels of some keys of this rank: all layers in one message, and labels."""
        travelling = [_beside([rows[first:last] for rows in self.key])]
        if self.shared.key_labels is not None:
            travelling.append(self.shared.key_labels[first:last])
        return travelling

    def own_labels(self, first: int, last: int) -> list[Tensor]:
        """The labels alone, beside features of no columns: of these no bytes travel."""
        assert self.shared.key_labels is not None  # the binary critic has labels
        return [self.key[0][first:last, :0], self.shared.key_labels[first:last]]

    def default_bias(self) -> Tensor:
        """The bias of the binary critic that is given none, over the keys of all ranks. (N,)"""
        wide = self.shared.logit_scale
        positives, keys = wide.new_zeros(2, len(self.shared.labels))
        for piece in self.exchange.walk(self.own_labels):
            if (pairs := self._against(piece)) is not None:
                for total, count in zip((positives, keys), count_of_part(pairs), strict=True):
                    total += count
        return -((keys - positives).clamp(min=1) / keys.clamp(min=1)).log()

    def part(self, piece: Piece) -> Contrast:
        """The losses against the keys of one piece alone."""
        pairs = self._against(piece)
        if pairs is None:
            none = self.shared.logit_scale.new_zeros(self.num_layers, len(self.shared.labels))
            return Contrast(none, torch.full_like(none, -torch.inf), none[0])
        return losses_of_part(pairs, self.call.critic)

    def gradients(
        self, upstream: Iterator[_Upstream], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Of the tensors, from every part in turn, and what reaches its loss and its lse."""
        layers = self.num_layers
        of_query, of_key = needed[_NUM_SHARED:-layers], needed[-layers:]
        wanted = [True in of_query, True in of_key, needed[3], needed[4]]
        sums = _Sums(self, wanted)

        def backward(piece: Piece) -> list[Tensor]:
            """Add to the own ones; return those of the keys."""
            return sums.add(self._against(piece), next(upstream), piece.tensors[0])

        home: Sequence[Tensor] = []
        if wanted[1]:
            (packed,) = self.exchange.walk_back(self.own_keys, backward)
            home = packed.split(self.sizes, 1)
        else:
            for piece in self.exchange.walk(self.own_keys):
                backward(piece)
        return self._ordered(sums, home, wanted)

    def blocks(self) -> Iterator[slice]:
        """The queries whose gradients are formed at a time."""
        rows = num_queries = len(self.shared.labels)
        if self.exchange.num_pieces > 1 and self.shared.labels.device.type == "cpu":
            rows = BLOCK
        for first in range(0, num_queries, rows):
            yield slice(first, min(first + rows, num_queries))

    def _ordered(
        self, sums: "_Sums", home: Sequence[Tensor], wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """In the order of the tensors."""
        none: list[Tensor | None] = [None] * self.num_layers
        dtype = self.query[0].dtype
        rest = iter(sums.numbers)
        scale, bias = (next(rest).sum() if each else None for each in wanted[2:])
        return [
            *(None, None, None, scale, bias),
            *([each.to(dtype) for each in sums.query] if wanted[0] else none),
            *([each.to(dtype) for each in home] if wanted[1] else none),
        ]

    def _against(self, piece: Piece) -> Pairs | None:
        """What the op takes for the keys of a piece; None where there is nothing to multiply."""
        packed, *of_keys = piece.tensors
        shared = self.shared
        if not len(packed) or not len(shared.labels):
            return None
        before = self.call.layout.keys_before(piece.source) + piece.first
        labels, key_labels = shared.labels, of_keys[0] if of_keys else None
        if key_labels is None:
            labels = _within(labels, before, len(packed), NO_POSITIVE)
        excluded = shared.excluded
        if excluded is not None:
            excluded = _within(excluded, before, len(packed), IGNORE)
        key = list(packed.split(self.sizes, 1)) if packed.numel() else []
        numbers = shared.logit_scale, shared.bias
        return Pairs(self.query, key, labels, key_labels, excluded, *numbers)


class _Sums:
    """Gradients over all parts, of what stays on this rank: in float32 or wider."""

    def __init__(self, queries: _Queries, wanted: list[bool]) -> None:
        self.queries, self.wanted = queries, wanted
        self.wide = wide = queries.shared.logit_scale
        self.query = [torch.zeros_like(x, dtype=wide.dtype) for x in queries.query if wanted[0]]
        self.numbers = [wide.new_zeros(queries.num_layers) for each in wanted[2:] if each]

    def add(self, pairs: Pairs | None, upstream: _Upstream, packed: Tensor) -> list[Tensor]:
        """Those of a part; the gradient of its packed keys is returned."""
        of_keys = [torch.zeros_like(packed, dtype=self.wide.dtype)] if self.wanted[1] else []
        if pairs is not None:
            for rows in self.queries.blocks():
                self._add_block(rows, pairs, upstream, of_keys)
        return of_keys

    def _add_block(
        self, rows: slice, pairs: Pairs, upstream: _Upstream, of_keys: list[Tensor]
    ) -> None:
        """In a function, so that what it has found is gone before the next block's is formed."""
        critic = self.queries.call.critic
        found = gradients_of_part(pairs.of_rows(rows), critic, *upstream.of_rows(rows), self.wanted)
        sums = [each[rows] for each in self.query]
        for each in of_keys:
            sums += each.split(self.queries.sizes, 1)
        # Nothing is found where no query of the block takes part.
        for each, other in zip([*sums, *self.numbers] if found else [], found, strict=True):
            each += other


def _within(index: Tensor, before: int, count: int, elsewhere: int) -> Tensor:
    """Indices into all keys as those into ``count`` of them, which come after ``before`` others."""
    local = index - before
    inside = (local >= 0) & (local < count)
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
