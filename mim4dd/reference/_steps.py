"""Steps of the optimisers and their adjoints: one pass over the parameters each."""

from typing import Any

import torch
from torch import Tensor

from mim4dd.reference._wide import wide


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
    theta, gradient, lr, velocity = wide(theta, gradient, lr, velocity)
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
    theta_adjoint, velocity_adjoint, product, theta, gradient, velocity, lr = wide(
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
    theta, gradient, mean, square, lr = wide(theta, gradient, mean, square, lr)
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
    theta_adjoint, mean_adjoint, square_adjoint, product, theta, gradient, mean, square, lr = wide(
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
