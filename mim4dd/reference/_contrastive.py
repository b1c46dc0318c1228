"""Plain PyTorch definition of every op: the specification that kernels are tested against.

They materialise the (N, M) logits, run on any device and can be differentiated any number of times.
Half precision is computed in float32. docs/math.md derives them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -1  # the label of a query or key that takes no part
_SMALLEST_LENGTH = 1e-12  # shorter rows are divided by this, as in torch.nn.functional.normalize
NO_POSITIVE = -2  # the positive index of a query that only wants its log-sum-exp


class Critic(NamedTuple):
    """Which contrastive loss; one set of options for reference, kernels and ops."""

    kind: str = (
        "out"  # "out", "in": softmax, mean of the positives outside or inside the log; "nce"
    )
    decoupled: bool = False  # positives left out of the softmax's denominator
    exclude_self: bool = False  # key i is query i itself, and no key of it
    hardness: float = 0.0  # α: the logits of negatives are raised by a constant α·q·k
    normalize: bool = False  # rows of both sides are scaled to unit length first


class Contrast(NamedTuple):
    """What every contrastive loss gives per query, each (N,)."""

    loss: Tensor
    lse: Tensor  # log-sum-exp of the logits in the denominator; 0 for "nce"
    positive_weight: Tensor  # 1 / |P(i)|; 0 where the query is left out of mean and sum


def contrastive(
    query: Tensor,  # (N, D)
    key: Tensor,  # (M, D)
    labels: Tensor,  # (N,)
    key_labels: Tensor | None,  # (M,); None: labels are indices into key
    logit_scale: Tensor,  # ()
    bias: Tensor | None = None,  # ()
    critic: Critic = Critic(),  # noqa: B008  immutable
) -> Contrast:
    """The loss of each query against all keys, by the table in docs/math.md.

    s_ij = logit_scale·q_i·k_j. A(i): the keys whose label is not IGNORE, without query i itself
    where ``exclude_self``; P(i) those of them with the query's label. A query labelled IGNORE, one
    without a positive, and with ``decoupled`` one without a negative are left out: their loss is 0.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(dtype), key.to(dtype)
    rows = torch.arange(query.shape[0], device=query.device)
    columns = torch.arange(key.shape[0], device=query.device)
    if key_labels is None:
        key_labels = columns
    query, key = taking_part(query, labels), taking_part(key, key_labels)
    if critic.normalize:
        query, key = unit_rows(query)[0], unit_rows(key)[0]
    valid = (key_labels != IGNORE).expand(len(rows), -1)
    if critic.exclude_self:
        valid = valid & (rows[:, None] != columns)
    positive = valid & (labels[:, None] == key_labels)
    negative = valid & ~positive

    with torch.autocast(query.device.type, enabled=False):  # it would multiply in half precision
        similarity = query @ key.T
    logits = logit_scale * similarity
    # exp(-inf) = 0 would hide an infinite key behind a finite loss.
    logits = logits.masked_fill(~logits.isfinite(), math.nan)
    # Constant: it moves the weights of the negatives, as if they occurred more often.
    logits = logits + (critic.hardness * similarity.detach()).where(negative, 0)
    if critic.kind == "nce":
        loss, lse, counted = _nce(logits, positive, negative, bias)
    else:
        loss, lse, counted = _softmax(logits, positive, negative, critic)

    ignored = labels == IGNORE
    counted = counted & ~ignored
    num_positives = positive.sum(1).clamp(min=1).to(dtype)
    return Contrast(
        # lse * 0 rather than 0, so that a NaN survives in a row that has no positive.
        loss.where(counted, logits.where(valid, 0).sum(1) * 0).masked_fill(ignored, 0),
        lse.masked_fill(ignored, 0),
        (1 / num_positives).where(counted, 0),
    )


