"""How keys get to the queries of other ranks, and their gradients back: by a ring, or all at once.

Both give the keys of one rank at a time, from the own rank's on. Nothing here knows a loss.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# Up to here all keys are gathered: so few bytes are a single message, where a ring sends one after
# another. `make bench-ranks` measures both.
GATHERED_BYTES = 1 << 20

# In how many pieces the keys of a rank go round, one after another: so much less is under way. None
# has fewer bytes than these, on a CPU and elsewhere, for every call of the op costs time.
PIECES = 5
PIECE_BYTES, PIECE_BYTES_OF_GPU = 1 << 18, 1 << 24


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


class Piece(NamedTuple):
    """Keys of one rank, and what belongs to them."""

    source: int  # the rank
    first: int  # which of its keys is the first here
    tensors: list[Tensor]


# This rank's own tensors, from one key up to another.
Own = Callable[[int, int], list[Tensor]]
# Gradients of the tensors of a piece that have one: what walk_back calls.
Backward = Callable[[Piece], list[Tensor]]


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

    def __init__(self, layout: Layout, num_pieces: int = 1) -> None:
        self.layout, self.rank, self.world = layout, layout.rank, len(layout.num_keys)
        self.num_pieces = num_pieces

    @property
    def num_parts(self) -> int:
        """How many pieces this rank sees."""
        return self.num_pieces * self.world

    def source(self, step: int) -> int:
        """Whose keys are multiplied in a step: the own ones first."""
        return (self.rank - step) % self.world

    def bounds(self, piece: int, rank: int) -> tuple[int, int]:
        """The first key of a rank's piece, and the one after its last."""
        count = self.layout.num_keys[rank]
        return piece * count // self.num_pieces, (piece + 1) * count // self.num_pieces


class _Ring(_Exchange):
    """Keys move one rank on while the tile before them is computed.

    All pieces go round, one after another: of other ranks' keys, and of their gradients, there are
    two pieces at a time.
    """

    def send(self, tensors: Sequence[Tensor], count: int) -> tuple[list[Tensor], list[dist.Work]]:
        """Hand tensors to the next rank, and take those of ``count`` keys from the one before."""
        taken = [each.new_empty(count, *each.shape[1:]) for each in tensors]
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

    def count(self, piece: int, step: int) -> int:
        """How many keys are multiplied in a step."""
        first, last = self.bounds(piece, self.source(step))
        return last - first

    def walk(self, own: Own) -> Iterator[Piece]:
        """Every piece of every rank; the next one travels until the caller comes back."""
        for piece in range(self.num_pieces):
            tensors = own(*self.bounds(piece, self.rank))
            for step in range(self.world):
                source = self.source(step)
                under_way: list[dist.Work] = []
                following: list[Tensor] = []
                if step + 1 < self.world:
                    following, under_way = self.send(tensors, self.count(piece, step + 1))
                yield Piece(source, self.bounds(piece, source)[0], tensors)
                _wait(under_way)
                tensors = following

    def walk_back(self, own: Own, backward: Backward) -> list[Tensor]:
        """Gradients of this rank's tensors, to which every rank that sees them adds its part.

        Those of a piece follow it from the rank after its own on, and come home at the end.
        """
        pieces = self.walk(own)
        home: list[Tensor] = []
        arriving: list[Tensor] = []
        under_way: list[dist.Work] = []
        places: list[Tensor] = []  # at home, of the piece that comes there
        for piece in range(self.num_pieces):
            for step in range(self.world):
                found = backward(next(pieces))
                _wait(under_way)  # what leaves has left, too
                if step == 0:
                    _add(places, arriving)
                    home = home or [self._empty(each) for each in found]
                    first, last = self.bounds(piece, self.rank)
                    places = [each[first:last] for each in home]
                    for place, each in zip(places, found, strict=True):
                        place.copy_(each)
                    arriving, under_way = [], []
                    continue
                _add(found, arriving)
                arriving, under_way = self.send(found, self.count(piece, step + 1))
        _wait(under_way)
        _add(places, arriving)
        return home

    def _empty(self, gradient: Tensor) -> Tensor:
        """For the gradients of all own keys."""
        return gradient.new_empty(self.layout.num_keys[self.rank], *gradient.shape[1:])


class _Gathered(_Exchange):
    """All keys on every rank: one message, and one sum of all gradients."""

    def walk(self, own: Own) -> Iterator[Piece]:
        """As of a ring in one piece, and in its order."""
        by_rank = [self._gather(each) for each in own(*self.bounds(0, self.rank))]
        for step in range(self.world):
            source = self.source(step)
            yield Piece(source, 0, [each[source] for each in by_rank])

    def walk_back(self, own: Own, backward: Backward) -> list[Tensor]:
        """As of a ring."""
        gradients = {piece.source: backward(piece) for piece in self.walk(own)}
        summed = []
        for place in range(len(gradients[self.rank])):
            of_all = torch.cat([gradients[source][place] for source in range(self.world)])
            dist.all_reduce(of_all, group=self.layout.group)
            summed.append(of_all.split(self.layout.num_keys)[self.rank])
        return summed

    def _gather(self, own: Tensor) -> Sequence[Tensor]:
        """By rank. Padded to the most rows, for not every backend gathers uneven tensors."""
        most = max(self.layout.num_keys)
        padded = own.new_zeros(most, *own.shape[1:])
        padded[: len(own)] = own
        of_all = [torch.empty_like(padded) for _ in self.layout.num_keys]
        dist.all_gather(of_all, padded, group=self.layout.group)
        return [each[:count] for each, count in zip(of_all, self.layout.num_keys, strict=True)]


def exchange_of(
    layout: Layout, row_bytes: int, device: torch.device, how: Literal["auto", "ring", "gather"]
) -> _Ring | _Gathered:
    """The way that suits keys of so many bytes each; the same on all ranks."""
    if how == "auto":
        how = "gather" if sum(layout.num_keys) * row_bytes <= GATHERED_BYTES else "ring"
    if how == "gather":
        return _Gathered(layout)
    smallest = PIECE_BYTES if device.type == "cpu" else PIECE_BYTES_OF_GPU
    return _Ring(layout, max(1, min(PIECES, max(layout.num_keys) * row_bytes // smallest)))


def _add(to: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """In place, where there is anything to add."""
    for each, other in zip(to, tensors, strict=False):
        each += other


def _wait(under_way: Sequence[dist.Work]) -> None:
    for each in under_way:
        each.wait()
