"""The autograd node of :func:`mim4dd.unroll_sgd`: the sweep forward and the adjoint recursion."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mim4dd.ops.sgd_step import sgd_step

Augment = Callable[[Tensor, torch.Generator], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Linearization:
    """∇ℓ at one step with its graph, and the leaves it can be differentiated by."""

    gradient: Tensor  # (P,)
    theta: Tensor  # (P,)
    images: Tensor  # (B, ...)
    labels: Tensor  # (B,) or (B, C)

    def vjp(self, cotangent: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        """The second-order products of ``cotangent`` (P,) with the given leaves, by name."""
        if not self.gradient.requires_grad:  # a loss linear in the parameters
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        if not leaves:
            return {}
        products = torch.autograd.grad(
            self.gradient, list(leaves.values()), cotangent, materialize_grads=True
        )
        return dict(zip(leaves, products, strict=True))


class State(NamedTuple):
    """What inner training carries from step to step."""

    theta: Tensor  # (P,)
    velocity: Tensor | None  # (P,), with momentum


@dataclass
class Problem:
    """Everything about the inner training that is not a tensor."""

    call: Callable[[Tensor, Tensor], Tensor]
    loss: Loss
    augment: Augment | None
    seeds: list[int]
    momentum: float
    weight_decay: float
    memory_budget: int
    kept: dict[int, Linearization] = field(default_factory=dict)

    def linearize(
        self, step: int, theta: Tensor, images: Tensor, labels: Tensor, create_graph: bool
    ) -> Linearization:
        """∇ℓ of one step; with ``create_graph`` it can be differentiated once more."""
        theta, images, labels = theta.detach(), images.detach(), labels.detach()
        theta.requires_grad_()
        images.requires_grad_(create_graph)
        labels.requires_grad_(create_graph and labels.is_floating_point())
        with torch.enable_grad():
            inputs = images
            if self.augment is not None:
                generator = torch.Generator(images.device).manual_seed(self.seeds[step])
                inputs = self.augment(images, generator)
            value = self.loss(self.call(theta, inputs), labels)
            (gradient,) = torch.autograd.grad(value, theta, create_graph=create_graph)
        return Linearization(gradient, theta, images, labels)

    def advance(
        self, step: int, state: State, gradient: Tensor, lr: Tensor
    ) -> tuple[State, Tensor]:
        """The state after a step, and the direction v_{t+1} of the step."""
        direction = gradient.detach()
        if self.weight_decay:
            direction = direction + self.weight_decay * state.theta
        if state.velocity is not None:
            direction = direction + self.momentum * state.velocity
        theta = sgd_step(state.theta, direction, self.step_size(lr, step))
        return State(theta, None if state.velocity is None else direction), direction

    def step_size(self, lr: Tensor, step: int) -> Tensor:
        """η_t: (), or (P,) where every parameter has its own."""
        return lr[step] if lr.shape == (len(self.seeds),) else lr


@dataclass
class Adjoint:
    """∂L of the state after the steps already walked back, and what the inputs have gathered."""

    theta: Tensor  # λ (P,)
    velocity: Tensor | None  # (P,), with momentum
    images: Tensor | None
    labels: Tensor | None
    lr: Tensor | None

    def step_back(
        self,
        problem: Problem,
        step: int,
        linear: Linearization,
        direction: Tensor,  # v_{t+1} (P,)
        rows: Tensor,  # (B,)
        lr: Tensor,
        needs_theta: bool,
    ) -> None:
        """Pull everything back through θ_{t+1} = θ_t − η v_{t+1}, v_{t+1} = μ v_t + ∇ℓ + w θ_t."""
        if self.lr is not None:
            _accumulate_lr(self.lr, step, self.theta, direction)
        cotangent = -problem.step_size(lr, step) * self.theta  # ∂L/∂v_{t+1}, and so ∂L/∂∇ℓ
        if self.velocity is not None:
            cotangent = cotangent + self.velocity
            self.velocity = problem.momentum * cotangent
        leaves = {"theta": linear.theta} if needs_theta else {}
        if self.images is not None:
            leaves["images"] = linear.images
        if self.labels is not None:
            leaves["labels"] = linear.labels
        products = linear.vjp(cotangent, leaves)
        if needs_theta:
            self.theta = self.theta + products["theta"] + problem.weight_decay * cotangent
        if self.images is not None:
            self.images.index_add_(0, rows, products["images"])
        if self.labels is not None:
            self.labels.index_add_(0, rows, products["labels"])


class UnrolledSGD(torch.autograd.Function):
    """θ_0 → θ_T, with the adjoint recursion as its backward."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: Problem,
        theta_0: Tensor,
        image_syn: Tensor,
        label_syn: Tensor,
        batches: Tensor,
        lr: Tensor,
    ) -> Tensor:
        differentiate = any(ctx.needs_input_grad)
        num_steps = batches.shape[0]
        history_bytes = num_steps * theta_0.nbytes * (2 if problem.momentum else 1)
        activation_budget = problem.memory_budget - history_bytes
        # Every state where the budget has room for them, else the fewest that √T-long replays need.
        interval = 1 if activation_budget >= 0 else math.isqrt(num_steps - 1) + 1
        keep, kept_bytes = differentiate and activation_budget > 0, 0
        state = State(theta_0, torch.zeros_like(theta_0) if problem.momentum else None)
        stored: list[State] = []
        for step, rows in enumerate(batches):
            if step % interval == 0:
                stored.append(state)
            saved = _SavedBytes()
            with saved:
                linear = problem.linearize(
                    step, state.theta, image_syn[rows], label_syn[rows], create_graph=keep
                )
            kept_bytes += saved.total
            keep = keep and kept_bytes <= activation_budget
            if keep:
                problem.kept[step] = linear
            state, _ = problem.advance(step, state, linear.gradient, lr)
        ctx.problem, ctx.interval = problem, interval
        thetas, velocities = zip(*stored, strict=True)
        ctx.save_for_backward(image_syn, label_syn, batches, lr, *thetas, state.theta, *velocities)
        return state.theta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_theta_T: Tensor) -> tuple[Tensor | None, ...]:
        problem, interval = ctx.problem, ctx.interval
        image_syn, label_syn, batches, lr, *history = ctx.saved_tensors
        num_steps = batches.shape[0]
        num_segments = -(-num_steps // interval)
        # θ at the start of every segment and θ_T, then the velocities (None without momentum).
        thetas, velocities = history[: num_segments + 1], history[num_segments + 1 :]
        _, needs_theta_0, needs_images, needs_labels, _, needs_lr = ctx.needs_input_grad
        adjoint = Adjoint(
            theta=grad_theta_T,
            velocity=torch.zeros_like(grad_theta_T) if problem.momentum else None,
            images=torch.zeros_like(image_syn) if needs_images else None,
            labels=torch.zeros_like(label_syn) if needs_labels else None,
            lr=torch.zeros_like(lr) if needs_lr else None,
        )
        mismatch = grad_theta_T.new_zeros(())
        for segment in reversed(range(num_segments)):
            first = segment * interval
            last = min(first + interval, num_steps) - 1
            data = [(image_syn[rows], label_syn[rows]) for rows in batches[first : last + 1]]
            states = [State(thetas[segment], velocities[segment])]
            for step in range(first, last):
                linear = problem.linearize(
                    step, states[-1].theta, *data[step - first], create_graph=False
                )
                states.append(problem.advance(step, states[-1], linear.gradient, lr)[0])
            taken = thetas[segment + 1]
            for step in range(last, first - 1, -1):
                state = states.pop()
                linear = problem.kept.pop(step, None) or problem.linearize(
                    step, state.theta, *data[step - first], create_graph=True
                )
                reached, direction = problem.advance(step, state, linear.gradient, lr)
                mismatch = torch.maximum(mismatch, _mismatch(state.theta, reached.theta, taken))
                adjoint.step_back(
                    problem,
                    step,
                    linear,
                    direction,
                    batches[step],
                    lr,
                    needs_theta=step > 0 or needs_theta_0,
                )
                taken = state.theta
        if mismatch > 0:
            raise RuntimeError(
                "recomputing a step of unroll_sgd gave other parameters than taking it did: model, "
                "loss or augment draws random numbers of its own, as dropout does, or its mode, "
                "buffers or autocast changed since. Put the model into eval mode before, draw from "
                "the generator that augment is given, and keep forward and backward under one "
                "autocast"
            )
        grad_theta_0 = adjoint.theta if needs_theta_0 else None
        return None, grad_theta_0, adjoint.images, adjoint.labels, None, adjoint.lr


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Count the bytes that autograd holds for the graph built inside, each storage once."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(self.storages.values())


def _mismatch(theta: Tensor, reached: Tensor, taken: Tensor) -> Tensor:
    """How far a recomputed step ends from the one taken, beyond what kernels may differ by."""
    resolution = torch.finfo(theta.dtype).eps * theta.abs().amax()
    return (reached - taken).abs().amax() - 1e-3 * (taken - theta).abs().amax() - 8 * resolution


def _accumulate_lr(grad_lr: Tensor, step: int, adjoint: Tensor, velocity: Tensor) -> None:
    """Add −⟨λ, v⟩ of one step, or −λ ⊙ v for a step size per parameter."""
    if grad_lr.shape == adjoint.shape:
        grad_lr -= adjoint * velocity
    elif grad_lr.dim() == 0:
        grad_lr -= adjoint.dot(velocity)
    else:
        grad_lr[step] -= adjoint.dot(velocity)
