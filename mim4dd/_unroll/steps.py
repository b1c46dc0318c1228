"""The inner steps: which samples, how augmented, through which network."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mim4dd._unroll.captured import refuse_captured
from mim4dd._unroll.checks import check_augmented
from mim4dd._unroll.step_gradient import Differentiate, Products, StepGradient, Wanted

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass
class Linearization:
    """One step at one θ_t.

    Augmentation makes m images of a sample: the whole batch once, then once more, as MTT's crops
    of a canvas are. Here they are sorted by trajectory.
    """

    step: StepGradient
    samples: Tensor  # the images as they are in the synthetic set (K * B, ...)
    augmented: Tensor  # a function of samples (m * K * B, ...)
    sizes: tuple[int, int, int]  # m, K, B

    def products(self, cotangent: Tensor, *, theta: bool, images: bool, labels: bool) -> Products:
        """What ``cotangent``, for the gradient, is for θ and, by row of the batch, the others."""
        by_theta, by_inputs, by_labels = self.step.products(
            cotangent, Wanted(theta, images, labels)
        )
        copies, trajectories, batch = self.sizes
        if by_labels is not None:
            classes = by_labels.shape[-1]
            by_labels = by_labels.reshape(trajectories, copies, batch, classes)
            by_labels = by_labels.sum(1).view(-1, classes)
        if by_inputs is not None:
            shape = self.augmented.shape
            by_inputs = by_inputs.reshape(trajectories, copies, batch, *shape[1:])
            by_inputs = self._through_augmentation(by_inputs.transpose(0, 1).reshape(shape))
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
    refuses_captured: bool  # by augment

    def linearize(self, number: int, theta: Tensor, *, create_graph: bool) -> Linearization:
        """∇ℓ of one step; with ``create_graph`` it can be differentiated once more."""
        rows = self.batches[number]
        samples = self.image_syn.detach()[rows.flatten()].requires_grad_(create_graph)
        augmented = self._augmented(number, samples)
        copies = len(augmented) // len(samples)
        inputs, labels = augmented.detach(), self.label_syn[rows]
        if rows.dim() == 2:
            inputs = inputs.view(copies, *rows.shape, *inputs.shape[1:]).transpose(0, 1)
            inputs = inputs.flatten(1, 2)
        if copies > 1:
            labels = torch.cat([labels] * copies, dim=rows.dim() - 1)
        step = self.differentiate(theta, inputs, labels, create_graph=create_graph)
        trajectories = rows.numel() // rows.shape[-1]
        return Linearization(step, samples, augmented, (copies, trajectories, rows.shape[-1]))

    def _augmented(self, number: int, samples: Tensor) -> Tensor:
        if self.augment is None:
            return samples
        generator = torch.Generator(samples.device).manual_seed(self.seeds[number])
        # At the first step, and at every one that is walked back: draws may choose what it reads.
        with_graph = samples.requires_grad or (self.refuses_captured and number == 0)
        with torch.set_grad_enabled(with_graph):
            augmented = self.augment(samples, generator)
        check_augmented(augmented, samples)
        if self.refuses_captured and with_graph:
            refuse_captured(augmented, (samples,), "augment")
        return augmented