def taking_part(rows: Tensor, labels: Tensor | None) -> Tensor:
    """Rows (N, D) with 0 where they are ignored: there may be anything, NaN too."""
    return rows if labels is None else rows.where((labels != IGNORE)[:, None], 0)


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (…, D) scaled to unit length, float32 or wider, and their length (…, 1).

    As :func:`torch.nn.functional.normalize`, but of rows of any finite size: there the square of a
    large element is infinite, and the row becomes 0.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    # A power of two, so that nothing is rounded; a constant, since it leaves the result alone.
    finfo = torch.finfo(rows.dtype)
    largest = rows.detach().abs().amax(-1, keepdim=True).clamp(min=finfo.tiny)
    size = largest.log2().floor().clamp(max=math.log2(finfo.max) - 2).exp2()
    length = _length(rows / size) * size
    return rows / length.clamp(min=_SMALLEST_LENGTH), length


def _length(rows: Tensor) -> Tensor:
    """Of rows (…, D), as (…, 1); its derivatives are 0 at a row of zeros."""
    square = rows.square().sum(-1, keepdim=True)
    return square.where(square > 0, 1).sqrt().where(square > 0, 0)


def unit_rows_bwd(of_unit: Tensor, unit: Tensor, length: Tensor) -> Tensor:
    """The gradient of rows from that of :func:`unit_rows`."""
    along = (of_unit * unit).sum(-1, keepdim=True).where(length > _SMALLEST_LENGTH, 0)
    return (of_unit - unit * along) / length.clamp(min=_SMALLEST_LENGTH)


def _log_sum_exp(logits: Tensor, among: Tensor) -> Tensor:
    """Over the ``among`` of each row, (N,); −inf, with gradient 0, where there is none."""
    some = among.any(1)
    # An empty row keeps all its logits: the gradient of a logsumexp over nothing is NaN.
    lse = logits.masked_fill(~among & some[:, None], -math.inf).logsumexp(1)
    return lse.where(some, -math.inf)


def _softmax(
    logits: Tensor, positive: Tensor, negative: Tensor, critic: Critic
) -> tuple[Tensor, Tensor, Tensor]:
    """lse over the denominator minus what the positives give; that lse; which rows count."""
    num_positives = positive.sum(1)
    counted = num_positives > 0
    lse = _log_sum_exp(logits, negative if critic.decoupled else positive | negative)
    if critic.decoupled:
        counted = counted & negative.any(1)
    divisor = num_positives.clamp(min=1).to(logits.dtype)
    if critic.kind == "out":
        attraction = logits.where(positive, 0).sum(1) / divisor
    else:
        attraction = _log_sum_exp(logits, positive).where(counted, 0) - divisor.log()
    return lse.where(counted, 0) - attraction, lse, counted


