"""What the contrastive functions are given, checked and in the form that the op takes."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mim4dd._checks import (
    can_look_at,
    check_finite,
    check_floating,
    check_integer,
    check_matching,
    check_positive,
    check_rank,
    check_same_device,
    check_tensor,
    mix_under_autocast,
    promoted,
)
from mim4dd._torch_private import assert_async
from mim4dd.ops.contrastive.ranks import Across, Group, across
from mim4dd.reference import IGNORE

Features = Tensor | Sequence[Tensor]


class Sides(NamedTuple):
    """Queries (N, D) and keys (M, D) of every layer."""

    query: list[Tensor]
    key: list[Tensor]
    single: bool  # given as one layer, so that results have no layer axis
    num_queries: int  # N
    num_keys: int  # M
    device: torch.device
    dtype: torch.dtype  # what logits are computed in
    across: Across | None  # other ranks' keys count too

    @classmethod
    def of(
        cls, query: list[Tensor], key: list[Tensor], single: bool, across: Across | None = None
    ) -> "Sides":
        """Those of checked features."""
        first = query[0]
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        return cls(query, key, single, first.shape[0], key[0].shape[0], first.device, dtype, across)

    @property
    def first_key(self) -> int:
        """The index of key 0: keys of all ranks are counted, in the order of the ranks."""
        return 0 if self.across is None else self.across.layout.first_key

    def among_all(self, index: Tensor) -> Tensor:
        """Indices of this rank's keys as those among all."""
        if self.across is None:
            return index
        return index.where(index == IGNORE, index + self.first_key)

    def first_keys(self, count: int) -> Tensor:
        """The indices of so many of this rank's keys, from its first on."""
        return torch.arange(self.first_key, self.first_key + count, device=self.device)

    def shaped(self, by_layer: Tensor) -> Tensor:
        """A result (L, …) as the caller expects it."""
        return by_layer.squeeze(0) if self.single else by_layer


class Positives(NamedTuple):
    """Which keys are positives of which queries, in the form that the op takes."""

    labels: Tensor  # (N,) int64
    key_labels: Tensor | None  # (M,) int64


def as_sides(query: Features, key: Features, group: Group | None = None) -> Sides:
    """Check features: (N, D) with (M, D), (L, N, D) with (L, M, D), or sequences of layers.

    Under autocast dtypes may differ, and the widest is taken for all. With a ``group`` its ranks
    tell each other how many rows they have, which may be none.
    """
    queries, keys = _layers("query", query), _layers("key", key)
    if len(queries) != len(keys) or not queries:
        raise ValueError(
            "query and key must hold the same layers, at least one, "
            f"got {len(queries)} and {len(keys)}"
        )
    first = queries[0]
    check_floating("query", first)
    dtype, device, expected, mixed = first.dtype, first.device, None, False
    for of_query, of_key in zip(queries, keys, strict=True):
        for rows in (of_query, of_key):
            if rows.dim() != 2 or rows.dtype != dtype or rows.device != device:
                _check_mixed("key" if rows is of_key else "query", rows, first)
                mixed = True
        num_queries, query_size = of_query.shape
        num_keys, key_size = of_key.shape
        if not query_size * key_size or (group is None and not num_queries * num_keys):
            _refuse_empty(of_query, of_key)
        if query_size != key_size:
            raise ValueError(
                f"query and key must have the same feature size, got {query_size} and {key_size}"
            )
        expected = expected or (num_queries, num_keys)
        if (num_queries, num_keys) != expected:
            raise ValueError(
                "all layers must have the same queries and keys, got "
                f"{expected[0]} and {expected[1]} rows in the first layer, "
                f"{num_queries} and {num_keys} in another"
            )
    if mixed:
        features = promoted(*queries, *keys)
        queries, keys = features[: len(queries)], features[len(queries) :]
    single = isinstance(query, Tensor) and query.dim() == 2
    return Sides.of(queries, keys, single, None if group is None else across(group, queries, keys))


def _layers(name: str, features: Features) -> list[Tensor]:
    if not isinstance(features, Tensor):
        layers = list(features) if isinstance(features, Sequence) else [features]
        for layer in layers:
            check_tensor(name, layer)
        return layers
    if features.dim() == 2:
        return [features]
    if features.dim() == 3:
        return list(features.unbind())
    raise ValueError(
        f"{name} must be (N, D), (L, N, D) or a sequence of (N, D), "
        f"got shape {tuple(features.shape)}"
    )


