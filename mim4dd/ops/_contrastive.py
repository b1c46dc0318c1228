"""What every contrastive op does around its kernel: checks before it, the reduction after it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mim4dd._checks import (
    Backend,
    Reduction,
    check_choice,
    check_floating,
    check_integer,
    check_matching,
    check_positive,
    check_rank,
    check_same_device,
)


def check_features(query: Tensor, key: Tensor) -> None:
    """Require queries (N, D) and keys (M, D) that can be compared."""
    for name, features in (("query", query), ("key", key)):
        check_rank(name, features, 2)
        check_floating(name, features)
        if 0 in features.shape:
            raise ValueError(f"{name} must not be empty, got shape {tuple(features.shape)}")
    check_matching("query", query, "key", key)
    if query.shape[1] != key.shape[1]:
        raise ValueError(
            f"query and key must have the same feature size, "
            f"got {query.shape[1]} and {key.shape[1]}"
        )


def check_labels(query: Tensor, key: Tensor, labels: Tensor, key_labels: Tensor) -> None:
    """Require one integer label per query and per key."""
    for name, vector, side, features in (
        ("labels", labels, "query", query),
        ("key_labels", key_labels, "key", key),
    ):
        check_rank(name, vector, 1)
        check_integer(name, vector)
        check_same_device(name, vector, side, features)
        if vector.shape[0] != features.shape[0]:
            raise ValueError(
                f"{name} must hold one label per {side}, "
                f"got {vector.shape[0]} labels and {features.shape[0]} rows"
            )


def as_temperature(temperature: Tensor | float, query: Tensor) -> Tensor:
    """``temperature`` as a 0-d tensor in the dtype the logits are computed in."""
    if isinstance(temperature, Tensor):
        check_rank("temperature", temperature, 0)
        check_floating("temperature", temperature)
        check_same_device("temperature", temperature, "query", query)
    check_positive("temperature", temperature)
    dtype = torch.promote_types(query.dtype, torch.float32)
    return torch.as_tensor(temperature, dtype=dtype, device=query.device)


def prepare(
    query: Tensor,
    key: Tensor,
    temperature: Tensor | float,
    reduction: Reduction,
    normalize: bool,
    backend: Backend,
) -> tuple[Tensor, Tensor, Tensor]:
    """Check what every contrastive op takes; queries, keys and temperature as the formulas do."""
    check_features(query, key)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_choice("backend", backend, (None, "reference"))
    temperature = as_temperature(temperature, query)
    if normalize:
        query, key = unit_rows(query), unit_rows(key)
    return query, key, temperature


def unit_rows(features: Tensor) -> Tensor:
    """Rows scaled to unit length, float32 or wider: in half precision a norm can overflow."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)


def reduce_queries(
    loss: Tensor,  # (N,)
    labels: Tensor | None,  # (N,), None where every query has a positive
    key_labels: Tensor | None,  # (M,)
    reduction: Reduction,
) -> Tensor:
    """Reduce over the queries that have a positive; the loss of the others is already 0."""
    if reduction == "none":
        return loss
    if labels is None or key_labels is None:
        return loss.mean() if reduction == "mean" else loss.sum()
    num_queries = torch.isin(labels, key_labels).sum()
    if num_queries == 0:
        raise ValueError(
            f"labels and key_labels share no class, so none of the {labels.shape[0]} queries has a "
            "positive key and there is nothing to average"
        )
    return loss.sum() / num_queries if reduction == "mean" else loss.sum()
