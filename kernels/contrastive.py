"""Triton launchers of the contrastive losses: forward, gradients, second derivatives.

Two back-ends, chosen for each layer by :func:`fuses`. Fused: the logits stay in registers, all such
layers share one launch, and the gradients recompute them, 10·N·M·D operations in all; 12 where they
are asked for apart from the losses, and a query has one positive. The plain cases of that along
with the losses take 8, or 10 with few instructions, in _single_positive.py and by label in
_grouped.py. Chunked: cuBLAS makes the logits of some queries at a time, and both gradients come
from the same logits, 6·N·M·D. No number is added atomically: every result has the same bits each
time.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mim4dd.kernels import (
    _chunked,
    _forward,
    _gradient,
    _grouped,
    _rows,
    _single_positive,
    _tangent,
)
from mim4dd.kernels._ahead_of_time import Compilation
from mim4dd.kernels._chunked import chunk_pass
from mim4dd.kernels._forward import fused_forward
from mim4dd.kernels._gradient import fused_backward
from mim4dd.kernels._inputs import Found, Layers, Queries, packed, prepare
from mim4dd.kernels._tangent import tangent_pass
from mim4dd.kernels._tiles import RESIDENT_D, operands, precision_of
from mim4dd.reference import Critic, Kind, Reduce, count_queries, reduce_queries

SMALL = 2**27  # multiply-adds that cost less than the launches of the chunked back-end


def fuses(query: Tensor, key: Tensor) -> bool:
    """Whether a layer is fused: what is narrow enough for tensor cores, and all that is small."""
    (N, D), M = query.shape, key.shape[0]
    multiplier = operands(query.dtype, precision_of(query.dtype))
    return N * M * D <= SMALL or (multiplier in ("half", "tf32") and D <= RESIDENT_D)


def contrastive(
    query: Sequence[Tensor],  # L layers of (N, D)
    key: Sequence[Tensor],  # L layers of (M, D)
    labels: Tensor,  # (N,)
    key_labels: Tensor | None,  # (M,)
    excluded: Tensor | None,  # (N, K)
    logit_scale: Tensor,  # ()
    bias: Tensor | None,  # ()
    kind: int,
    decoupled: bool,
    hardness: float,
    normalize: bool,
    reduction: int,
    gradients: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """Reduced loss (L,) and the number of its queries, loss and lse (L, N), positive weight (N,),
    gradients of the reduced or else summed losses, not rounded to half precision yet.
    """
    critic = Critic(Kind(kind), decoupled, hardness, normalize)
    queries = prepare(key[0], labels, key_labels, excluded, logit_scale, bias, critic)
    fused = [layer for layer in range(len(query)) if fuses(query[layer], key[layer])]
    loss, lse = (queries.weight.new_empty(len(query), len(labels)) for _ in range(2))
    how, count = Reduce(reduction), count_queries(queries.weight)
    share = count if how == Reduce.MEAN else None
    found = [Found()] * len(query)
    if fused:
        layers = packed([query[i] for i in fused], [key[i] for i in fused], critic)
        losses, sums, parts = fused_pass(layers, queries, critic, gradients, share)
        if len(fused) == len(query):
            loss, lse, found = losses, sums, parts
        else:
            # One by one: a list of places would be copied to the device, for which the host waits.
            for row, layer in enumerate(fused):
                loss[layer], lse[layer], found[layer] = losses[row], sums[row], parts[row]
    for i in range(len(query)):
        if i not in fused:
            found[i] = chunk_pass(
                query[i], key[i], queries, critic, gradients, lse[i], loss[i], None, None, share
            )
    reduced = loss.new_empty(0) if how == Reduce.NONE else reduce_queries(loss, count, how)
    return reduced, count, loss, lse, queries.weight, in_order(found, gradients)


def fused_pass(
    layers: Layers,
    queries: Queries,
    critic: Critic,
    gradients: Sequence[bool],
    share: Tensor | None,
) -> tuple[Tensor, Tensor, list[Found]]:
    """Loss and lse, (L, N), and the wanted gradients of the summed losses, by ``share``."""
    for kernels in (_single_positive, _grouped):
        if kernels.serves(layers, queries, critic):
            return kernels.launch(layers, queries, gradients, share)
    loss, lse, positives = fused_forward(layers, queries, critic)
    if not any(gradients):
        return loss, lse, [Found()] * len(layers.sizes)
    of_each = torch.ones_like(lse)
    upstream = lse, of_each if share is None else of_each / share, None
    found = fused_backward(layers, queries, critic, *upstream, gradients, lse.dtype, positives)
    return loss, lse, found


def contrastive_bwd(
    query: Sequence[Tensor],  # L layers of (N, D)
    key: Sequence[Tensor],  # L layers of (M, D)
    labels: Tensor,  # (N,)
    key_labels: Tensor | None,  # (M,)
    excluded: Tensor | None,  # (N, K)
    logit_scale: Tensor,  # ()
    bias: Tensor | None,  # ()
    kind: int,
    decoupled: bool,
    hardness: float,
    normalize: bool,
    lse: Tensor,  # (L, N)
    positive_weight: Tensor,  # (N,)
    grad_loss: Tensor,  # (L, N)
    grad_lse: Tensor | None,  # (L, N)
    gradients: Sequence[bool],
) -> list[Tensor]:
    """The wanted of grad_query and grad_key of each layer, grad_scale and grad_bias (L,)."""
    critic = Critic(Kind(kind), decoupled, hardness, normalize)
    queries = prepare(
        key[0], labels, key_labels, excluded, logit_scale, bias, critic, positive_weight
    )
    lse = lse.contiguous()
    fused = [layer for layer in range(len(query)) if fuses(query[layer], key[layer])]
    found = [Found()] * len(query)
    if fused:
        layers = packed([query[i] for i in fused], [key[i] for i in fused], critic)
        rows = [
            part
            if part is None or len(fused) == len(query)
            else torch.stack([part[i] for i in fused])
            for part in (lse, grad_loss, grad_lse)
        ]
        parts = fused_backward(layers, queries, critic, *rows, gradients, query[0].dtype)
        for i, part in zip(fused, parts, strict=True):
            found[i] = part
    for i in range(len(query)):
        if i not in fused:
            upstream = (grad_loss[i], None if grad_lse is None else grad_lse[i])
            found[i] = chunk_pass(
                query[i], key[i], queries, critic, gradients, lse[i], None, *upstream
            )
    return in_order(found, gradients)


def contrastive_bwd_bwd(
    query: Sequence[Tensor],  # L layers of (N, D)
    key: Sequence[Tensor],  # L layers of (M, D)
    labels: Tensor,  # (N,)
    key_labels: Tensor | None,  # (M,)
    excluded: Tensor | None,  # (N, K)
    logit_scale: Tensor,  # ()
    bias: Tensor | None,  # ()
    kind: int,
    decoupled: bool,
    hardness: float,
    normalize: bool,
    lse: Tensor,  # (L, N)
    positive_weight: Tensor,  # (N,)
    grad_loss: Tensor,  # (L, N)
    grad_lse: Tensor | None,  # (L, N)
    tangent_query: Sequence[Tensor],  # L layers of (N, D)
    tangent_key: Sequence[Tensor],  # L layers of (M, D)
    tangent_scale: Tensor,  # (L,)
    tangent_bias: Tensor,  # (L,)
    gradients: Sequence[bool],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Derivatives of ⟨first-order gradients, tangents⟩ by grad_loss, by grad_lse and by the inputs.

    Chunked for every D. Rows are given as they are compared, so ``normalize`` is False.
    """
    critic = Critic(Kind(kind), decoupled, hardness, normalize)
    queries = prepare(
        key[0], labels, key_labels, excluded, logit_scale, bias, critic, positive_weight
    )
    lse = lse.contiguous()
    grad_grad_loss, grad_grad_lse = torch.empty_like(lse), torch.empty_like(lse)
    found = [
        tangent_pass(
            (query[i], key[i]),
            (tangent_query[i], tangent_key[i]),
            queries,
            critic,
            lse[i],
            grad_loss[i],
            None if grad_lse is None else grad_lse[i],
            tangent_scale[i],
            None if bias is None else tangent_bias[i],
            gradients,
            grad_grad_loss[i],
            grad_grad_lse[i],
        )
        for i in range(len(query))
    ]
    return grad_grad_loss, grad_grad_lse, in_order(found, gradients)


def in_order(found: Sequence[Found], gradients: Sequence[bool]) -> list[Tensor]:
    """The schema's list: every layer's query, every layer's key, the scalars by layer."""
    result = []
    for name, wanted in zip(Found._fields, gradients, strict=True):
        parts = [part for layer in found if (part := getattr(layer, name)) is not None]
        if wanted and name in ("scale", "bias"):
            parts = [torch.stack(parts)]
        if wanted:
            result += parts
    return result


def compilations() -> Iterator[Compilation]:
    """Every kernel; float16 takes what bfloat16 does and is left out."""
    for module in (_forward, _single_positive, _grouped, _gradient, _rows, _chunked, _tangent):
        yield from module.compilations()
