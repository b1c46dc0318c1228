"""The loss of one inner step, its gradient by the parameters, and that one's derivative."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mim4dd._torch_private import version
from mim4dd._turns import alone_in, differentiable_attention
from mim4dd._unroll.captured import refuse_captured
from mim4dd._unroll.checks import check_outputs
from mim4dd._unroll.convolution import Convolutions
from mim4dd._unroll.functional import FunctionalModel
from mim4dd._unroll.regions import channels_last_inside

Loss = Callable[[Tensor, Tensor], Tensor]
Value = Callable[[Tensor, Tensor, Tensor, dict[str, Tensor]], Tensor]


class Wanted(NamedTuple):
    """By what a gradient is to be differentiated."""

    theta: bool
    inputs: bool
    labels: bool


Products = tuple[Tensor | None, Tensor | None, Tensor | None]
"""For theta, inputs and labels; None where it was not wanted."""


class StepGradient(Protocol):
    """∇ℓ at one step."""

    @property
    def losses(self) -> Tensor:
        """ℓ: () or (K,)."""

    @property
    def gradient(self) -> Tensor:
        """∇_θ ℓ: (P,) or (K, P)."""

    def products(self, cotangent: Tensor, wanted: Wanted) -> Products:
        """What ``cotangent``, for the gradient, is for what the gradient depends on."""


class Differentiate(Protocol):
    """:meth:`StepLoss.differentiate`, or what does the same faster."""

    def __call__(
        self, theta: Tensor, inputs: Tensor, labels: Tensor, *, create_graph: bool
    ) -> StepGradient: ...


@dataclass
class EagerGradient:
    """∇ℓ with its graph, and the leaves it can be differentiated by."""

    losses: Tensor
    gradient: Tensor
    leaves: tuple[Tensor, Tensor, Tensor]  # theta, inputs, labels

    def products(self, cotangent: Tensor, wanted: Wanted, *, keep_graph: bool = False) -> Products:
        chosen = [leaf for leaf, want in zip(self.leaves, wanted, strict=True) if want]
        if not chosen:
            return None, None, None
        if self.gradient.requires_grad:
            found = torch.autograd.grad(
                self.gradient, chosen, cotangent, retain_graph=keep_graph, materialize_grads=True
            )
        else:  # a loss linear in the parameters
            found = tuple(torch.zeros_like(leaf) for leaf in chosen)
        products = iter(found)
        theta, inputs, labels = (next(products) if want else None for want in wanted)
        return theta, inputs, labels


@dataclass
class StepLoss:
    """A network and its inner loss, as a function of parameters, inputs and labels.

    Steps are examined for what they read and the unroll does not hand them; the first one also for
    whether the network has as many outputs as there are classes.
    """

    call: FunctionalModel
    loss: Loss
    own_samples: bool  # whether each of K trajectories has its own
    refuses_captured: bool = False
    num_classes: int | None = None  # of the labels; None asks nothing of the network
    is_examined: bool = False

    def differentiate(
        self, theta: Tensor, inputs: Tensor, labels: Tensor, *, create_graph: bool
    ) -> EagerGradient:
        """∇ℓ; with ``create_graph`` it can be differentiated once more.

        Args:
            theta: Parameters, (P,) or (K, P) for K trajectories.
            inputs: What the network reads. (B, ...), or (K, B, ...) where trajectories differ.
            labels: Its labels, with as many leading axes.
            create_graph: Whether products will be asked for.
        """
        theta = theta.detach().requires_grad_()
        inputs = inputs.detach().requires_grad_(create_graph)
        labels = labels.detach().requires_grad_(create_graph and labels.is_floating_point())
        with torch.enable_grad():
            parts = list(inputs.unbind()) if self.own_samples else [inputs]
            convolutions = Convolutions(list(parts))
            regions = self.call.regions if theta.device.type == "cpu" else []
            inside = channels_last_inside(regions, convolutions.channels_last)
            alone = alone_in(self.call.model)
            with alone, inside, differentiable_attention():
                losses = self._losses(theta, parts, labels, convolutions)
            # In every step that is walked back: a loss may read something else at times.
            if self.refuses_captured and (create_graph or not self.is_examined):
                leaves = theta, inputs, labels
                refuse_captured(losses, leaves, "model and loss", self.call.model)
            with self._examined():
                loss = losses.sum() if losses.dim() else losses
                (gradient,) = torch.autograd.grad(loss, theta, create_graph=create_graph)
        convolutions.first_order = False
        return EagerGradient(losses.detach(), gradient, (theta, inputs, labels))

    @contextmanager
    def _examined(self) -> Iterator[None]:
        """Around the first gradient of an unroll: a model that it runs again is refused there."""
        if self.is_examined:
            yield
            return
        with alone_in(self.call.model), self.call.refusing_calls():
            yield
        self.is_examined = True

    def _losses(
        self, theta: Tensor, parts: list[Tensor], labels: Tensor, convolutions: Convolutions
    ) -> Tensor:
        before = version(theta)
        value = functools.partial(self._value, convolutions)
        if theta.dim() == 1:
            losses = value(theta, parts[0], labels, self.call.buffers())
        elif theta.device.type == "cpu":
            losses = self._one_after_another(value, theta, parts, labels)
        else:
            losses = self._side_by_side(value, theta, parts, labels)
        if version(theta) != before:
            raise RuntimeError(
                "model changes its parameters in place in its forward pass: the gradient would "
                "belong to other parameters than those of the step"
            )
        return losses

    def _one_after_another(
        self, value: Value, theta: Tensor, parts: list[Tensor], labels: Tensor
    ) -> Tensor:
        """On a CPU one trajectory fills the machine, and the convolutions of one are the faster."""
        own = self.own_samples
        return torch.stack(
            [
                value(row, parts[own * k], labels[k] if own else labels, self.call.buffers())
                for k, row in enumerate(theta)
            ]
        )

    def _side_by_side(
        self, value: Value, theta: Tensor, parts: list[Tensor], labels: Tensor
    ) -> Tensor:
        """On a GPU all trajectories share their launches."""
        own = 0 if self.own_samples else None
        inputs = torch.stack(parts) if self.own_samples else parts[0]
        buffers = self.call.buffers(copies=theta.shape[0])
        return torch.vmap(value, in_dims=(0, own, own, 0))(theta, inputs, labels, buffers)

    def _value(
        self,
        convolutions: Convolutions,
        theta: Tensor,
        inputs: Tensor,
        labels: Tensor,
        buffers: dict[str, Tensor],
    ) -> Tensor:
        state = self.call.parameters(theta) | buffers
        with convolutions:  # every function that is called within it takes a detour
            output = self.call.with_state(state, inputs)
            if self.num_classes is not None and not self.is_examined:
                check_outputs(output, self.num_classes)
            loss = self.loss(output, labels)
        if loss.dim() != 0:
            raise ValueError(f"loss must return a scalar, got shape {tuple(loss.shape)}")
        return loss
