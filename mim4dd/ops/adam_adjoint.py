"""The adjoint of ``adam_step``: an operator for those who walk a trajectory backwards.

``torch.ops.mim4dd.adam_adjoint`` does everything of a step back but the second-order product H·c,
in one pass over memory. Formulas: docs/math.md, "The adjoint of Adam"; ``reference.adam_adjoint``.

Takes, each (P,) and of one dtype:
    theta_adjoint: λ, as the later step returned it, or dL/dθ_T.
    mean_adjoint, square_adjoint: Those of the later step; None at the last step.
    product: H·c of the later step, still to be added to λ; None at the last step.
    theta, gradient: θ_t and ∇ℓ(θ_t), before any weight decay.
    mean, square: The moments after the step.
    lr: η_t, of 1 element or P.
    step, …, decoupled: As ``adam_step`` took them.

Returns:
    theta_adjoint: dL/dθ_t without H·c, which is the caller's to compute. (P,)
    mean_adjoint, square_adjoint: dL of the moments before the step. (P,)
    cotangent: c, what reaches the gradient, to be multiplied by H and by ∂g/∂x. (P,)
    lr_gradient: dL/dη_t, in the shape of ``lr``.
    squared_norm: ‖dL/dθ_{t+1}‖², with the product. (), float64
"""

from typing import Any

import torch
from torch import Tensor

from mim4dd._library import LIB, expect_compiled
from mim4dd.ops._rules import refuse

LIB.define(
    "adam_adjoint(Tensor theta_adjoint, Tensor? mean_adjoint, Tensor? square_adjoint, "
    "Tensor? product, Tensor theta, Tensor gradient, Tensor mean, Tensor square, Tensor lr, "
    "int step, float beta1=0.9, float beta2=0.999, float eps=1e-8, float eps_root=0.0, "
    "float weight_decay=0.0, bool decoupled=False) -> (Tensor theta_adjoint, Tensor mean_adjoint, "
    "Tensor square_adjoint, Tensor cotangent, Tensor lr_gradient, Tensor squared_norm)"
)
expect_compiled("adam_adjoint", "CPU")
expect_compiled("adam_adjoint", "CUDA")


@torch.library.register_fake("mim4dd::adam_adjoint", lib=LIB)
def _fake(
    theta_adjoint: Tensor,
    mean_adjoint: Tensor | None,
    square_adjoint: Tensor | None,
    product: Tensor | None,
    theta: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    lr: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    vectors = [theta.new_empty(theta_adjoint.shape) for _ in range(4)]
    return *vectors, lr.new_empty(lr.shape), theta.new_empty((), dtype=torch.float64)


refuse("adam_adjoint")
