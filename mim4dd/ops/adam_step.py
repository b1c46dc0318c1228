"""The step of Adam and AdamW: an operator for the inner loop.

``torch.ops.mim4dd.adam_step`` takes a whole step of :class:`torch.optim.Adam`, or with
``decoupled`` weight decay of :class:`torch.optim.AdamW`, over a flat vector in one pass over
memory. Formulas: docs/math.md, "The adjoint of Adam"; ``reference.adam_step``.

Takes, each (P,) and of one dtype:
    theta, gradient: θ_t and ∇ℓ(θ_t).
    mean, square: m and s, the moments before the step; zeros before the first.
    lr: η_t, of 1 element or P, read on the device.
    step: Which step this is, counted from 1.
    eps, eps_root: Added outside and inside the square root.

Returns:
    The new θ, m and s, each (P,). Differentiable in every tensor. Where s' and eps_root are 0 the
    square root has no derivative, and what would come through it is 0.
"""

from typing import Any

import torch
from torch import Tensor

import mim4dd.ops.adam_adjoint  # noqa: F401  registers what the backward calls
from mim4dd import reference
from mim4dd._library import LIB, expect_compiled
from mim4dd.ops._rules import declare

LIB.define(
    "adam_step(Tensor theta, Tensor gradient, Tensor mean, Tensor square, Tensor lr, int step, "
    "float beta1=0.9, float beta2=0.999, float eps=1e-8, float eps_root=0.0, "
    "float weight_decay=0.0, bool decoupled=False) -> (Tensor theta, Tensor mean, Tensor square)"
)
expect_compiled("adam_step", "CPU")
expect_compiled("adam_step", "CUDA")


@torch.library.register_fake("mim4dd::adam_step", lib=LIB)
def _fake(theta: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return theta.new_empty(theta.shape), theta.new_empty(theta.shape), theta.new_empty(theta.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    theta, gradient, _, _, lr, *ctx.options = inputs
    ctx.save_for_backward(theta, gradient, *output[1:], lr)


def _backward(
    ctx: Any, grad_theta: Tensor, grad_mean: Tensor, grad_square: Tensor
) -> tuple[Tensor | None, ...]:
    # The reference is plain differentiable operations: any further derivative is exact too.
    adjoint = reference.adam_adjoint if torch.is_grad_enabled() else torch.ops.mim4dd.adam_adjoint
    of_theta, of_mean, of_square, of_gradient, of_lr, _ = adjoint(
        grad_theta, grad_mean, grad_square, None, *ctx.saved_tensors, *ctx.options
    )
    return of_theta, of_gradient, of_mean, of_square, of_lr, *[None] * 7


declare("adam_step", _setup_context, _backward)
