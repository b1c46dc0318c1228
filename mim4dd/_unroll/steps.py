"""The inner steps: which samples, how augmented, through which network."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mim4dd._unroll.captured import refuse_captured
from mim4dd._unroll.step_gradient import Differentiate, Products, StepGradient, Wanted

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass
class Linearization:
    """One step at one θ_t."""

    step: StepGradient
    samples: Tensor  # the images as they are in the synthetic set (B, ...) or (K * B, ...)
    augmented: Tensor  # a function of samples

    def products(self, cotangent: Tensor, *, theta: bool, images: bool, labels: bool) -> Products:
        """What ``cotangent``, for the gradient, is for θ and, by row of the batch, the others."""
        by_theta, by_inputs, by_labels = self.step.products(
            cotangent, Wanted(theta, images, labels)
        )
        if by_labels is not None:
            by_labels = by_labels.reshape(-1, by_labels.shape[-1])
        if by_inputs is not None:
            by_inputs = self._through_augmentation(by_inputs.reshape(self.augmented.shape))
        return by_theta, by_inputs, by_labels

    def _through_augmentation(self, grad: Tensor) -> Tensor:
        if self.augmented is self.samples:
            return grad
        if not self.augmented.requires_grad:
            return torch.zeros_like(self.samples)
        (grad,) = torch.autograd.grad(self.augmented, self.samples, grad, materialize_grads=True)
        return grad


@dataclass(frozen=True)
class Steps:
    """From a step and its θ_t to a linearization."""

    differentiate: Differentiate
    augment: Augment | None
    seeds: list[int]
    image_syn: Tensor
    label_syn: Tensor
    batches: Tensor  # (T, B), or (T, K, B) where trajectories differ
    refuses_captured: bool  # in the first step

    def linearize(self, number: int, theta: Tensor, *, create_graph: bool) -> Linearization:
        """∇ℓ of one step; with ``create_graph`` it can be differentiated once more."""
        rows = self.batches[number]
        samples = self.image_syn.detach()[rows.flatten()].requires_grad_(create_graph)
        augmented = self._augmented(number, samples)
        inputs = augmented.detach().view(*rows.shape, *augmented.shape[1:])
        labels = self.label_syn[rows]
        step = self.differentiate(theta, inputs, labels, create_graph=create_graph)
        return Linearization(step, samples, augmented)

    def _augmented(self, number: int, samples: Tensor) -> Tensor:
        if self.augment is None:
            return samples
        generator = torch.Generator(samples.device).manual_seed(self.seeds[number])
        is_examined = self.refuses_captured and number == 0
        with torch.set_grad_enabled(samples.requires_grad or is_examined):
            augmented = self.augment(samples, generator)
        if is_examined:
            refuse_captured(augmented, (samples,), "augment")
        return augmented
