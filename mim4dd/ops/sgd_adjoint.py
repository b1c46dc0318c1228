"""The adjoint of ``sgd_step``: an operator for those who walk a trajectory backwards.

``torch.ops.mim4dd.sgd_adjoint`` does everything of a step back but the second-order product H·c, in
one pass over memory. Formulas: docs/math.md, "The adjoint of SGD"; ``reference.sgd_adjoint``.

Takes, each (P,) and of one dtype:
    theta_adjoint: λ, as the later step returned it, or dL/dθ_T.
    velocity_adjoint: ν of the later step; None at the last step.
    product: H·c of the later step, still to be added to λ; None at the last step.
    theta, gradient: θ_t and ∇ℓ(θ_t).
    velocity: v_{t+1}, that after the step; None without momentum.
    lr: η_t, of 1 element or P.

Returns:
    theta_adjoint: dL/dθ_t without H·c, which is the caller's to compute. (P,)
    velocity_adjoint: dL/dv_t; empty without momentum. (P,)
    cotangent: c, what reaches the gradient, to be multiplied by H and by ∂g/∂x. (P,)
    lr_gradient: dL/dη_t, in the shape of ``lr``.
    squared_norm: ‖dL/dθ_{t+1}‖², with the product. (), float64
"""

from typing import Any

import torch
from torch import Tensor

from mim4dd._library import LIB, expect_compiled
from mim4dd._transforms import register_vmap
from mim4dd.ops._rules import refuse

LIB.define(
    "sgd_adjoint(Tensor theta_adjoint, Tensor? velocity_adjoint, Tensor? product, Tensor theta, "
    "Tensor gradient, Tensor? velocity, Tensor lr, float momentum=0.0, float weight_decay=0.0, "
    "bool nesterov=False) -> (Tensor theta_adjoint, Tensor velocity_adjoint, Tensor cotangent, "
    "Tensor lr_gradient, Tensor squared_norm)"
)
expect_compiled("sgd_adjoint", "CPU")
expect_compiled("sgd_adjoint", "CUDA")


@torch.library.register_fake("mim4dd::sgd_adjoint", lib=LIB)
def _fake(
    theta_adjoint: Tensor,
    velocity_adjoint: Tensor | None,
    product: Tensor | None,
    theta: Tensor,
    gradient: Tensor,
    velocity: Tensor | None,
    lr: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    shape = theta_adjoint.shape
    return (
        theta.new_empty(shape),
        theta.new_empty(0 if velocity is None else shape),
        theta.new_empty(shape),
        lr.new_empty(lr.shape),
        theta.new_empty((), dtype=torch.float64),
    )


refuse("sgd_adjoint")
register_vmap(torch.ops.mim4dd.sgd_adjoint.default)
