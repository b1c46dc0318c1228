"""What goes into a network's layers: means and variances by channel and by place, for EDC."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd.distill.data import ImageData
from mim4dd.distill.runtime.progress import progress_bar
from mim4dd.distill.training.features import reading_inputs

__all__ = [
    "RealStatistics",
    "layers_with_statistics",
    "moments",
    "moments_of_each",
    "real_statistics",
]

_PATCH = 4  # pixels on a side, in the published code
_BATCH = 64


class RealStatistics(NamedTuple):
    """What real images give at one layer: of batches, and of the images of every class."""

    running: list[Tensor]  # each of its own shape (...)
    of_classes: list[Tensor]  # (C, ...)


def layers_with_statistics(network: nn.Module) -> list[nn.Module]:
    """Its convolutions and its BatchNorm layers, in their order."""
    return [each for each in network.modules() if isinstance(each, nn.Conv2d | nn.BatchNorm2d)]


def moments(layer: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Mean and variance of what goes into a layer, by channel; of convolutions also by place.

    The places of a convolution are patches of 4 × 4 pixels, in maps that are enlarged to multiples
    of 4. The moments by place are over all channels and the pixels of a patch.

    Args:
        layer: A convolution or a BatchNorm layer.
        inputs: What goes into it. (B, channels, H, W)

    Returns:
        Mean and biased variance (channels,), then of a convolution those of the places (P,).

    Example:
        >>> import torch
        >>> from mim4dd.distill.methods.layer_statistics import moments
        >>> maps = torch.arange(4.0).view(2, 1, 1, 2)
        >>> moments(torch.nn.BatchNorm2d(1), maps)
        [tensor([1.5000]), tensor([1.2500])]
    """
    return _of_all(moments_of_each(layer, inputs))


def moments_of_each(layer: nn.Module, inputs: Tensor) -> list[Tensor]:
    """What :func:`moments` gives of every image alone: (B, channels) twice, then (B, P) twice."""
    found = _mean_and_variance(inputs, [2, 3])
    if isinstance(layer, nn.Conv2d):
        found += _by_place(inputs)
    return found


def _by_place(inputs: Tensor) -> list[Tensor]:
    """Mean and variance of every patch of every image, over its channels and pixels. (B, P)"""
    size = [-(-length // _PATCH) * _PATCH for length in inputs.shape[2:]]
    if list(inputs.shape[2:]) != size:
        inputs = F.interpolate(inputs, size, mode="bilinear")
    # The channels first, one pass over the maps: to unfold them would copy all of them.
    of_pixels = _mean_and_variance(inputs, [1])
    mean, variance = (
        part.unflatten(2, (-1, _PATCH)).unflatten(1, (-1, _PATCH)).transpose(2, 3).flatten(3)
        for part in of_pixels
    )
    return [part.flatten(1) for part in _of_parts(mean, variance, axis=3)]


def _mean_and_variance(values: Tensor, axes: list[int]) -> list[Tensor]:
    variance, mean = torch.var_mean(values, axes, correction=0)
    return [mean, variance]


def _of_parts(mean: Tensor, variance: Tensor, axis: int) -> list[Tensor]:
    """Mean and variance of parts of equal size together, by the law of total variance."""
    return [mean.mean(axis), variance.mean(axis) + mean.var(axis, correction=0)]


def _of_all(of_each: Sequence[Tensor]) -> list[Tensor]:
    """The moments of a batch by those of each of its images."""
    pairs = zip(of_each[::2], of_each[1::2], strict=True)
    return [part for mean, variance in pairs for part in _of_parts(mean, variance, axis=0)]


@torch.no_grad()
def real_statistics(network: nn.Module, data: ImageData, seed: int) -> list[RealStatistics]:
    """What the training images give at every layer of a network in eval mode.

    The running ones are means over batches of 64 in a random order; of a BatchNorm layer they are
    its own. Those of a class are means over its images of what :func:`moments_of_each` gives.

    Args:
        network: The network.
        data: Whose training images.
        seed: Of their order.
    """
    layers = layers_with_statistics(network)
    size, device = len(data.image_train), data.image_train.device
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).to(device)
    counts = torch.bincount(data.label_train, minlength=data.num_classes)
    sums: list[RealStatistics] = []
    with progress_bar(total=size, desc="statistics of real images") as progress:
        for rows in order.split(_BATCH):
            labels = data.label_train[rows]
            of_layers = _inputs_as(network, layers, data.image_train[rows])
            sums = sums or [_zeros(of_each, data.num_classes) for of_each in of_layers]
            for total, of_each in zip(sums, of_layers, strict=True):
                for running, part in zip(total.running, _of_all(of_each), strict=True):
                    running += part * (len(rows) / size)
                for of_classes, part in zip(total.of_classes, of_each, strict=True):
                    of_classes.index_add_(0, labels, part)
            progress.update(len(rows))
    for layer, total in zip(layers, sums, strict=True):
        for of_classes in total.of_classes:
            of_classes /= counts.view(-1, 1)
        mean, variance = (getattr(layer, f"running_{each}", None) for each in ("mean", "var"))
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            total.running[:] = [mean, variance]
    return sums


def _inputs_as(
    network: nn.Module, layers: Sequence[nn.Module], images: Tensor
) -> list[list[Tensor]]:
    """The moments of each image at every layer, in the order of ``layers``."""
    found: dict[int, list[Tensor]] = {}

    def read(layer: nn.Module, inputs: Tensor) -> Tensor:
        found[id(layer)] = moments_of_each(layer, inputs)
        return inputs

    with reading_inputs(network, layers, read):
        network(images)
    return [found[id(layer)] for layer in layers]


def _zeros(of_each: Sequence[Tensor], num_classes: int) -> RealStatistics:
    return RealStatistics(
        [part.new_zeros(part.shape[1:]) for part in of_each],
        [part.new_zeros((num_classes, *part.shape[1:])) for part in of_each],
    )
