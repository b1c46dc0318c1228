"""Which keys a query leaves out: itself, and others that are named."""

import torch
from torch import Tensor

from mim4dd._checks import can_look_at, check_integer, check_rank, check_same_device
from mim4dd._torch_private import assert_async
from mim4dd.ops._contrastive import Layers, number_of_keys
from mim4dd.reference import IGNORE


def excluded_keys(
    layers: Layers,
    exclude_self: bool,
    self_index: Tensor | None,  # (N,)
    exclude_index: Tensor | None,  # (N, K)
) -> Tensor | None:
    """Indices of the keys that each query leaves out, (N, K) int64; IGNORE names none."""
    columns = []
    if exclude_self:
        columns.append(_own(layers, self_index))
    elif self_index is not None:
        check_rank("self_index", self_index, 1)
        columns.append(_checked("self_index", self_index, layers)[:, None])
    if exclude_index is not None:
        check_rank("exclude_index", exclude_index, 2)
        columns.append(_checked("exclude_index", exclude_index, layers))
    if not columns:
        return None
    excluded = columns[0] if len(columns) == 1 else torch.cat(columns, 1)
    return excluded if excluded.shape[1] else None


def _own(layers: Layers, self_index: Tensor | None) -> Tensor:
    if self_index is not None:
        raise ValueError("exclude_self and self_index both say which key is query i: give one")
    if layers.num_queries != layers.num_keys:
        raise ValueError(
            "exclude_self leaves out key i of query i, so there must be as many keys as queries, "
            f"got {layers.num_keys} keys and {layers.num_queries} queries; self_index names the key"
        )
    return torch.arange(layers.num_queries, device=layers.device)[:, None]


def _checked(name: str, index: Tensor, layers: Layers) -> Tensor:
    """Indices into the keys, in rows of which there is one per query."""
    check_integer(name, index)
    check_same_device(name, index, "query", layers.query[0])
    if index.shape[0] != layers.num_queries:
        raise ValueError(
            f"{name} must hold one row per query, "
            f"got {index.shape[0]} rows and {layers.num_queries} queries"
        )
    allowed = (
        f"{name} must lie in [0, {number_of_keys(layers)}), or be {IGNORE} to leave out no key"
    )
    if not index.numel():
        return index.long()
    if can_look_at(index):
        lowest, highest = (int(bound) for bound in index.aminmax())
        if lowest < IGNORE or highest >= layers.num_keys:
            raise ValueError(f"{allowed}, got values from {lowest} to {highest}")
    else:
        inside = (index >= IGNORE) & (index < layers.num_keys)
        assert_async(inside.all(), allowed)
    return index.long()
