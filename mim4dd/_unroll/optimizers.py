"""The inner optimisers: a step forward, and its adjoint around the second-order product."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import mim4dd.ops.adam_step
import mim4dd.ops.sgd_adjoint
import mim4dd.ops.sgd_step  # noqa: F401  all three register operators
from mim4dd._torch_private import below_autograd

State = tuple[Tensor, ...]
"""What inner training carries from step to step: θ, then the moments. Each (P,) or (K, P)."""


class Step(NamedTuple):
    """One step that was taken."""

    number: int
    before: State
    after: State
    gradient: Tensor  # like θ
    lr: Tensor  # () or (P,)


class Seed(NamedTuple):
    """What one step back starts with."""

    cotangent: Tensor  # ∂L/∂gradient, like θ: the second-order product of the step takes it
    lr_gradient: Tensor  # ∂L/∂lr, like lr
    squared_norm: Tensor  # ‖∂L/∂θ‖² after the step, () or (K,)


class Optimizer(Protocol):
    """An inner optimiser."""

    @property
    def num_moments(self) -> int:
        """How many tensors a state has beside θ."""

    def start(self, theta: Tensor) -> State:
        """The state before the first step."""

    def step(self, number: int, state: State, gradient: Tensor, lr: Tensor) -> State:
        """The state after a step."""

    def step_back(self, adjoint: State, product: Tensor | None, step: Step) -> tuple[State, Seed]:
        """Walk back through all of a step but its second-order product.

        Args:
            adjoint: ∂L/∂state after the step; of the last step ∂L/∂θ_T alone.
            product: The second-order product of the step after this one, which its own walk left
                for this one to add; None where there is none.
            step: The step.
        """


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
        theta, velocity = state if self.momentum else (*state, None)
        new = _by_trajectory(
            torch.ops.mim4dd.sgd_step.default, theta, gradient, lr, velocity, *self._options()
        )
        return new if self.momentum else new[:1]

    def step_back(self, adjoint: State, product: Tensor | None, step: Step) -> tuple[State, Seed]:
        velocity = step.after[1] if self.momentum else None
        theta_adjoint, velocity_adjoint, cotangent, lr_gradient, squared_norm = _by_trajectory(
            torch.ops.mim4dd.sgd_adjoint.default,
            *_filled(adjoint, 2), product, step.before[0], step.gradient, velocity, step.lr,
            *self._options(),
        )  # fmt: skip
        before = (theta_adjoint, velocity_adjoint) if self.momentum else (theta_adjoint,)
        return before, _seed(cotangent, lr_gradient, squared_norm, step.lr)

    def _options(self) -> tuple[Any, ...]:
        return self.momentum, self.weight_decay, self.nesterov


@dataclass(frozen=True)
class Adam:
    """:class:`torch.optim.Adam`, or with ``decoupled`` weight decay AdamW."""

    beta1: float
    beta2: float
    eps: float
    eps_root: float
    weight_decay: float
    decoupled: bool

    @property
    def num_moments(self) -> int:
        return 2

    def start(self, theta: Tensor) -> State:
        return theta, torch.zeros_like(theta), torch.zeros_like(theta)

    def step(self, number: int, state: State, gradient: Tensor, lr: Tensor) -> State:
        theta, *moments = state
        inputs = (theta, gradient, *moments, lr, *self._options(number))
        return _by_trajectory(torch.ops.mim4dd.adam_step.default, *inputs)

    def step_back(self, adjoint: State, product: Tensor | None, step: Step) -> tuple[State, Seed]:
        *before, cotangent, lr_gradient, squared_norm = _by_trajectory(
            torch.ops.mim4dd.adam_adjoint.default,
            *_filled(adjoint, 3), product, step.before[0], step.gradient, *step.after[1:], step.lr,
            *self._options(step.number),
        )  # fmt: skip
        return tuple(before), _seed(cotangent, lr_gradient, squared_norm, step.lr)

    def _options(self, number: int) -> tuple[Any, ...]:
        return (
            number + 1, self.beta1, self.beta2, self.eps, self.eps_root, self.weight_decay,
            self.decoupled,
        )  # fmt: skip


def _by_trajectory(op: Callable[..., tuple[Tensor, ...]], *args: Any) -> tuple[Tensor, ...]:
    """An operator over flat vectors (P,), for each of K trajectories where those are (K, P)."""
    with below_autograd():
        if args[0].dim() == 1:
            return op(*args)
        rows = [
            op(*(arg[k] if isinstance(arg, Tensor) and arg.dim() == 2 else arg for arg in args))
            for k in range(args[0].shape[0])
        ]
    return tuple(torch.stack(results) for results in zip(*rows, strict=True))


def _filled(adjoint: State, size: int) -> tuple[Tensor | None, ...]:
    """The adjoint with None for the moments that nothing has come back to yet."""
    return (*adjoint, *[None] * (size - len(adjoint)))


def _seed(cotangent: Tensor, lr_gradient: Tensor, squared_norm: Tensor, lr: Tensor) -> Seed:
    # All trajectories share their step sizes.
    return Seed(cotangent, lr_gradient.sum_to_size(lr.shape), squared_norm)
