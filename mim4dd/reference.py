"""Plain PyTorch definition of every op: the specification that kernels are tested against.

The contrastive definitions share one notation: queries q (N, D), keys k (M, D), logits
s_ij = q_i·k_j / τ, and positives P(i) = {j : labels_i = key_labels_j}. They materialise the (N, M)
logits, run on any device and can be differentiated any number of times. Half precision is computed
in float32. docs/math.md derives them.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_logits(query: Tensor, key: Tensor, temperature: Tensor | float) -> Tensor:
    """s (N, M), with NaN wherever a logit is not finite."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):  # it would multiply in half precision
        logits = query.to(dtype) @ key.to(dtype).T / temperature
    # exp(-inf) = 0 would hide an infinite key behind a finite loss.
    return logits.masked_fill(~logits.isfinite(), math.nan)


def info_nce(
    query: Tensor, key: Tensor, labels: Tensor, key_labels: Tensor, temperature: Tensor | float
) -> tuple[Tensor, Tensor]:
    """lse_j s_ij − mean_{P(i)} s_ij, and lse_j s_ij: both (N,). The loss is 0 where P(i) is empty.

    See :func:`mim4dd.info_nce`; with several positives this is :func:`mim4dd.sup_con`'s ``"out"``.
    """
    logits = contrastive_logits(query, key, temperature)
    positive = labels[:, None] == key_labels  # (N, M)
    num_positives = positive.sum(1)
    lse = logits.logsumexp(1)
    mean_positive = logits.where(positive, 0).sum(1) / num_positives.clamp(min=1)
    # lse * 0 rather than 0, so that a NaN survives in a row that has no positive.
    return torch.where(num_positives > 0, lse - mean_positive, lse * 0), lse


def sup_con_in(
    query: Tensor, key: Tensor, labels: Tensor, key_labels: Tensor, temperature: Tensor | float
) -> Tensor:
    """lse_j s_ij − lse_{P(i)} s_ij + log|P(i)|, (N,); 0 where P(i) is empty.

    See :func:`mim4dd.sup_con`, variant ``"in"``.
    """
    logits = contrastive_logits(query, key, temperature)
    positive = labels[:, None] == key_labels
    num_positives = positive.sum(1)
    has_positive = num_positives > 0
    # An empty row keeps all its logits: the gradient of a logsumexp over nothing is NaN.
    lse_positive = logits.where(positive | ~has_positive[:, None], -math.inf).logsumexp(1)
    lse = logits.logsumexp(1)
    loss = lse - lse_positive + num_positives.clamp(min=1).to(lse.dtype).log()
    return torch.where(has_positive, loss, lse * 0)


def nce(
    query: Tensor,
    key: Tensor,
    labels: Tensor,
    key_labels: Tensor,
    temperature: Tensor | float,
    bias: Tensor | float | None,
) -> Tensor:
    """−Σ_{P(i)} log h_ij − Σ_{j∉P(i)} log(1 − h_ij), h = σ(s + bias), (N,); 0 where P(i) is empty.

    ``bias=None`` is −log(N_i / M), with N_i negatives (at least 1) of M. See :func:`mim4dd.nce`.
    """
    logits = contrastive_logits(query, key, temperature)
    positive = labels[:, None] == key_labels
    if bias is None:
        num_negatives = (~positive).sum(1, keepdim=True).clamp(min=1).to(logits.dtype)
        logits = logits - (num_negatives / key.shape[0]).log()
    else:
        logits = logits + bias
    loss = F.softplus(logits.where(~positive, -logits)).sum(1)
    return loss.where(positive.any(1), loss * 0)


def mi_lower_bound(loss: Tensor, labels: Tensor, key_labels: Tensor) -> Tensor:
    """log M − InfoNCE, in nats: the mutual information that the losses (N,) certify.

    Each class counts by its share of the keys, not of the queries: then a query is one drawn for a
    random key, whose M − 1 others are marginal negatives (docs/math.md, "The bound"). Keys of
    classes without a query are not counted in M. So it never passes the entropy of the shares, at
    most log C.
    """
    per_class = _count(labels, key_labels) / _count(labels, labels)  # (N,)
    num_keys = torch.isin(key_labels, labels).sum()
    return num_keys.to(loss.dtype).log() - (per_class * loss).sum() / per_class.sum()


def _count(values: Tensor, among: Tensor) -> Tensor:
    """How often each value occurs in ``among``, in O(N + M) memory."""
    ordered = among.sort().values
    first = torch.searchsorted(ordered, values.contiguous())
    return torch.searchsorted(ordered, values.contiguous(), right=True) - first


def sgd_step(theta: Tensor, direction: Tensor, lr: Tensor) -> Tensor:
    """θ − lr·direction over (P,); see :func:`mim4dd.sgd_step`."""
    return theta - lr * direction


def trajectory_loss(theta_T: Tensor, theta_0: Tensor, theta_target: Tensor) -> Tensor:
    """‖θ_T − θ*‖² / ‖θ_0 − θ*‖²; see :func:`mim4dd.trajectory_loss`."""
    return (theta_T - theta_target).square().sum() / (theta_0 - theta_target).square().sum()


def unroll_sgd(
    call: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    image_syn: Tensor,
    label_syn: Tensor,
    batches: Tensor,
    lr: Tensor,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    augment: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor:
    """θ_T (P,) by the graph of all T steps, which grows with T; see :func:`mim4dd.unroll_sgd`.

    ``call(theta, images)`` is the model, ``augment(images, step)`` the augmentation of a step.
    """
    velocity = torch.zeros_like(theta)
    for step, rows in enumerate(batches):
        images = image_syn[rows] if augment is None else augment(image_syn[rows], step)
        value = loss(call(theta, images), label_syn[rows])
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        velocity = momentum * velocity + gradient + weight_decay * theta
        theta = sgd_step(theta, velocity, lr[step] if lr.shape == (len(batches),) else lr)
    return theta
