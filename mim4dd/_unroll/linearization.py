"""One inner step: its loss, the gradient by the parameters, and the products of the adjoint."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mim4dd._unroll.convolution import Convolutions, fastest_layout
from mim4dd._unroll.functional import FunctionalModel

Augment = Callable[[Tensor, torch.Generator], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Buffers = dict[str, Tensor]


@dataclass
class Linearization:
    """∇ℓ at one step with its graph, and the leaves it can be differentiated by."""

    losses: Tensor  # () or (K,)
    gradient: Tensor  # like theta
    theta: Tensor  # (P,) or (K, P)
    samples: Tensor  # the images as they are in the synthetic set (B, ...) or (K * B, ...)
    augmented: Tensor  # a function of samples
    inputs: Tensor  # the values of augmented, where the graph of the step begins
    labels: Tensor

    def products(
        self, cotangent: Tensor, *, theta: bool, images: bool, labels: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What ``cotangent``, for the gradient, is for theta, images and labels, where wanted."""
        leaves = [
            leaf
            for leaf, wanted in ((self.theta, theta), (self.inputs, images), (self.labels, labels))
            if wanted
        ]
        if not leaves:
            return None, None, None
        if self.gradient.requires_grad:
            products = list(
                torch.autograd.grad(self.gradient, leaves, cotangent, materialize_grads=True)
            )
        else:  # a loss linear in the parameters
            products = [torch.zeros_like(leaf) for leaf in leaves]
        by_theta = products.pop(0) if theta else None
        by_images = self._through_augmentation(products.pop(0)) if images else None
        by_labels = products.pop(0).reshape(-1, *self.labels.shape[-1:]) if labels else None
        return by_theta, by_images, by_labels

    def _through_augmentation(self, grad: Tensor) -> Tensor:
        grad = grad.reshape(self.augmented.shape)
        if self.augmented is self.samples:
            return grad
        if not self.augmented.requires_grad:
            return torch.zeros_like(self.samples)
        (grad,) = torch.autograd.grad(self.augmented, self.samples, grad, materialize_grads=True)
        return grad


@dataclass(frozen=True)
class Steps:
    """The synthetic data and the network, as a function from step and parameters to a gradient."""

    call: FunctionalModel
    loss: Loss
    augment: Augment | None
    seeds: list[int]
    image_syn: Tensor
    label_syn: Tensor
    batches: Tensor  # (T, B), or (T, K, B) where trajectories differ

    def linearize(self, step: int, theta: Tensor, *, create_graph: bool) -> Linearization:
        """∇ℓ of one step; with ``create_graph`` it can be differentiated once more."""
        rows = self.batches[step]
        theta = theta.detach().requires_grad_()
        samples = self.image_syn.detach()[rows.flatten()].requires_grad_(create_graph)
        labels = self.label_syn.detach()[rows]
        labels.requires_grad_(create_graph and labels.is_floating_point())
        augmented = self._augmented(step, samples)
        inputs = fastest_layout(augmented.detach().view(*rows.shape, *augmented.shape[1:]))
        inputs.requires_grad_(create_graph)
        convolutions = Convolutions(inputs)
        with torch.enable_grad():
            with convolutions:
                losses = self._losses(theta, inputs, labels)
            (gradient,) = torch.autograd.grad(losses.sum(), theta, create_graph=create_graph)
        convolutions.first_order = False
        return Linearization(losses.detach(), gradient, theta, samples, augmented, inputs, labels)

    def _augmented(self, step: int, samples: Tensor) -> Tensor:
        if self.augment is None:
            return samples
        generator = torch.Generator(samples.device).manual_seed(self.seeds[step])
        with torch.set_grad_enabled(samples.requires_grad):
            return self.augment(samples, generator)

    def _losses(self, theta: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of every trajectory, () or (K,)."""

        def value(theta: Tensor, inputs: Tensor, labels: Tensor, buffers: Buffers) -> Tensor:
            loss = self.loss(self.call(theta, inputs, buffers), labels)
            if loss.dim() != 0:
                raise ValueError(f"loss must return a scalar, got shape {tuple(loss.shape)}")
            return loss

        before = theta._version
        if theta.dim() == 1:
            losses = value(theta, inputs, labels, self.call.buffers())
        else:
            own = 0 if self.batches.dim() == 3 else None
            buffers = self.call.buffers(copies=theta.shape[0])
            losses = torch.vmap(value, in_dims=(0, own, own, 0))(theta, inputs, labels, buffers)
        if theta._version != before:
            raise RuntimeError(
                "model changes its parameters in place in its forward pass: the gradient would be "
                "that of other parameters than the step was taken from"
            )
        return losses
