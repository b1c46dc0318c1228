"""The autograd node: the sweep forward, and the walk back as its backward."""

from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from mim4dd._transforms import (
    active,
    current_autocast,
    is_batched,
    without_saved_tensors_hooks,
)
from mim4dd._unroll.diagnostics import UnrollDiagnostics, refuse_divergence
from mim4dd._unroll.graphs import StepGraphs
from mim4dd._unroll.history import History
from mim4dd._unroll.kept import KeptSteps
from mim4dd._unroll.optimizers import Optimizer
from mim4dd._unroll.step_gradient import StepLoss
from mim4dd._unroll.step_sizes import StepSizes
from mim4dd._unroll.steps import Augment, Linearization, Steps
from mim4dd._unroll.walk import Gathered, Walk


@dataclass
class Problem:
    """Everything about the inner training that is not a tensor."""

    loss: StepLoss
    graphs: StepGraphs | None
    augment: Augment | None
    seeds: list[int]
    optimizer: Optimizer
    history: History
    tesla: bool
    memory_budget: int
    differentiable: bool  # whether grad mode is on; within the node it is off
    diagnostics: UnrollDiagnostics | None
    kept: dict[int, Linearization] = field(default_factory=dict)

    def steps(self, image_syn: Tensor, label_syn: Tensor, batches: Tensor) -> Steps:
        """The data and the network of every step."""
        loss, graphs = self.loss, self.graphs
        differentiate = loss.differentiate if graphs is None else graphs.bound_to(loss)
        return Steps(
            differentiate,
            self.augment,
            self.seeds,
            image_syn,
            label_syn,
            batches,
            refuses_captured=loss.refuses_captured,
        )


def refuse_transforms() -> None:
    """Raise under a transform, which the node has no rules for."""
    if active():
        raise RuntimeError(
            "the unroll does not support torch.func, torch.vmap and forward mode: call "
            "torch.autograd.grad or backward() on a loss of its result"
        )


class _DifferentiableOnce(torch.autograd.Function):
    """Gradients as they are, which to differentiate by what they depend on is an error.

    ``once_differentiable`` looks at the incoming gradient alone: where that is a constant, a second
    derivative would be a silent zero.
    """

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        raise RuntimeError(
            "the unroll is differentiable once, and a second derivative was asked for"
        )


class Unroll(torch.autograd.Function):
    """θ_0 → θ_T, and back."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: Problem,
        theta_0: Tensor,  # (P,) or (K, P)
        image_syn: Tensor,
        label_syn: Tensor,
        batches: Tensor,  # (T, B) or (T, K, B)
        lr: Tensor,
    ) -> Tensor:
        ctx.autocast = current_autocast(theta_0.device.type)
        with without_saved_tensors_hooks():
            theta_T, stored = Unroll._train(
                ctx, problem, theta_0, image_syn, label_syn, batches, lr
            )
        ctx.save_for_backward(image_syn, label_syn, batches, lr, theta_T, theta_0, *stored)
        return theta_T

    @staticmethod
    def _train(
        ctx: Any,
        problem: Problem,
        theta_0: Tensor,
        image_syn: Tensor,
        label_syn: Tensor,
        batches: Tensor,
        lr: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """θ_T, and the states that the walk back starts its segments from."""
        optimizer, history = problem.optimizer, problem.history
        differentiate = problem.differentiable and any(ctx.needs_input_grad)
        steps = problem.steps(image_syn, label_syn, batches)
        step_sizes = StepSizes(lr, history.num_steps, problem.loss.call.sizes)
        kept = KeptSteps(problem.memory_budget if differentiate else 0, history)
        starts = {segment[0] for segment in history.segments()} if differentiate else set()
        state = optimizer.start(theta_0.contiguous())
        losses: list[Tensor] = []
        stored: list[Tensor] = []
        for index in range(history.num_steps):
            if index in starts:
                stored += history.pack(state)
            linear = kept.linearize(steps, index, state[0])
            losses.append(linear.step.losses)
            gradient = linear.step.gradient.detach()
            state = optimizer.step(index, state, gradient, step_sizes.at(index))
        theta_T = state[0]
        losses_by_step = torch.stack(losses)
        refuse_divergence(losses_by_step, theta_T)
        if problem.diagnostics is not None:
            problem.diagnostics.losses = losses_by_step
        problem.kept = kept.linearizations
        ctx.problem = problem
        return theta_T, stored

    @staticmethod
    def backward(ctx: Any, grad_theta_T: Tensor) -> tuple[Tensor | None, ...]:
        if is_batched(grad_theta_T):
            raise RuntimeError(
                "the unroll computes one gradient at a time: call torch.autograd.grad for each, "
                "without is_grads_batched, vectorize or torch.vmap"
            )
        saved = ctx.saved_tensors
        with torch.no_grad(), ctx.autocast, without_saved_tensors_hooks():
            gradients = Unroll._walk_back(ctx, saved, grad_theta_T)
        if not torch.is_grad_enabled():
            return gradients
        image_syn, label_syn, _, lr, _, theta_0, *_ = saved
        found = [gradient for gradient in gradients if gradient is not None]
        depends_on = (grad_theta_T, theta_0, image_syn, label_syn, lr)
        refusing = iter(_DifferentiableOnce.apply(len(found), *found, *depends_on))
        return tuple(None if each is None else next(refusing) for each in gradients)

    @staticmethod
    def _walk_back(
        ctx: Any, saved: tuple[Tensor, ...], grad_theta_T: Tensor
    ) -> tuple[Tensor | None, ...]:
        problem, history = ctx.problem, ctx.problem.history
        image_syn, label_syn, batches, lr, theta_T, _, *stored = saved
        _, needs_theta_0, needs_images, needs_labels, _, needs_lr = ctx.needs_input_grad
        step_sizes = StepSizes(lr, history.num_steps, problem.loss.call.sizes)
        gathered = Gathered(
            images=torch.zeros_like(image_syn) if needs_images else None,
            labels=torch.zeros_like(label_syn) if needs_labels else None,
            lr=torch.zeros_like(step_sizes.table) if needs_lr else None,
        )
        walk = Walk(
            problem.optimizer,
            problem.steps(image_syn, label_syn, batches),
            step_sizes,
            problem.kept,
            gathered,
            tesla=problem.tesla,
        )
        walk.start(grad_theta_T, theta_T)
        size = 1 + problem.optimizer.num_moments
        for segment in reversed(history.segments()):
            state = tuple(tensor.to(theta_T.device) for tensor in stored[-size:])
            del stored[-size:]
            needs_start = needs_theta_0 or segment[0] > history.first
            walk.through(segment, state, needs_start=needs_start)
        lambda_0 = walk.finish()
        if problem.diagnostics is not None:
            problem.diagnostics.adjoint_norms = walk.adjoint_norms()
        grad_lr = None if gathered.lr is None else gathered.lr.view(lr.shape)
        grad_theta_0 = lambda_0 if needs_theta_0 else None
        return None, grad_theta_0, gathered.images, gathered.labels, None, grad_lr
