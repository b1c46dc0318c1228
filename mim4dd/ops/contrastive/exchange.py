"""How keys get to the queries of other ranks, and their gradients back: by a ring, or all at once.

Both give the keys of one rank at a time, from the own rank's on. Nothing here knows a loss.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# Up to here all keys are gathered: so few bytes are a single message, where a ring sends one after
# another. `make bench-ranks` measures both.
GATHERED_BYTES = 1 << 20


class Layout(NamedTuple):
    """Where the rows of every rank are among the rows of all."""

    group: dist.ProcessGroup
    rank: int
    num_keys: tuple[int, ...]  # by rank
    num_queries: tuple[int, ...]

    @property
    def first_key(self) -> int:
        """Which of all keys is the first of this rank."""
        return self.keys_before(self.rank)

    def keys_before(self, rank: int) -> int:
        """How many keys the ranks before that one hold."""
        return sum(self.num_keys[:rank])


# Gradients of the keys of a rank, by tensor, from those keys: what walk_back calls.
Backward = Callable[[int, list[Tensor]], list[Tensor]]


def share_layout(group: dist.ProcessGroup, *described: int, device: torch.device) -> Layout:
    """Tell all ranks how many queries and keys each has: the first two numbers.

    Raises:
        ValueError: On every rank, if the other numbers are not the same on all.
    """
    own = torch.tensor(described, device=device)
    of_all = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(of_all, own, group=group)
    rows = torch.stack(of_all).tolist()
    num_queries, num_keys, *rest = zip(*rows, strict=True)
    if any(len(set(values)) > 1 for values in rest):
        raise ValueError(
            "all ranks of the group must give the same layers, feature sizes and dtype, and "
            f"require gradients of the same sides: one or more differ between the {len(rows)} ranks"
        )
    return Layout(group, dist.get_rank(group), num_keys, num_queries)


class _Exchange:
    """What both ways share."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.rank, self.world = layout, layout.rank, len(layout.num_keys)

    def source(self, step: int) -> int:
        """Whose keys are multiplied in a step: the own ones first."""
        return (self.rank - step) % self.world


class _Ring(_Exchange):
    """Keys move one rank on while the tile before them is computed: two ranks' keys at a time."""

    def send(self, tensors: Sequence[Tensor], source: int) -> tuple[list[Tensor], list[dist.Work]]:
        """Hand tensors to the next rank, and take those of ``source`` from the one before."""
        if self.world == 1:
            return list(tensors), []
        taken = [
            torch.empty(self.layout.num_keys[source], *each.shape[1:], dtype=each.dtype,
                        device=each.device)
            for each in tensors
        ]  # fmt: skip
        group, following, previous = self.layout.group, self.rank + 1, self.rank - 1
        messages = [
            dist.P2POp(dist.isend, each, group=group, group_peer=following % self.world)
            for each in tensors
            if each.numel()
        ] + [
            dist.P2POp(dist.irecv, each, group=group, group_peer=previous % self.world)
            for each in taken
            if each.numel()
        ]
        return taken, dist.batch_isend_irecv(messages) if messages else []

    def walk(self, tensors: list[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """(rank, its tensors) for every rank; the next ones travel until the caller comes back."""
        for step in range(self.world):
            under_way: list[dist.Work] = []
            following: list[Tensor] = []
            if step + 1 < self.world:
                following, under_way = self.send(tensors, self.source(step + 1))
            yield self.source(step), tensors
            _wait(under_way)
            tensors = following

    def walk_back(self, tensors: list[Tensor], backward: Backward) -> list[Tensor]:
        """Gradients of this rank's tensors, to which every rank that sees them adds its part."""
        arriving: list[Tensor] = []
        leaving: list[Tensor] = []  # must live until they have left
        under_way: list[dist.Work] = []
        for step, (source, held) in enumerate(self.walk(tensors)):
            gradients = backward(source, held)
            _wait(under_way)
            # To what the ranks that saw these keys before found, in place.
            for found, before in zip(gradients, arriving, strict=step > 0):
                found += before
            leaving = gradients
            # They follow their keys, and after the last step come home.
            arriving, under_way = self.send(leaving, self.source(step + 1))
        _wait(under_way)
        return arriving


class _Gathered(_Exchange):
    """All keys on every rank: one message, and one sum of all gradients."""

    def walk(self, tensors: list[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """As of a ring, and in its order."""
        by_rank = [self._gather(each) for each in tensors]
        for step in range(self.world):
            source = self.source(step)
            yield source, [each[source] for each in by_rank]

    def walk_back(self, tensors: list[Tensor], backward: Backward) -> list[Tensor]:
        """As of a ring."""
        gradients: dict[int, list[Tensor]] = {}
        for source, held in self.walk(tensors):
            gradients[source] = backward(source, held)
        own = []
        for place in range(len(gradients[self.rank])):
            of_all = torch.cat([gradients[source][place] for source in range(self.world)])
            dist.all_reduce(of_all, group=self.layout.group)
            own.append(of_all.split(self.layout.num_keys)[self.rank])
        return own

    def _gather(self, own: Tensor) -> Sequence[Tensor]:
        """By rank. Padded to the most rows, for not every backend gathers uneven tensors."""
        most = max(self.layout.num_keys)
        padded = own.new_zeros(most, *own.shape[1:])
        padded[: len(own)] = own
        of_all = [torch.empty_like(padded) for _ in self.layout.num_keys]
        dist.all_gather(of_all, padded, group=self.layout.group)
        return [each[:count] for each, count in zip(of_all, self.layout.num_keys, strict=True)]


def exchange_of(
    layout: Layout, tensors: Sequence[Tensor], how: Literal["auto", "ring", "gather"]
) -> _Ring | _Gathered:
    """The way that suits tensors of this size; the same on all ranks."""
    if how == "auto":
        row = sum(math.prod(each.shape[1:]) * each.element_size() for each in tensors)
        how = "gather" if sum(layout.num_keys) * row <= GATHERED_BYTES else "ring"
    return (_Ring if how == "ring" else _Gathered)(layout)


def _wait(under_way: Sequence[dist.Work]) -> None:
    for each in under_way:
        each.wait()
