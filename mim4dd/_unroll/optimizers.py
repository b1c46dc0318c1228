"""The inner optimisers: a step forward, and its adjoint around the second-order product."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""What inner training carries from step to step: θ, then the moments. Each (P,) or (K, P)."""


class Step(NamedTuple):
    """One step that was taken."""

    number: int
    before: State
    after: State
    gradient: Tensor  # like θ
    lr: Tensor  # () or like θ


class Adjoint(Protocol):
    """∂L of the state after the steps already walked back."""

    theta: Tensor  # λ, up to date after begin and end

    def begin(self, product: Tensor | None, step: Step) -> tuple[Tensor, Tensor]:
        """End the step after ``step`` with its product, and start walking back through ``step``.

        Returns:
            ∂L/∂gradient, which the second-order product of this step takes, and ∂L/∂lr.
        """

    def end(self, product: Tensor | None) -> None:
        """End the first step, after which ``theta`` is ∂L/∂θ_0."""


class Optimizer(Protocol):
    """An inner optimiser."""

    @property
    def num_moments(self) -> int:
        """How many tensors a state has beside θ."""

    def start(self, theta: Tensor) -> State:
        """The state before the first step."""

    def step(self, number: int, state: State, gradient: Tensor, lr: Tensor) -> State:
        """The state after a step."""

    def adjoint(self, grad_theta: Tensor) -> Adjoint:
        """The adjoint at the end of training, from ∂L/∂θ_T."""


@dataclass(frozen=True)
class SGD:
    """Gradient descent as :class:`torch.optim.SGD` takes it, without dampening."""

    momentum: float
    weight_decay: float
    nesterov: bool

    @property
    def num_moments(self) -> int:
        return 1 if self.momentum else 0

    def start(self, theta: Tensor) -> State:
        return (theta, torch.zeros_like(theta)) if self.momentum else (theta,)

    def step(self, number: int, state: State, gradient: Tensor, lr: Tensor) -> State:
        direction = gradient + self.weight_decay * state[0] if self.weight_decay else gradient
        if not self.momentum:
            return (state[0] - lr * direction,)
        velocity = self.momentum * state[1] + direction
        direction = direction + self.momentum * velocity if self.nesterov else velocity
        return (state[0] - lr * direction, velocity)

    def adjoint(self, grad_theta: Tensor) -> "SGDAdjoint":
        return SGDAdjoint(self, grad_theta)


class SGDAdjoint:
    """λ and ν of docs/math.md, "The adjoint of SGD"."""

    def __init__(self, optimizer: SGD, grad_theta: Tensor) -> None:
        self.optimizer = optimizer
        self.theta = grad_theta
        self.velocity = torch.zeros_like(grad_theta) if optimizer.momentum else None
        self.cotangent: Tensor | None = None

    def begin(self, product: Tensor | None, step: Step) -> tuple[Tensor, Tensor]:
        self.end(product)
        o = self.optimizer
        d = step.gradient + o.weight_decay * step.before[0]
        u = d
        if o.momentum:
            u = d + o.momentum * step.after[1] if o.nesterov else step.after[1]
        ub = -step.lr * self.theta
        c = ub
        if self.velocity is not None:
            vb = self.velocity + (o.momentum * ub if o.nesterov else ub)
            c = vb + ub if o.nesterov else vb
            self.velocity = o.momentum * vb
        self.cotangent = c
        dlr = -(self.theta * u)
        return c, dlr.sum() if step.lr.dim() == 0 else dlr

    def end(self, product: Tensor | None) -> None:
        if product is not None:
            self.theta = self.theta + product
            if self.cotangent is not None:
                self.theta = self.theta + self.optimizer.weight_decay * self.cotangent
