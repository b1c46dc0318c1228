"""The inner-loop parameter step: public function, checks and operator registration."""

from typing import Any

import torch
from torch import Tensor

from mim4dd import reference
from mim4dd._checks import (
    Backend,
    check_choice,
    check_matching,
    check_rank,
    refuse_forward_ad,
)
from mim4dd._library import LIB, expect_compiled

__all__ = ["sgd_step"]

_DTYPES = (torch.float32, torch.float64)


def sgd_step(
    theta: Tensor,  # (P,)
    direction: Tensor,  # (P,)
    lr: Tensor,  # () or (P,)
    *,
    backend: Backend = None,
) -> Tensor:
    r"""One step of gradient descent over a flat parameter vector, in one pass over memory.

    .. math:: \theta' = \theta - \eta\, d

    Args:
        theta: Parameters, float32 or float64. (P,)
        direction: What to descend along: the gradient, or a momentum buffer. (P,)
        lr: Step size, one for all or one per parameter, with dtype and device of ``theta``.
            It is read on the device, so a learned step size never makes the host wait. () or (P,)
        backend: None runs the kernel registered for the device of ``theta``; ``"reference"`` the
            plain PyTorch definition.

    Returns:
        The new parameters, a new tensor. (P,)

    Raises:
        ValueError: If the shapes or devices do not fit together.
        TypeError: If the dtypes differ or are not supported.

    Example:
        >>> import torch, mim4dd
        >>> mim4dd.sgd_step(torch.ones(3), torch.tensor([1.0, 2.0, 3.0]), torch.tensor(0.1))
        tensor([0.9000, 0.8000, 0.7000])
    """
    check_rank("theta", theta, 1)
    check_choice("backend", backend, (None, "reference"))
    if theta.dtype not in _DTYPES:
        raise TypeError(f"theta must be float32 or float64, got {theta.dtype}")
    check_matching("theta", theta, "direction", direction)
    check_matching("theta", theta, "lr", lr)
    if direction.shape != theta.shape:
        raise ValueError(
            f"direction must have the shape of theta, got {tuple(direction.shape)} "
            f"and {tuple(theta.shape)}"
        )
    if lr.dim() != 0 and lr.shape != theta.shape:
        raise ValueError(
            f"lr must be 0-d or have the shape of theta {tuple(theta.shape)}, got {tuple(lr.shape)}"
        )
    if backend == "reference":
        return reference.sgd_step(theta, direction, lr)
    refuse_forward_ad("sgd_step", theta, direction, lr)
    return torch.ops.mim4dd.sgd_step(theta, direction, lr)


LIB.define("sgd_step(Tensor theta, Tensor direction, Tensor lr) -> Tensor")
expect_compiled("sgd_step", "CPU")
expect_compiled("sgd_step", "CUDA")


@torch.library.register_fake("mim4dd::sgd_step", lib=LIB)
def _fake(theta: Tensor, direction: Tensor, lr: Tensor) -> Tensor:
    return theta.new_empty(theta.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    _, direction, lr = inputs
    ctx.save_for_backward(direction, lr)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Plain differentiable operations, so that the second and any further derivative is exact too.
    direction, lr = ctx.saved_tensors
    _, needs_direction, needs_lr = ctx.needs_input_grad
    grad_direction = -lr * grad if needs_direction else None
    grad_lr = -(grad * direction).sum_to_size(lr.shape) if needs_lr else None
    return grad, grad_direction, grad_lr


torch.library.register_autograd(
    "mim4dd::sgd_step", _backward, setup_context=_setup_context, lib=LIB
)
