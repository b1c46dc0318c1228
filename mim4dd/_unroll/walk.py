"""The walk back through inner training, one adjoint step after another."""

from dataclasses import dataclass

import torch
from torch import Tensor

import mim4dd.ops.scatter_add_rows  # noqa: F401  registers the operator
from mim4dd._unroll.optimizers import Optimizer, State, Step
from mim4dd._unroll.step_sizes import StepSizes
from mim4dd._unroll.steps import Linearization, Steps


@dataclass
class Gathered:
    """What the inputs of the unroll have got so far; None where it is not wanted."""

    images: Tensor | None  # (n, ...)
    labels: Tensor | None  # (n, C)
    lr: Tensor | None  # like the table of the step sizes


class Walk:
    """From ∂L/∂θ_T to what everything before it gets.

    Args:
        optimizer: The inner optimiser.
        steps: The data and the network of every step.
        step_sizes: The step sizes.
        kept: Steps that need not be recomputed; each is dropped once it has been walked through.
        gathered: What to add to.
        tesla: Leave λ as it is, as TESLA does.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps: Steps,
        step_sizes: StepSizes,
        kept: dict[int, Linearization],
        gathered: Gathered,
        *,
        tesla: bool,
    ) -> None:
        self.optimizer = optimizer
        self.steps = steps
        self.step_sizes = step_sizes
        self.kept = kept
        self.gathered = gathered
        self.tesla = tesla

    def start(self, grad_theta_T: Tensor, theta_T: Tensor) -> None:
        """Stand at the end of training."""
        self.adjoint: State = (grad_theta_T,)
        self.after: State = (theta_T,)  # with its moments, but for the last step
        self.product: Tensor | None = None
        self.squared_norms: list[Tensor] = []
        self.mismatch = theta_T.new_zeros(())

    def through(self, segment: range, state: State, *, needs_start: bool) -> None:
        """Walk back through the steps of ``segment``, which began in ``state``.

        ``needs_start`` tells whether λ at its beginning is wanted, by earlier steps or by θ_0.
        """
        states = [state]
        for index in segment[:-1]:
            linear = self.kept.get(index)
            if linear is None:
                linear = self.steps.linearize(index, states[-1][0], create_graph=False)
            states.append(self._advance(index, states[-1], linear))
        for index in reversed(segment):
            needs_product = needs_start or index > segment[0]
            self._step_back(index, states.pop(), needs_product and not self.tesla)

    def finish(self) -> Tensor:
        """∂L/∂θ_0; raises if a recomputed step was not the one taken."""
        theta_adjoint = self.adjoint[0]
        if self.product is not None:
            theta_adjoint = theta_adjoint + self.product
        if not self.mismatch <= 0:  # nor is it NaN
            raise RuntimeError(
                "recomputing a step of the unroll gave other parameters than the first time: "
                "model, loss or augment draws random numbers of its own, as dropout does, or the "
                "model's mode or buffers changed since. Put the model into eval mode before the "
                "unroll, and draw from the generator that augment gets"
            )
        return theta_adjoint

    def adjoint_norms(self) -> Tensor:
        """‖∂L/∂θ_{t+1}‖ for every step t walked through, in order. (W,) or (W, K)"""
        return torch.stack(self.squared_norms[::-1]).sqrt()

    def _advance(self, index: int, state: State, linear: Linearization) -> State:
        gradient = linear.step.gradient.detach()
        return self.optimizer.step(index, state, gradient, self.step_sizes.at(index))

    def _step_back(self, index: int, before: State, needs_product: bool) -> None:
        linear = self.kept.pop(index, None)
        recomputed = linear is None
        if linear is None:
            linear = self.steps.linearize(index, before[0], create_graph=True)
        after, self.after = self.after, before
        if recomputed or len(after) < len(before):
            reached = self._advance(index, before, linear)
            mismatch = _mismatch(before[0], reached[0], after[0])
            self.mismatch = torch.maximum(self.mismatch, mismatch)
            after = reached
        lr = self.step_sizes.at(index)
        step = Step(index, before, after, linear.step.gradient.detach(), lr)
        self.adjoint, seed = self.optimizer.step_back(self.adjoint, self.product, step)
        self.squared_norms.append(seed.squared_norm)
        gathered = self.gathered
        if gathered.lr is not None:
            self.step_sizes.add_gradient(gathered.lr, index, seed.lr_gradient)
        self.product, grad_images, grad_labels = linear.products(
            seed.cotangent,
            theta=needs_product,
            images=gathered.images is not None,
            labels=gathered.labels is not None,
        )
        rows = self.steps.batches[index].flatten()
        for total, grad in ((gathered.images, grad_images), (gathered.labels, grad_labels)):
            if total is not None and grad is not None:
                torch.ops.mim4dd.scatter_add_rows(total, rows, grad)


def _mismatch(theta: Tensor, reached: Tensor, taken: Tensor) -> Tensor:
    """How far a recomputed step ends from the one taken, beyond what kernels may differ by."""
    eps = torch.finfo(theta.dtype).eps
    return _largest(reached - taken) - 1e-3 * _largest(taken - theta) - 8 * eps * _largest(theta)


def _largest(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, torch.inf)
