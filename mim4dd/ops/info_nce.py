"""InfoNCE: public function, checks and operator registration."""

from typing import Any

import torch
from torch import Tensor

from mim4dd import reference
from mim4dd._checks import (
    Backend,
    Reduction,
    check_integer,
    check_rank,
    check_same_device,
    refuse_forward_ad,
)
from mim4dd._library import LIB
from mim4dd.ops._contrastive import check_labels, prepare, reduce_queries

__all__ = ["info_nce"]


def info_nce(
    query: Tensor,  # (N, D)
    key: Tensor,  # (M, D)
    *,
    positive_index: Tensor | None = None,  # (N,)
    labels: Tensor | None = None,  # (N,)
    key_labels: Tensor | None = None,  # (M,)
    temperature: Tensor | float = 0.1,
    reduction: Reduction = "mean",
    normalize: bool = False,
    backend: Backend = None,
) -> Tensor:
    r"""InfoNCE loss of each query against its positive key among all keys.

    .. math::
        \ell_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)}
                 \log \frac{\exp(q_i^\top k_p / \tau)}{\sum_{j=1}^{M} \exp(q_i^\top k_j / \tau)}

    The positives are named by index, or by class: with ``labels`` and ``key_labels``,
    :math:`P(i) = \{j : y_i = y_j\}`. Every key, positives included, stays in the denominator, so
    :math:`\log M - \ell` is a lower bound on the mutual information. Half-precision inputs are
    computed in float32. A query without a positive is left out of mean and sum; its own entry is 0.

    On a GPU the forward is one Triton kernel that never stores the (N, M) logits; the backward, and
    both on a CPU, are plain PyTorch for now and do.

    Args:
        query: Queries. (N, D), floating point
        key: Keys, in dtype and on device of ``query``. (M, D)
        positive_index: Index into ``key`` of each query's positive; default ``arange(N)``. (N,)
        labels: Class of each query, with ``key_labels``, instead of ``positive_index``. (N,)
        key_labels: Class of each key. (M,)
        temperature: Softmax temperature τ > 0; as a 0-d tensor it receives a gradient.
        reduction: ``"mean"`` or ``"sum"`` over the queries that have a positive, or ``"none"``.
        normalize: Scale every row of both sides to unit length first.
        backend: None runs the kernel registered for the device of ``query``; ``"reference"`` the
            plain PyTorch definition.

    Returns:
        Loss in nats, float32 or wider: a scalar, or (N,) for ``reduction="none"``. NaN, never a
        finite number, if a feature that takes part is NaN or infinite.

    Raises:
        ValueError: On a shape, device, index or value that the formula does not cover.
        TypeError: On a dtype that it does not cover.

    Example:
        >>> import torch, mim4dd
        >>> features = torch.eye(3)
        >>> mim4dd.info_nce(features, features, temperature=1.0)
        tensor(0.5514)

    References:
        van den Oord, Li, Vinyals. Representation Learning with Contrastive Predictive Coding.
        arXiv:1807.03748, eq. 4. With labels: Khosla et al., arXiv:2004.11362, eq. 2 (L_out).
    """
    query, key, temperature = prepare(query, key, temperature, reduction, normalize, backend)
    classes, key_classes = _resolve_positives(query, key, positive_index, labels, key_labels)
    if backend == "reference":
        loss, _ = reference.info_nce(query, key, classes, key_classes, temperature)
    else:
        refuse_forward_ad("info_nce", query, key, temperature)
        loss, _ = torch.ops.mim4dd.info_nce(query, key, classes, key_classes, temperature)
    return reduce_queries(loss, labels, key_labels, reduction)


def _resolve_positives(
    query: Tensor,
    key: Tensor,
    positive_index: Tensor | None,
    labels: Tensor | None,
    key_labels: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Express every way of naming positives as labels: an index is a class of its own."""
    if (labels is None) != (key_labels is None):
        raise ValueError("labels and key_labels must be given together")
    if labels is not None and key_labels is not None:
        if positive_index is not None:
            raise ValueError("positive_index and labels exclude each other, got both")
        check_labels(query, key, labels, key_labels)
        return labels, key_labels

    num_queries, num_keys = query.shape[0], key.shape[0]
    every_key = torch.arange(num_keys, device=key.device)
    if positive_index is None:
        if num_keys < num_queries:
            raise ValueError(
                "without positive_index or labels, key i is the positive of query i: "
                f"got {num_queries} queries and only {num_keys} keys"
            )
        return every_key[:num_queries], every_key
    check_rank("positive_index", positive_index, 1)
    check_integer("positive_index", positive_index)
    check_same_device("positive_index", positive_index, "query", query)
    if positive_index.shape[0] != num_queries:
        raise ValueError(
            f"positive_index must hold one index per query, got {positive_index.shape[0]} indices "
            f"and {num_queries} queries"
        )
    lowest, highest = (int(bound) for bound in positive_index.aminmax())
    if lowest < 0 or highest >= num_keys:
        raise ValueError(
            f"positive_index must lie in [0, {num_keys}), got values from {lowest} to {highest}"
        )
    return positive_index, every_key


LIB.define(
    "info_nce(Tensor query, Tensor key, Tensor labels, Tensor key_labels, Tensor temperature)"
    " -> (Tensor loss, Tensor lse)"
)


def _info_nce_cuda(
    query: Tensor, key: Tensor, labels: Tensor, key_labels: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    from mim4dd.kernels.info_nce import info_nce  # imports Triton, so not at the top

    return info_nce(query, key, labels, key_labels, temperature)


LIB.impl("info_nce", reference.info_nce, "CPU")
LIB.impl("info_nce", _info_nce_cuda, "CUDA")


@torch.library.register_fake("mim4dd::info_nce", lib=LIB)
def _fake(
    query: Tensor, key: Tensor, labels: Tensor, key_labels: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    loss = query.new_empty(query.shape[0], dtype=torch.promote_types(query.dtype, torch.float32))
    return loss, torch.empty_like(loss)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_loss: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    # Plain differentiable operations on the inputs alone, so that any further derivative is exact.
    query, key, labels, key_labels, temperature = ctx.saved_tensors
    needs_query, needs_key, _, _, needs_temperature = ctx.needs_input_grad
    logits = reference.contrastive_logits(query, key, temperature)
    positive = (labels[:, None] == key_labels).to(logits.dtype)
    num_positives = positive.sum(1)
    grad_loss = grad_loss * (num_positives > 0)
    target = positive / num_positives.clamp(min=1)[:, None]
    # p − y before the upstream factor: near p = 1 the two cancel, and rounding comes after.
    grad_logits = grad_loss[:, None] * (logits.softmax(1) - target)
    grad_logits = grad_logits + grad_lse[:, None] * logits.softmax(1)
    scaled = grad_logits / temperature
    with torch.autocast(query.device.type, enabled=False):
        grad_query = (scaled @ key.to(scaled.dtype)).to(query.dtype) if needs_query else None
        grad_key = (scaled.T @ query.to(scaled.dtype)).to(key.dtype) if needs_key else None
    grad_temperature = -(scaled * logits).sum() if needs_temperature else None
    return grad_query, grad_key, None, None, grad_temperature


torch.library.register_autograd(
    "mim4dd::info_nce", _backward, setup_context=_setup_context, lib=LIB
)