def _check_mixed(name: str, features: Tensor, first: Tensor) -> None:
    """Require features that go with those of the first layer by autocast."""
    check_rank(name, features, 2)
    if features.device != first.device or not mix_under_autocast(first, features):
        check_matching("query", first, "key" if name == "key" else "that of every layer", features)


def _refuse_empty(query: Tensor, key: Tensor) -> None:
    name, features = ("query", query) if 0 in query.shape else ("key", key)
    raise ValueError(f"{name} must not be empty, got shape {tuple(features.shape)}")


def _check_vector(name: str, vector: Tensor, side: str, rows: int, sides: Sides) -> None:
    """Require one entry for each of the rows of a side."""
    check_rank(name, vector, 1)
    if vector.device != sides.device:
        raise ValueError(
            f"{name} and {side} must be on one device, got {vector.device} and {sides.device}"
        )
    if vector.shape[0] != rows:
        raise ValueError(
            f"{name} must hold one entry per {side}, got {vector.shape[0]} entries and {rows} rows"
        )


def _check_labels(name: str, labels: Tensor, side: str, rows: int, sides: Sides) -> Tensor:
    _check_vector(name, labels, side, rows, sides)
    if labels.dtype == torch.int64:
        return labels
    check_integer(name, labels)
    return labels.long()


def by_label(sides: Sides, labels: Tensor, key_labels: Tensor) -> Positives:
    """Keys of the query's class are its positives."""
    return Positives(
        _check_labels("labels", labels, "query", sides.num_queries, sides),
        _check_labels("key_labels", key_labels, "key", sides.num_keys, sides),
    )


def by_index(sides: Sides, positive_index: Tensor | None) -> Positives:
    """One positive each, by default the key of the same index."""
    num_queries, num_keys = sides.num_queries, sides.num_keys
    if positive_index is None:
        if num_keys < num_queries:
            raise ValueError(
                "without positive_index or labels, key i is the positive of query i: "
                f"got {num_queries} queries and only {num_keys} keys"
            )
        return Positives(sides.first_keys(num_queries), None)
    index = _check_labels("positive_index", positive_index, "query", num_queries, sides)
    _check_indices("positive_index", index, "ignore a query", sides)
    return Positives(sides.among_all(index), None)


def _check_indices(name: str, index: Tensor, what_ignore_does: str, sides: Sides) -> None:
    """Require indices into the keys, or IGNORE."""
    # A number in the text of a graph would compile it anew for every other one.
    bound = "M" if torch.compiler.is_compiling() else str(sides.num_keys)
    allowed = f"{name} must lie in [0, {bound}), or be {IGNORE} to {what_ignore_does}"
    if not can_look_at(index):
        inside = (index >= IGNORE) & (index < sides.num_keys)
        assert_async(inside.all(), allowed)
    elif index.numel():
        lowest, highest = (int(bound) for bound in index.aminmax())
        if lowest < IGNORE or highest >= sides.num_keys:
            raise ValueError(f"{allowed}, got values from {lowest} to {highest}")


def positives_of(
    sides: Sides,
    positive_index: Tensor | None,
    labels: Tensor | None,
    key_labels: Tensor | None,
) -> Positives:
    """Positives by index, or by label where labels are given."""
    if (labels is None) != (key_labels is None):
        raise ValueError("labels and key_labels must be given together")
    if labels is None or key_labels is None:
        return by_index(sides, positive_index)
    if positive_index is not None:
        raise ValueError("positive_index and labels exclude each other, got both")
    return by_label(sides, labels, key_labels)


def masked(
    sides: Sides, positives: Positives, query_mask: Tensor | None, key_mask: Tensor | None
) -> Positives:
    """Leave out queries and keys whose mask is False."""
    if query_mask is None and key_mask is None:
        return positives
    labels, key_labels = positives
    for name, mask, side, rows in (
        ("query_mask", query_mask, "query", sides.num_queries),
        ("key_mask", key_mask, "key", sides.num_keys),
    ):
        if mask is None:
            continue
        _check_vector(name, mask, side, rows, sides)
        if mask.dtype != torch.bool:
            raise TypeError(f"{name} must have dtype torch.bool, got {mask.dtype}")
    if query_mask is not None:
        labels = labels.masked_fill(~query_mask, IGNORE)
    if key_mask is not None:
        if key_labels is None:
            key_labels = sides.first_keys(sides.num_keys)
        key_labels = key_labels.masked_fill(~key_mask, IGNORE)
    return Positives(labels, key_labels)