def _nce(
    logits: Tensor, positive: Tensor, negative: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """−Σ_P log h − Σ_{A∖P} log(1 − h), h = σ(s + bias); zeros; which rows count.

    Without a ``bias`` it is −log(N_i / |A(i)|), with N_i negatives, at least 1.
    """
    if bias is None:
        num_negatives = negative.sum(1, keepdim=True).clamp(min=1).to(logits.dtype)
        num_keys = (positive | negative).sum(1, keepdim=True).clamp(min=1)
        bias = -(num_negatives / num_keys).log()
    # Not softplus, which PyTorch replaces by its asymptote from 20 on.
    terms = -F.logsigmoid((logits + bias).where(positive, -(logits + bias)))
    loss = terms.where(positive | negative, 0).sum(1)
    return loss, torch.zeros_like(loss), positive.any(1)


def mi_lower_bound(loss: Tensor, labels: Tensor, key_labels: Tensor) -> Tensor:
    """log M − InfoNCE, in nats: the mutual information that the losses (…, N) certify.

    Each class counts by its share of the keys, not of the queries: then a query is one drawn for a
    random key, whose M − 1 others are marginal negatives (docs/math.md, "The bound"). Keys of
    classes without a query are not counted in M. So it never passes the entropy of the shares, at
    most log C.
    """
    taking_part = labels != IGNORE
    per_class = taking_part * _count(labels, key_labels) / _count(labels, labels)  # (N,)
    num_keys = (torch.isin(key_labels, labels) & (key_labels != IGNORE)).sum()
    return num_keys.to(loss.dtype).log() - (per_class * loss).sum(-1) / per_class.sum()


def _count(values: Tensor, among: Tensor) -> Tensor:
    """How often each value occurs in ``among``, in O(N + M) memory."""
    ordered = among.sort().values
    first = torch.searchsorted(ordered, values.contiguous())
    return torch.searchsorted(ordered, values.contiguous(), right=True) - first


def sgd_step(
    theta: Tensor,
    gradient: Tensor,
    lr: Tensor,
    velocity: Tensor | None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Any:
    """θ' (P,), and with ``velocity`` v' (P,) too; see :func:`mim4dd.sgd_step`."""
    dtype = theta.dtype
    theta, gradient, lr, velocity = _wide(theta, gradient, lr, velocity)
    direction = gradient + weight_decay * theta if weight_decay else gradient
    if velocity is None:
        return (theta - lr * direction).to(dtype)
    velocity = momentum * velocity + direction
    direction = direction + momentum * velocity if nesterov else velocity
    return (theta - lr * direction).to(dtype), velocity.to(dtype)


def sgd_adjoint(
    theta_adjoint: Tensor,
    velocity_adjoint: Tensor | None,
    product: Tensor | None,
    theta: Tensor,
    gradient: Tensor,
    velocity: Tensor | None,
    lr: Tensor,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> tuple[Tensor, ...]:
    """λ, ν, cotangent, lr gradient, ‖λ‖² of one step back; see mim4dd/ops/sgd_adjoint.py."""
    like, lr_shape = theta, lr.shape
    theta_adjoint, velocity_adjoint, product, theta, gradient, velocity, lr = _wide(
        theta_adjoint, velocity_adjoint, product, theta, gradient, velocity, lr
    )
    adjoint = theta_adjoint if product is None else theta_adjoint + product
    direction = gradient + weight_decay * theta if weight_decay else gradient
    if velocity is not None:
        direction = direction + momentum * velocity if nesterov else velocity
    of_direction = -lr * adjoint
    of_velocity = momentum * of_direction if nesterov else of_direction
    if velocity_adjoint is not None:
        of_velocity = of_velocity + velocity_adjoint
    cotangent = of_velocity + of_direction if nesterov else of_velocity
    carried = adjoint + weight_decay * cotangent if weight_decay else adjoint
    return (
        carried.to(like.dtype),
        like.new_empty(0) if velocity is None else (momentum * of_velocity).to(like.dtype),
        cotangent.to(like.dtype),
        -(adjoint * direction).sum_to_size(lr_shape).to(like.dtype),
        adjoint.double().square().sum(),
    )


def adam_step(
    theta: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    lr: Tensor,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """θ', m', s', each (P,); see mim4dd/ops/adam_step.py."""
    dtype = theta.dtype
    theta, gradient, mean, square, lr = _wide(theta, gradient, mean, square, lr)
    if weight_decay and not decoupled:
        gradient = gradient + weight_decay * theta
    mean = beta1 * mean + (1 - beta1) * gradient
    square = beta2 * square + (1 - beta2) * gradient.square()
    root = (square / (1 - beta2**step) + eps_root).sqrt()
    direction = mean / ((1 - beta1**step) * (root + eps))
    kept = theta * (1 - lr * weight_decay) if weight_decay and decoupled else theta
    return (kept - lr * direction).to(dtype), mean.to(dtype), square.to(dtype)


def adam_adjoint(
    theta_adjoint: Tensor,
    mean_adjoint: Tensor | None,
    square_adjoint: Tensor | None,
    product: Tensor | None,
    theta: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    lr: Tensor,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> tuple[Tensor, ...]:
    """λ, those of m and s, cotangent, lr gradient, ‖λ‖²; see mim4dd/ops/adam_adjoint.py."""
    dtype, lr_shape = theta.dtype, lr.shape
    theta_adjoint, mean_adjoint, square_adjoint, product, theta, gradient, mean, square, lr = _wide(
        theta_adjoint, mean_adjoint, square_adjoint, product, theta, gradient, mean, square, lr
    )
    adjoint = theta_adjoint if product is None else theta_adjoint + product
    if weight_decay and not decoupled:
        gradient = gradient + weight_decay * theta
    root = (square / (1 - beta2**step) + eps_root).sqrt()
    scale = 1 / ((1 - beta1**step) * (root + eps))
    direction, of_direction = mean * scale, -lr * adjoint
    curvature = 2 * (root + eps) * root * (1 - beta2**step)
    of_square = -of_direction * direction / curvature
    of_square = torch.where(root == 0, torch.zeros_like(of_square), of_square)
    of_mean = of_direction * scale
    if mean_adjoint is not None and square_adjoint is not None:
        of_mean, of_square = of_mean + mean_adjoint, of_square + square_adjoint
    cotangent = (1 - beta1) * of_mean + 2 * (1 - beta2) * of_square * gradient
    carried = adjoint
    if weight_decay:
        decay = -lr * adjoint if decoupled else cotangent
        carried = adjoint + weight_decay * decay
        direction = direction + weight_decay * theta if decoupled else direction
    lr_gradient = -(adjoint * direction).sum_to_size(lr_shape)
    results = carried, beta1 * of_mean, beta2 * of_square, cotangent, lr_gradient
    return *(result.to(dtype) for result in results), adjoint.double().square().sum()


def _wide(*tensors: Tensor | None) -> Any:
    """The tensors in at least float32: half precision is stored, never computed in."""
    return [
        None if tensor is None else tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        for tensor in tensors
    ]


def norm_relu_pool(
    input: Tensor,  # (B, C, H, W)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    num_groups: int,
    pool: int,
    eps: float,
) -> Tensor:
    """avg_pool(relu(group_norm(input))); see :func:`mim4dd.norm_relu_pool`."""
    wide = torch.promote_types(input.dtype, torch.float32)
    scale, shift = (None if part is None else part.to(wide) for part in (weight, bias))
    maps = F.group_norm(input.to(wide), num_groups, scale, shift, eps).relu()
    return F.avg_pool2d(maps, pool).to(input.dtype)


def trajectory_loss(theta_T: Tensor, theta_0: Tensor, theta_target: Tensor) -> Tensor:
    """‖θ_T − θ*‖² / ‖θ_0 − θ*‖² per row; see :func:`mim4dd.trajectory_loss`."""
    end, start, target = _wide(theta_T, theta_0, theta_target)
    loss = (end - target).square().sum(-1) / (start - target).square().sum(-1)
    return loss.to(theta_T.dtype)


def trajectory_loss_bwd(
    theta_T: Tensor, theta_0: Tensor, theta_target: Tensor, grad: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of :func:`trajectory_loss`, differentiable in turn."""
    end, start, target, upstream = _wide(theta_T, theta_0, theta_target, grad)
    left, gone = end - target, start - target
    moved = gone.square().sum(-1, keepdim=True)
    scale = 2 * upstream.unsqueeze(-1) / moved
    of_end = scale * left
    of_start = -scale * left.square().sum(-1, keepdim=True) / moved * gone
    gradients = of_end, of_start, -(of_end + of_start)
    return tuple(gradient.to(theta_T.dtype) for gradient in gradients)


def scatter_add_rows(out: Tensor, rows: Tensor, source: Tensor, scale: float = 1.0) -> None:
    """out[rows[b]] += scale·source[b], b by b; see mim4dd/ops/scatter_add_rows.py."""
    for row, term in zip(rows.tolist(), source, strict=True):
        wide_row, wide_term = _wide(out[row], term)
        out[row] = (wide_row + scale * wide_term).to(out.dtype)


def unroll_sgd(
    call: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    image_syn: Tensor,
    label_syn: Tensor,
    batches: Tensor,
    lr: Tensor,
    momentum: float = 0.0,
    weight_decay: Tensor | float = 0.0,  # () or (P,)
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
