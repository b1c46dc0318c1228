"""Weight decay that differs from one parameter tensor to the next, around any inner optimiser."""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mim4dd._unroll.checks import check_range
from mim4dd._unroll.optimizers import Optimizer, Seed, State, Step


def one_decay(weight_decay: float | Sequence[float], num_tensors: int) -> float | list[float]:
    """The checked weight decay: one number where it is the same for all parameter tensors."""
    if isinstance(weight_decay, numbers.Real):
        decay = float(weight_decay)
        check_range("weight_decay", decay, 0, math.inf)
        return decay
    if not isinstance(weight_decay, Sequence):
        raise TypeError(
            "weight_decay must be a number or a sequence of them, "
            f"got {type(weight_decay).__name__}"
        )
    decays = list(weight_decay)
    if len(decays) != num_tensors:
        raise ValueError(
            f"weight_decay must be one number, or one for each of the L = {num_tensors} parameter "
            f"tensors, got {len(decays)}"
        )
    for index, decay in enumerate(decays):
        check_range(f"weight_decay[{index}]", decay, 0, math.inf)
    return decays[0] if len(set(decays)) == 1 else decays


@dataclass(frozen=True)
class DecayPerTensor:
    """``inner`` on the gradient + w θ, with a decay w of its own for every parameter tensor."""

    inner: Optimizer
    decay: Tensor  # (P,)

    @classmethod
    def around(
        cls, inner: Optimizer, decays: list[float], sizes: list[int], theta: Tensor
    ) -> "DecayPerTensor":
        """From the decays (L,) of tensors with ``sizes`` elements (L,), like ``theta``."""
        repeated = torch.tensor(decays, dtype=theta.dtype).repeat_interleave(torch.tensor(sizes))
        return cls(inner, repeated.to(theta.device))

    @property
    def num_moments(self) -> int:
        return self.inner.num_moments

    def start(self, theta: Tensor) -> State:
        return self.inner.start(theta)

    def step(self, number: int, state: State, gradient: Tensor, lr: Tensor) -> State:
        return self.inner.step(number, state, self._decayed(gradient, state), lr)

    def step_back(self, adjoint: State, product: Tensor | None, step: Step) -> tuple[State, Seed]:
        step = step._replace(gradient=self._decayed(step.gradient, step.before))
        (theta, *moments), seed = self.inner.step_back(adjoint, product, step)
        # To the inner optimiser the decay is a part of the Hessian: H + diag(w).
        return (torch.addcmul(theta, self.decay, seed.cotangent), *moments), seed

    def _decayed(self, gradient: Tensor, before: State) -> Tensor:
        """The gradient of the loss and of ½ θᵀ diag(w) θ."""
        return torch.addcmul(gradient, self.decay, before[0])
