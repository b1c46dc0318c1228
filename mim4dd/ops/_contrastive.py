"""What every contrastive function does around the op: checks before it, the reduction after it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mim4dd import reference
from mim4dd._checks import (
    Backend,
    Reduction,
    can_look_at,
    check_choice,
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
from mim4dd.ops._reduction import reduced_loss
from mim4dd.ops.contrastive import reduced_contrastive
from mim4dd.reference import IGNORE, Contrast, Critic

Features = Tensor | Sequence[Tensor]


class Layers(NamedTuple):
    """Queries (N, D) and keys (M, D) of every layer."""

    query: list[Tensor]
    key: list[Tensor]
    single: bool  # given as one layer, so that results have no layer axis

    @property
    def num_queries(self) -> int:
        """N."""
        return self.query[0].shape[0]

    @property
    def num_keys(self) -> int:
        """M."""
        return self.key[0].shape[0]

    @property
    def device(self) -> torch.device:
        """Where all of them are."""
        return self.query[0].device

    @property
    def dtype(self) -> torch.dtype:
        """What logits are computed in."""
        return torch.promote_types(self.query[0].dtype, torch.float32)


class Positives(NamedTuple):
    """Which keys are positives of which queries, in the form that the op takes."""

    labels: Tensor  # (N,) int64
    key_labels: Tensor | None  # (M,) int64


def as_layers(query: Features, key: Features) -> Layers:
    """Check features: (N, D) with (M, D), (L, N, D) with (L, M, D), or sequences of layers.

    Under autocast dtypes may differ, and the widest is taken for all.
    """
    layers = Layers(
        _side("query", query),
        _side("key", key),
        single=isinstance(query, Tensor) and query.dim() == 2,
    )
    if len(layers.query) != len(layers.key) or not layers.query:
        raise ValueError(
            "query and key must hold the same layers, at least one, "
            f"got {len(layers.query)} and {len(layers.key)}"
        )
    first = layers.query[0]
    check_floating("query", first)
    expected, mixed = None, False
    for layer_query, layer_key in zip(layers.query, layers.key, strict=True):
        num_queries, query_size = _check_features("query", layer_query, first)
        num_keys, key_size = _check_features("key", layer_key, first)
        mixed = mixed or not layer_query.dtype == layer_key.dtype == first.dtype
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
        features = promoted(*layers.query, *layers.key)
        half = len(layers.query)
        return layers._replace(query=features[:half], key=features[half:])
    return layers


def _side(name: str, features: Features) -> list[Tensor]:
    if not isinstance(features, Tensor):
        side = list(features) if isinstance(features, Sequence) else [features]
        for layer in side:
            check_tensor(name, layer)
        return side
    if features.dim() == 2:
        return [features]
    if features.dim() == 3:
        return list(features.unbind())
    raise ValueError(
        f"{name} must be (N, D), (L, N, D) or a sequence of (N, D), "
        f"got shape {tuple(features.shape)}"
    )


def _check_features(name: str, features: Tensor, first: Tensor) -> torch.Size:
    """The shape of features that fit those of the first layer."""
    check_rank(name, features, 2)
    if features.device != first.device or (
        features.dtype != first.dtype and not mix_under_autocast(first, features)
    ):
        check_matching("query", first, "key" if name == "key" else "that of every layer", features)
    shape = features.shape
    if 0 in shape:
        raise ValueError(f"{name} must not be empty, got shape {tuple(shape)}")
    return shape


def _check_per_row(name: str, vector: Tensor, side: str, rows: int, layers: Layers) -> None:
    check_rank(name, vector, 1)
    if vector.device != layers.device:
        raise ValueError(
            f"{name} and {side} must be on one device, got {vector.device} and {layers.device}"
        )
    if vector.shape[0] != rows:
        raise ValueError(
            f"{name} must hold one entry per {side}, got {vector.shape[0]} entries and {rows} rows"
        )


def by_label(layers: Layers, labels: Tensor, key_labels: Tensor) -> Positives:
    """Keys of the query's class are its positives."""
    for name, vector, side, rows in (
        ("labels", labels, "query", layers.num_queries),
        ("key_labels", key_labels, "key", layers.num_keys),
    ):
        check_rank(name, vector, 1)
        check_integer(name, vector)
        _check_per_row(name, vector, side, rows, layers)
    return Positives(labels.long(), key_labels.long())


def by_index(layers: Layers, positive_index: Tensor | None) -> Positives:
    """One positive each, by default the key of the same index."""
    num_queries, num_keys = layers.num_queries, layers.num_keys
    if positive_index is None:
        if num_keys < num_queries:
            raise ValueError(
                "without positive_index or labels, key i is the positive of query i: "
                f"got {num_queries} queries and only {num_keys} keys"
            )
        return Positives(torch.arange(num_queries, device=layers.device), None)
    check_rank("positive_index", positive_index, 1)
    check_integer("positive_index", positive_index)
    _check_per_row("positive_index", positive_index, "query", num_queries, layers)
    if can_look_at(positive_index):
        lowest, highest = (int(bound) for bound in positive_index.aminmax())
        if lowest < IGNORE or highest >= num_keys:
            raise ValueError(
                f"positive_index must lie in [0, {num_keys}), or be {IGNORE} to ignore a query, "
                f"got values from {lowest} to {highest}"
            )
    else:
        allowed = (positive_index >= IGNORE) & (positive_index < num_keys)
        bound = number_of_keys(layers)
        assert_async(allowed.all(), f"positive_index must lie in [0, {bound}), or be -1")
    return Positives(positive_index.long(), None)


