"""The unroll of a trajectory, its loss, and where its gradients are gathered."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mim4dd.reference._steps import sgd_step
from mim4dd.reference._wide import wide


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

    ``call(theta, images)`` is the model, ``augment(images, step)`` the augmentation of a step,
    which may return the batch several times over.
    """
    velocity = torch.zeros_like(theta)
    for step, rows in enumerate(batches):
        images = image_syn[rows] if augment is None else augment(image_syn[rows], step)
        labels = torch.cat([label_syn[rows]] * (len(images) // len(rows)))
        value = loss(call(theta, images), labels)
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        velocity = momentum * velocity + gradient + weight_decay * theta
        theta = sgd_step(theta, velocity, lr[step] if lr.shape == (len(batches),) else lr)
    return theta


def trajectory_loss(theta_T: Tensor, theta_0: Tensor, theta_target: Tensor) -> Tensor:
    """‖θ_T − θ*‖² / ‖θ_0 − θ*‖² per row; see :func:`mim4dd.trajectory_loss`."""
    end, start, target = wide(theta_T, theta_0, theta_target)
    loss = (end - target).square().sum(-1) / (start - target).square().sum(-1)
    return loss.to(theta_T.dtype)


def trajectory_loss_bwd(
    theta_T: Tensor, theta_0: Tensor, theta_target: Tensor, grad: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of :func:`trajectory_loss`, differentiable in turn."""
    end, start, target, upstream = wide(theta_T, theta_0, theta_target, grad)
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
        wide_row, wide_term = wide(out[row], term)
        out[row] = (wide_row + scale * wide_term).to(out.dtype)
