"""The trajectory-matching loss: public function, checks and operator registration."""

from typing import Any

import torch
from torch import Tensor

from mim4dd import reference
from mim4dd._checks import (
    Backend,
    can_look_at,
    check_choice,
    check_floating,
    check_matching,
)
from mim4dd._library import LIB, expect_compiled
from mim4dd._transforms import one_by_one, register_vmap
from mim4dd.ops._rules import declare, only, refuse

__all__ = ["trajectory_loss"]


def trajectory_loss(
    theta_T: Tensor,  # (P,) or (K, P)
    theta_0: Tensor,  # (P,) or (K, P)
    theta_target: Tensor,  # (P,) or (K, P)
    *,
    backend: Backend = None,
) -> Tensor:
    r"""How far the student ended from the expert, relative to how far the expert went.

    .. math:: \|\theta_T - \theta^*\|^2 \,/\, \|\theta_0 - \theta^*\|^2

    1 means no progress, 0 a perfect match. One pass over memory, and one for all gradients; summed
    in float64 in a fixed order. Differentiable in all three, any number of times. Under torch.func
    and forward mode it is computed by the plain formula, like for ``backend="reference"``.

    Args:
        theta_T: Parameters of the student after its T steps, or those of K students, one per row.
            (P,) or (K, P), floating point
        theta_0: Parameters that student and expert started from, in the shape of ``theta_T``.
        theta_target: Parameters that the expert reached, in the shape of ``theta_T``.
        backend: None runs the kernel registered for the device of ``theta_T``; ``"reference"`` the
            plain PyTorch definition.

    Returns:
        The loss, dimensionless, in the dtype of the parameters: a scalar, or one per row. (K,)

    Raises:
        ValueError: If shapes or devices differ, or an expert did not move. On a GPU and
            compiled nothing looks at values: then that loss is infinite, or NaN if the student
            ended there too.
        TypeError: If the dtypes differ.

    Example:
        >>> import torch, mim4dd
        >>> start, target = torch.zeros(4), torch.ones(4)
        >>> mim4dd.trajectory_loss(torch.full((4,), 0.5), start, target)
        tensor(0.2500)

    References:
        Cazenavette et al. Dataset Distillation by Matching Training Trajectories.
        arXiv:2203.11932, eq. 2.
    """
    check_floating("theta_T", theta_T)
    if theta_T.dim() not in (1, 2):
        raise ValueError(f"theta_T must be (P,) or (K, P), got shape {tuple(theta_T.shape)}")
    for name, theta in (("theta_0", theta_0), ("theta_target", theta_target)):
        check_matching("theta_T", theta_T, name, theta)
        if theta.shape != theta_T.shape:
            raise ValueError(
                f"{name} must have the shape of theta_T, "
                f"got {tuple(theta.shape)} and {tuple(theta_T.shape)}"
            )
    check_choice("backend", backend, (None, "reference"))
    if backend == "reference":
        return reference.trajectory_loss(theta_T, theta_0, theta_target)
    loss, _, moved = _loss(theta_T, theta_0, theta_target)
    if moved is not None and can_look_at(moved) and not moved.all():
        raise ValueError("theta_target must differ from theta_0: the expert did not move")
    return loss


# Beside the loss both squared distances, which the gradients are made of.
LIB.define(
    "trajectory_loss(Tensor theta_T, Tensor theta_0, Tensor theta_target) "
    "-> (Tensor loss, Tensor numerator, Tensor denominator)"
)
# The gradients of the first `count` arguments; the others are empty.
LIB.define(
    "trajectory_loss_bwd(Tensor theta_T, Tensor theta_0, Tensor theta_target, Tensor numerator, "
    "Tensor denominator, Tensor grad, int count) "
    "-> (Tensor grad_theta_T, Tensor grad_theta_0, Tensor grad_theta_target)"
)
for _op in ("trajectory_loss", "trajectory_loss_bwd"):
    expect_compiled(_op, "CPU")
    expect_compiled(_op, "CUDA")


@torch.library.register_fake("mim4dd::trajectory_loss", lib=LIB)
def _fake(theta_T: Tensor, theta_0: Tensor, theta_target: Tensor) -> tuple[Tensor, ...]:
    shape = theta_T.shape[:-1]
    sums = (theta_T.new_empty(shape, dtype=torch.float64) for _ in range(2))
    return theta_T.new_empty(shape), *sums


@torch.library.register_fake("mim4dd::trajectory_loss_bwd", lib=LIB)
def _fake_bwd(theta_T: Tensor, *others: Any) -> tuple[Tensor, ...]:
    count = others[-1]
    return tuple(theta_T.new_empty(theta_T.shape if k < count else 0) for k in range(3))


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    theta_T, theta_0, theta_target, *sums = ctx.saved_tensors
    if torch.is_grad_enabled():  # plain differentiable operations, for any further derivative
        return reference.trajectory_loss_bwd(theta_T, theta_0, theta_target, grad)
    wanted = ctx.needs_input_grad[:3]
    count = 1 + max(k for k in range(3) if wanted[k])
    gradients = torch.ops.mim4dd.trajectory_loss_bwd(
        theta_T, theta_0, theta_target, *sums, grad, count
    )
    return tuple(only(wanted, gradients))


def _formula(*thetas: Tensor) -> tuple[Tensor, None, None]:
    return reference.trajectory_loss(*thetas), None, None


_loss = declare("trajectory_loss", _setup_context, _backward, vmap=one_by_one, formula=_formula)
refuse("trajectory_loss_bwd")
register_vmap(torch.ops.mim4dd.trajectory_loss_bwd.default)
