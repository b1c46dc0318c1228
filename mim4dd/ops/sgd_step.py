"""The inner-loop parameter step: public function, checks and operator registration."""

from typing import Any, overload

import torch
from torch import Tensor

import mim4dd.ops.sgd_adjoint  # noqa: F401  registers what the backward calls
from mim4dd import reference
from mim4dd._checks import (
    Backend,
    check_choice,
    check_matching,
    check_not_negative,
    check_rank,
    check_tensor,
)
from mim4dd._library import LIB, expect_compiled
from mim4dd._transforms import one_by_one
from mim4dd.ops._rules import declare

__all__ = ["sgd_step"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@overload
def sgd_step(
    theta: Tensor,
    gradient: Tensor,
    lr: Tensor,
    *,
    weight_decay: float = ...,
    backend: Backend = ...,
) -> Tensor: ...


@overload
def sgd_step(
    theta: Tensor,
    gradient: Tensor,
    lr: Tensor,
    *,
    velocity: Tensor,
    momentum: float,
    weight_decay: float = ...,
    nesterov: bool = ...,
    backend: Backend = ...,
) -> tuple[Tensor, Tensor]: ...


def sgd_step(
    theta: Tensor,  # (P,)
    gradient: Tensor,  # (P,)
    lr: Tensor,  # () or (P,)
    *,
    velocity: Tensor | None = None,  # (P,)
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    backend: Backend = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""One step of :class:`torch.optim.SGD` over a flat parameter vector, in one pass over memory.

    .. math::
        d &= g + w\,\theta \\
        v' &= \mu v + d \\
        \theta' &= \theta - \eta\, v' \quad\text{(nesterov: } \theta - \eta\,(d + \mu v')\text{)}

    Differentiable in every tensor, any number of times. Half precision is computed in float32.
    Under torch.func and forward mode it is the plain formula, like for ``backend="reference"``.

    Args:
        theta: Parameters. (P,), float16, bfloat16, float32 or float64
        gradient: Their gradient, or what else to descend along. (P,)
        lr: Step size η, one for all or one per parameter, with dtype and device of ``theta``; one
            for all may be on the CPU.
            It is read on the device, so a learned step size never makes the host wait. () or (P,)
        velocity: v, zeros before the first step; only with momentum. (P,)
        momentum: μ ≥ 0.
        weight_decay: w ≥ 0.
        nesterov: Take Nesterov's form of momentum.
        backend: None runs the kernel registered for the device of ``theta``; ``"reference"`` the
            plain PyTorch definition.

    Returns:
        The new parameters, a new tensor (P,); with ``velocity`` the new velocity (P,) beside them.

    Raises:
        ValueError: If shapes, devices or options do not fit together.
        TypeError: If the dtypes differ or are not supported.

    Example:
        >>> import torch, mim4dd
        >>> theta, gradient, lr = torch.ones(3), torch.tensor([1.0, 2.0, 3.0]), torch.tensor(0.1)
        >>> mim4dd.sgd_step(theta, gradient, lr)
        tensor([0.9000, 0.8000, 0.7000])
        >>> mim4dd.sgd_step(theta, gradient, lr, velocity=torch.ones(3), momentum=0.5)
        (tensor([0.8500, 0.7500, 0.6500]), tensor([1.5000, 2.5000, 3.5000]))
    """
    check_rank("theta", theta, 1)
    check_choice("backend", backend, (None, "reference"))
    if theta.dtype not in _DTYPES:
        raise TypeError(f"theta must be float16, bfloat16, float32 or float64, got {theta.dtype}")
    check_tensor("lr", lr)
    if lr.device != theta.device and lr.dim() == 0 and lr.device.type == "cpu":
        lr = lr.to(theta.device)  # as in PyTorch, it goes with tensors anywhere
    check_matching("theta", theta, "lr", lr)
    for name, tensor in (("gradient", gradient), ("velocity", velocity)):
        if tensor is not None:
            check_matching("theta", theta, name, tensor)
            if tensor.shape != theta.shape:
                raise ValueError(
                    f"{name} must have the shape of theta, got {tuple(tensor.shape)} "
                    f"and {tuple(theta.shape)}"
                )
    if lr.dim() != 0 and lr.shape != theta.shape:
        raise ValueError(
            f"lr must be 0-d or have the shape of theta {tuple(theta.shape)}, got {tuple(lr.shape)}"
        )
    check_not_negative("momentum", momentum)
    check_not_negative("weight_decay", weight_decay)
    if nesterov and not momentum:
        raise ValueError(f"nesterov needs momentum > 0, got {momentum}")
    if momentum and velocity is None:
        raise ValueError(f"momentum {momentum} needs a velocity: zeros before the first step")
    step = _formula if backend == "reference" else _step
    new_theta, new_velocity = step(theta, gradient, lr, velocity, momentum, weight_decay, nesterov)
    return new_theta if velocity is None else (new_theta, new_velocity)


# The velocity is empty where none comes in.
LIB.define(
    "sgd_step(Tensor theta, Tensor gradient, Tensor lr, Tensor? velocity=None, "
    "float momentum=0.0, float weight_decay=0.0, bool nesterov=False) "
    "-> (Tensor theta, Tensor velocity)"
)
expect_compiled("sgd_step", "CPU")
expect_compiled("sgd_step", "CUDA")


@torch.library.register_fake("mim4dd::sgd_step", lib=LIB)
def _fake(
    theta: Tensor, gradient: Tensor, lr: Tensor, velocity: Tensor | None = None, *_: float
) -> tuple[Tensor, Tensor]:
    return theta.new_empty(theta.shape), theta.new_empty(0 if velocity is None else theta.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    theta, gradient, lr, velocity, *ctx.options = inputs
    ctx.save_for_backward(theta, gradient, lr, None if velocity is None else output[1])


def _backward(
    ctx: Any, grad_theta: Tensor, grad_velocity: Tensor
) -> tuple[Tensor | float | None, ...]:
    theta, gradient, lr, new_velocity = ctx.saved_tensors
    # The reference is plain differentiable operations: any further derivative is exact too.
    adjoint = reference.sgd_adjoint if torch.is_grad_enabled() else torch.ops.mim4dd.sgd_adjoint
    of_theta, of_velocity, of_gradient, of_lr, _ = adjoint(
        grad_theta,
        None if new_velocity is None else grad_velocity,
        None,
        theta,
        gradient,
        new_velocity,
        lr,
        *ctx.options,
    )
    return of_theta, of_gradient, of_lr, None if new_velocity is None else of_velocity, *[None] * 3


def _formula(
    theta: Tensor, gradient: Tensor, lr: Tensor, velocity: Tensor | None, *options: Any
) -> tuple[Tensor, Any]:
    result = reference.sgd_step(theta, gradient, lr, velocity, *options)
    return (result, None) if isinstance(result, Tensor) else result


_step = declare("sgd_step", _setup_context, _backward, vmap=one_by_one, formula=_formula)