def number_of_keys(layers: Layers) -> str:
    """For a message. A number in the text of a graph would compile it anew for every other one."""
    return "M" if torch.compiler.is_compiling() else str(layers.num_keys)


def positives_of(
    layers: Layers,
    positive_index: Tensor | None,
    labels: Tensor | None,
    key_labels: Tensor | None,
) -> Positives:
    """Positives by index, or by label where labels are given."""
    if (labels is None) != (key_labels is None):
        raise ValueError("labels and key_labels must be given together")
    if labels is None or key_labels is None:
        return by_index(layers, positive_index)
    if positive_index is not None:
        raise ValueError("positive_index and labels exclude each other, got both")
    return by_label(layers, labels, key_labels)


def masked(
    layers: Layers, positives: Positives, query_mask: Tensor | None, key_mask: Tensor | None
) -> Positives:
    """Leave out queries and keys whose mask is False."""
    labels, key_labels = positives
    for name, mask, side, rows in (
        ("query_mask", query_mask, "query", layers.num_queries),
        ("key_mask", key_mask, "key", layers.num_keys),
    ):
        if mask is None:
            continue
        check_rank(name, mask, 1)
        if mask.dtype != torch.bool:
            raise TypeError(f"{name} must have dtype torch.bool, got {mask.dtype}")
        _check_per_row(name, mask, side, rows, layers)
    if query_mask is not None:
        labels = labels.masked_fill(~query_mask, IGNORE)
    if key_mask is not None:
        if key_labels is None:
            key_labels = torch.arange(layers.num_keys, device=layers.device)
        key_labels = key_labels.masked_fill(~key_mask, IGNORE)
    return Positives(labels, key_labels)


def as_logit_scale(
    layers: Layers, temperature: Tensor | float, logit_scale: Tensor | float | None
) -> Tensor:
    """What logits are multiplied by, (), in the dtype they are computed in."""
    name, value = (
        ("temperature", temperature) if logit_scale is None else ("logit_scale", logit_scale)
    )
    if isinstance(value, Tensor):
        value = _as_scalar(layers, name, value, check_positive)
        return value.reciprocal() if logit_scale is None else value
    check_positive(name, value)
    return _filled(layers, 1 / value if logit_scale is None else value)


def as_bias(layers: Layers, bias: Tensor | float | None) -> Tensor | None:
    """The bias of a binary critic, (), in the dtype that logits are computed in."""
    if bias is None:
        return None
    if isinstance(bias, Tensor):
        return _as_scalar(layers, "bias", bias, check_finite)
    check_finite("bias", bias)
    return _filled(layers, bias)


def _as_scalar(
    layers: Layers, name: str, value: Tensor, check: Callable[[str, Tensor], None]
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
        check_same_device(name, value, "query", layers.query[0])
    return value.to(layers.device, layers.dtype)


def _filled(layers: Layers, value: float) -> Tensor:
    dtype, device = layers.dtype, layers.device
    if torch.compiler.is_compiling():
        # A compiled product takes a number as an input. torch.full would be compiled for each anew.
        return torch.ones((), dtype=dtype, device=device) * float(value)
    return torch.full((), float(value), dtype=dtype, device=device)


def check_hardness(hardness: float) -> None:
    """Require a finite number, 0 or more."""
    check_finite("hardness", hardness)
    if hardness < 0:
        raise ValueError(f"hardness must not be negative, got {hardness}")


def evaluate(
    layers: Layers,
    positives: Positives,
    logit_scale: Tensor,
    bias: Tensor | None,
    critic: Critic,
    reduction: Reduction,
    backend: Backend,
    excluded: Tensor | None = None,  # (N, K) int64
) -> tuple[Tensor, Contrast]:
    """The reduced loss, () or by layer (L,), and what it was reduced from, (N,) or (L, N)."""
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_choice("backend", backend, (None, "reference"))
    shared = *positives, excluded, logit_scale, bias, critic
    if backend == "reference":
        of_layers = [
            reference.contrastive(query, key, *shared)
            for query, key in zip(layers.query, layers.key, strict=True)
        ]
        loss, lse = (torch.stack(parts) for parts in list(zip(*of_layers, strict=True))[:2])
        contrast = Contrast(loss, lse, of_layers[0].positive_weight)
        reduced = reduced_loss(contrast, reduction)
    else:
        reduced, contrast = reduced_contrastive(layers.query, layers.key, *shared, reduction)
    if layers.single:
        reduced = reduced.squeeze(0)
        contrast = contrast._replace(loss=contrast.loss.squeeze(0), lse=contrast.lse.squeeze(0))
    return reduced, contrast
