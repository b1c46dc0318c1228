"""Dataset Condensation (DC) by gradient matching."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mim4dd._unroll.functional import FunctionalModel
from mim4dd._unroll.step_gradient import StepLoss, Wanted
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.bilevel import BilevelMethod, BilevelSettings
from mim4dd.distill.methods.registry import method
from mim4dd.distill.training.passes import in_passes, sum_over_classes

__all__ = ["DC", "DCSettings", "gradient_distance"]

_EPSILON = 1e-6  # as in the published code


@dataclass(frozen=True)
class DCSettings(BilevelSettings):
    """What gradient matching matches."""


@method("dc", title="DC", settings=DCSettings)
class DC(BilevelMethod):
    r"""Match the gradients that real and synthetic samples of each class give a network.

    .. math::
        \sum_c D\big(\nabla_\theta \ell(\theta; S_c), \nabla_\theta \ell(\theta; B_c)\big)

    with D of :func:`gradient_distance`, S_c the synthetic samples of class c and B_c up to
    ``batch_real`` real ones. θ is a fresh network every ``outer_loop`` steps; between two steps it
    is trained on the synthetic set.

    Args:
        new_network: Makes a freshly initialised network from a seed.
        settings: What to match.

    Raises:
        ValueError: If the network has BatchNorm.

    References:
        Zhao, Mopuri, Bilen. Dataset Condensation with Gradient Matching. arXiv:2006.05929, Alg. 1.
    """

    metric = "gradient_distance"

    def __init__(self, new_network: Callable[[int], nn.Module], settings: DCSettings) -> None:
        super().__init__(new_network, settings)
        call = FunctionalModel(self.network)
        self._shapes = call.shapes
        self._one = StepLoss(call, F.cross_entropy, own_samples=False)
        self._many = StepLoss(call, F.cross_entropy, own_samples=True)

    def match(self, theta: Tensor, image_syn: Tensor, label_syn: Tensor, real: RealData) -> Tensor:
        """The distances summed over the classes, whose batches the networks share. ()"""
        counts = real.syn_counts(len(image_syn))
        return sum_over_classes(
            partial(self._distance, theta, real, counts),
            counts,
            image_syn,
            label_syn,
            # On a GPU classes of one size share launches.
            together=theta.device.type != "cpu" and len(set(counts)) == 1,
        )

    def _distance(
        self,
        theta: Tensor,
        real: RealData,
        counts: Sequence[int],
        classes: Sequence[int],
        image_syn: Tensor,
        label_syn: Tensor,
    ) -> Tensor:
        """The distances summed over some classes, in the mean over the networks. ()"""
        num_networks, num_classes = len(theta), len(classes)
        of_classes = [counts[label] for label in classes]
        images, gradients = [], []
        for label, samples in zip(classes, image_syn.split(of_classes), strict=True):
            batch = real.sample_class(label, self.settings.batch_real)
            samples, batch = self.augment_pair(samples, batch, real)
            images.append(samples)
            labels = torch.full((len(batch),), label, device=batch.device)
            gradients.append([self._gradient(row, batch, labels) for row in theta])
        gradient_real = torch.stack([row for rows in zip(*gradients, strict=True) for row in rows])
        gradient_syn = _Gradients.apply(
            self._many,
            theta.repeat_interleave(num_classes, 0),
            torch.stack(images * num_networks),
            torch.stack([*label_syn.split(of_classes)] * num_networks),
        )
        distances = gradient_distance(gradient_syn, gradient_real, self._shapes)
        return distances.sum() / num_networks

    def augment_pair(self, samples: Tensor, batch: Tensor, real: RealData) -> tuple[Tensor, Tensor]:
        """Synthetic and real images of one class as they are matched."""
        return samples, batch

    def _gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient of the mean over the images, a pass at a time. (P,)"""
        total = torch.zeros_like(theta)
        passes = in_passes(images)
        for part, truth in zip(passes, labels.split(len(passes[0])), strict=True):
            found = self._one.differentiate(theta, part, truth, create_graph=False)
            total.add_(found.gradient, alpha=len(part) / len(images))
        return total


def gradient_distance(
    gradient_syn: Tensor,  # (R, P)
    gradient_real: Tensor,  # (R, P)
    shapes: Sequence[torch.Size],
) -> Tensor:
    """Sum over the weights of a network, and over the outputs of each, of 1 − cos.

    An output is a row of a linear map's weights or a filter of a convolution's. Parameters of one
    dimension, as biases and norms have, do not count.

    Args:
        gradient_syn: Gradients in one vector each.
        gradient_real: What they are compared with.
        shapes: Shapes of the parameters, in their order in the vector.

    Returns:
        One distance for each pair of gradients. (R,)

    Example:
        >>> import torch
        >>> from mim4dd.distill.methods.dc import gradient_distance
        >>> gradient = torch.randn(1, 8)  # of Linear(3, 2)
        >>> shapes = [torch.Size([2, 3]), torch.Size([2])]
        >>> gradient_distance(gradient, -gradient, shapes).round(decimals=3)
        tensor([4.])

    References:
        Zhao, Mopuri, Bilen. arXiv:2006.05929, eq. 10 and its code.
    """
    distance = gradient_syn.new_zeros(len(gradient_syn))
    sizes = [shape.numel() for shape in shapes]
    parts = zip(gradient_syn.split(sizes, 1), gradient_real.split(sizes, 1), shapes, strict=True)
    for syn, real, shape in parts:
        if len(shape) < 2:
            continue
        syn, real = (part.reshape(len(part), shape[0], -1) for part in (syn, real))
        lengths = syn.norm(dim=2) * real.norm(dim=2)
        distance = distance + (1 - (syn * real).sum(2) / (lengths + _EPSILON)).sum(1)
    return distance


class _Gradients(torch.autograd.Function):
    """∇_θ ℓ of every row's samples, differentiable in the samples and labels but not in θ.

    Plain autograd would differentiate by θ as well, for nobody: a quarter of a step's time with
    ConvNet-3 at 32 × 32.
    """

    @staticmethod
    def forward(ctx: Any, loss: StepLoss, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        ctx.found = loss.differentiate(theta, images, labels, create_graph=True)
        return ctx.found.gradient.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        wanted = Wanted(False, *ctx.needs_input_grad[2:])
        return None, *ctx.found.products(cotangent, wanted, keep_graph=True)