def as_logit_scale(
    sides: Sides, temperature: Tensor | float, logit_scale: Tensor | float | None
) -> Tensor:
    """What logits are multiplied by, (), in the dtype they are computed in."""
    name, value = (
        ("temperature", temperature) if logit_scale is None else ("logit_scale", logit_scale)
    )
    if isinstance(value, Tensor):
        value = _as_scalar(sides, name, value, check_positive)
        return value.reciprocal() if logit_scale is None else value
    check_positive(name, value)
    return _filled(sides, 1 / value if logit_scale is None else value)


def as_bias(sides: Sides, bias: Tensor | float | None) -> Tensor | None:
    """The bias of a binary critic, (), in the dtype that logits are computed in."""
    if bias is None:
        return None
    if isinstance(bias, Tensor):
        return _as_scalar(sides, "bias", bias, check_finite)
    check_finite("bias", bias)
    return _filled(sides, bias)


def _as_scalar(
    sides: Sides, name: str, value: Tensor, check: Callable[[str, Tensor], None]
) -> Tensor:
    """A tensor of one number as (); one on the CPU goes with features anywhere, as in PyTorch."""
    if value.shape == (1,):
        value = value.squeeze(0)
    elif value.dim():
        raise ValueError(f"{name} must be 0-d, or of shape (1,), got shape {tuple(value.shape)}")
    check_floating(name, value)
    if can_look_at(value):
        check(name, value)
    if value.device.type != "cpu":
        check_same_device(name, value, "query", sides.query[0])
    return value.to(sides.device, sides.dtype)


def _filled(sides: Sides, value: float) -> Tensor:
    dtype, device = sides.dtype, sides.device
    if torch.compiler.is_compiling():
        # A compiled product takes a number as an input. torch.full would be compiled for each anew.
        return torch.ones((), dtype=dtype, device=device) * float(value)
    return torch.full((), float(value), dtype=dtype, device=device)


def check_hardness(hardness: float) -> None:
    """Require a finite number, 0 or more."""
    if type(hardness) is float and 0 <= hardness < math.inf:
        return
    check_finite("hardness", hardness)
    if hardness < 0:
        raise ValueError(f"hardness must not be negative, got {hardness}")


def excluded_keys(
    sides: Sides,
    exclude_self: bool,
    self_index: Tensor | None,  # (N,)
    exclude_index: Tensor | None,  # (N, K)
) -> Tensor | None:
    """Indices of the keys that each query leaves out, (N, K) int64; IGNORE names none."""
    columns = []
    if exclude_self:
        columns.append(_own(sides, self_index))
    elif self_index is not None:
        check_rank("self_index", self_index, 1)
        columns.append(_excluded("self_index", self_index, sides)[:, None])
    if exclude_index is not None:
        check_rank("exclude_index", exclude_index, 2)
        columns.append(_excluded("exclude_index", exclude_index, sides))
    if not columns:
        return None
    excluded = columns[0] if len(columns) == 1 else torch.cat(columns, 1)
    return excluded if excluded.shape[1] else None


def _own(sides: Sides, self_index: Tensor | None) -> Tensor:
    if self_index is not None:
        raise ValueError("exclude_self and self_index both say which key is query i: give one")
    if sides.num_queries != sides.num_keys:
        raise ValueError(
            "exclude_self leaves out key i of query i, so there must be as many keys as queries, "
            f"got {sides.num_keys} keys and {sides.num_queries} queries; self_index names the key"
        )
    return sides.first_keys(sides.num_queries)[:, None]


def _excluded(name: str, index: Tensor, sides: Sides) -> Tensor:
    """Indices into the keys, in rows of which there is one per query."""
    check_integer(name, index)
    check_same_device(name, index, "query", sides.query[0])
    if index.shape[0] != sides.num_queries:
        raise ValueError(
            f"{name} must hold one row per query, "
            f"got {index.shape[0]} rows and {sides.num_queries} queries"
        )
    _check_indices(name, index, "leave out no key", sides)
    return sides.among_all(index.long())
