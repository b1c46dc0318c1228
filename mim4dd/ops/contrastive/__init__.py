"""What every contrastive function does with its checked inputs: the op, and the reduction after it.

``inputs`` checks, ``op`` holds the schemas, ``rules`` the derivatives.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mim4dd import reference
from mim4dd._checks import Backend, Reduction, can_look_at, check_choice
from mim4dd._transforms import active
from mim4dd.ops.contrastive import rules
from mim4dd.ops.contrastive.inputs import Positives, Sides
from mim4dd.ops.contrastive.ranks import Across, Shared, over_ranks
from mim4dd.reference import Contrast, Critic, Reduce, count_queries, reduce_queries

_REDUCTIONS = {"none": Reduce.NONE, "mean": Reduce.MEAN, "sum": Reduce.SUM}


def evaluate(
    sides: Sides,
    positives: Positives,
    logit_scale: Tensor,
    bias: Tensor | None,
    critic: Critic,
    reduction: Reduction,
    backend: Backend,
    excluded: Tensor | None = None,  # (N, K) int64
) -> tuple[Tensor, Contrast]:
    """The reduced loss by layer, (L,) or (L, N), and what it was reduced from, (L, N)."""
    check_choice("reduction", reduction, tuple(_REDUCTIONS))
    check_choice("backend", backend, (None, "reference"))
    shared = *positives, excluded, logit_scale, bias, critic
    if sides.across is not None:
        of_all = Shared(*positives, excluded, logit_scale, bias)
        return _over_ranks(sides.across, sides, of_all, critic, reduction, backend)
    if backend is None:
        return reduced_contrastive(sides.query, sides.key, *shared, reduction)
    of_layers = [
        reference.contrastive(query, key, *shared)
        for query, key in zip(sides.query, sides.key, strict=True)
    ]
    loss, lse = (torch.stack(parts) for parts in list(zip(*of_layers, strict=True))[:2])
    contrast = Contrast(loss, lse, of_layers[0].positive_weight)
    return reduced_loss(contrast, reduction), contrast


def _over_ranks(
    across: Across,
    sides: Sides,
    shared: Shared,
    critic: Critic,
    reduction: Reduction,
    backend: Backend,
) -> tuple[Tensor, Contrast]:
    """The same with the keys of all ranks."""
    if backend is not None:
        raise ValueError(
            f"backend must be None with a group, got {backend!r}: the reference stores all logits, "
            "and those of other ranks' keys are stored nowhere"
        )
    how = _REDUCTIONS[reduction]
    reduced, count, contrast = over_ranks(across, sides.query, sides.key, shared, critic, how)
    if how == Reduce.NONE:
        return contrast.loss, contrast
    check_count(count, sum(across.layout.num_queries))
    return reduced, contrast


def contrastive(
    query: Sequence[Tensor],  # L of (N, D)
    key: Sequence[Tensor],  # L of (M, D)
    labels: Tensor,  # (N,) int64
    key_labels: Tensor | None,  # (M,) int64
    excluded: Tensor | None,  # (N, K) int64
    logit_scale: Tensor,  # ()
    bias: Tensor | None,  # ()
    critic: Critic,
    *,
    uniform: bool,
) -> Contrast:
    """:func:`mim4dd.reference.contrastive` of every layer, by kernels: loss and lse (L, N).

    ``uniform`` announces that all queries of a layer will have the same upstream gradient, as after
    a sum or a mean: then gradients are formed along with the losses, by three matrix products
    instead of four. Where it turns out wrong that costs time, never the result.
    """
    shared = labels, key_labels, excluded, logit_scale, bias
    return reduced_contrastive(query, key, *shared, critic, "none", uniform)[1]


def reduced_contrastive(
    query: Sequence[Tensor],  # L of (N, D)
    key: Sequence[Tensor],  # L of (M, D)
    labels: Tensor,  # (N,) int64
    key_labels: Tensor | None,  # (M,) int64
    excluded: Tensor | None,  # (N, K) int64
    logit_scale: Tensor,  # ()
    bias: Tensor | None,  # ()
    critic: Critic,
    reduction: Reduction,
    uniform: bool | None = None,  # by default, where there is a reduction
) -> tuple[Tensor, Contrast]:
    """The reduced loss of every layer, (L,) or (L, N), and what it was reduced from."""
    query, key = list(query), list(key)
    wanted = rules.NONE_WANTED
    if active() and not torch.compiler.is_compiling():
        if critic.normalize:  # a transform takes the chain rule around the op, not in it
            query = [_unit_rows(rows, labels) for rows in query]
            key = [_unit_rows(rows, key_labels) for rows in key]
            critic = critic._replace(normalize=False)
    elif torch.is_grad_enabled() and (reduction != "none" if uniform is None else uniform):
        wanted = [
            True in [rows.requires_grad for rows in query],
            True in [rows.requires_grad for rows in key],
            logit_scale.requires_grad,
            bias is not None and bias.requires_grad,
        ]
    # As plain numbers: the dispatcher takes 4 µs for an enumerator.
    options = critic.kind.value, *critic[1:], _REDUCTIONS[reduction].value
    shared = labels, key_labels, excluded, logit_scale, bias
    reduced, count, *of_queries = rules.contrastive(query, key, *shared, *options, wanted)
    contrast = Contrast(*of_queries)
    if reduction == "none":
        return contrast.loss, contrast
    check_count(count, len(labels))
    return reduced, contrast


def _unit_rows(rows: Tensor, labels: Tensor | None) -> Tensor:
    return reference.unit_rows(reference.taking_part(rows, labels))[0]


def reduce_all(loss: Tensor, reduction: Reduction) -> Tensor:
    """Reduce over losses that all count."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def check_count(count: Tensor, num_queries: int) -> None:
    """Require queries to reduce over, where that can be seen."""
    if can_look_at(count) and count.item() == 0:
        raise ValueError(
            f"none of the {num_queries} queries has a positive key (with decoupled, both a "
            "positive and a negative one), so there is nothing to reduce; "
            "do labels and key_labels share no class, or are the positives among the keys left out?"
        )


def reduced_loss(contrast: Contrast, reduction: Reduction) -> Tensor:
    """The reduced loss of every layer, (L,), or (L, N)."""
    if reduction == "none":
        return contrast.loss
    count = count_queries(contrast.positive_weight)
    check_count(count, contrast.positive_weight.shape[0])
    return reduce_queries(contrast.loss, count, _REDUCTIONS[reduction])
