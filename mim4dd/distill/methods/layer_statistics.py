"""What goes into a network's layers: means and variances by channel and by place, for EDC."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd.distill.data import ImageData
from mim4dd.distill.training.features import reading_inputs

__all__ = ["RealStatistics", "layers_with_statistics", "moments", "real_statistics"]

_PATCH = 4  # pixels on a side, in the published code
_BATCH = 64


class RealStatistics(NamedTuple):
    """What real images give at one layer: of batches, and of the images of every class."""

    running: list[Tensor]  # each of its own shape (...)
    of_classes: list[Tensor]  # (C, ...)


def layers_with_statistics(network: nn.Module) -> list[nn.Module]:
    """Its convolutions and its BatchNorm layers, in their order."""
    return [each for each in network.modules() if isinstance(each, nn.Conv2d | nn.BatchNorm2d)]


def moments(layer: nn.Module, inputs: Tensor, *, of_each: bool = False) -> list[Tensor]:
    """Mean and variance of what goes into a layer, by channel; of convolutions also by place.

    The places of a convolution are patches of 4 × 4 pixels, in maps that are enlarged to multiples
    of 4. The moments by place are over all channels and the pixels of a patch.

    Args:
        layer: A convolution or a BatchNorm layer.
        inputs: What goes into it. (B, channels, H, W)
        of_each: Of every image by itself, with a leading axis B, in place of the batch's.

    Returns:
        Mean and biased variance (channels,), then of a convolution those of the places (P,).

    Example:
        >>> import torch
        >>> from mim4dd.distill.methods.layer_statistics import moments
        >>> maps = torch.arange(4.0).view(2, 1, 1, 2)
        >>> moments(torch.nn.BatchNorm2d(1), maps)
        [tensor([1.5000]), tensor([1.2500])]
    """
    found = _mean_and_variance(inputs.flatten(2), of_each)
    if isinstance(layer, nn.Conv2d):
        size = [-(-length // _PATCH) * _PATCH for length in inputs.shape[2:]]
        maps = F.interpolate(inputs, size, mode="bilinear")
        patches = F.unfold(maps, _PATCH, stride=_PATCH)  # (B, channels · 16, P)
        found += _mean_and_variance(patches.transpose(1, 2), of_each)
    return found


def _mean_and_variance(values: Tensor, of_each: bool) -> list[Tensor]:
    """Over the last axis, and over the images unless it is of each, of values (B, K, N)."""
    axes = (2,) if of_each else (0, 2)
    return [values.mean(axes), values.var(axes, correction=0)]


@torch.no_grad()
def real_statistics(network: nn.Module, data: ImageData, seed: int) -> list[RealStatistics]:
    """What the training images give at every layer of a network in eval mode.

    The running ones are means over batches of 64 in a random order; of a BatchNorm layer they are
    its own. Those of a class are means over its images of what :func:`moments` gives of each.

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
    for rows in order.split(_BATCH):
        labels = data.label_train[rows]
        of_batch = _inputs_as(network, layers, data.image_train[rows])
        if not sums:
            sums = [_zeros(batch, each, data.num_classes) for batch, each in of_batch]
        for total, (batch, each) in zip(sums, of_batch, strict=True):
            for running, part in zip(total.running, batch, strict=True):
                running += part * (len(rows) / size)
            for of_classes, part in zip(total.of_classes, each, strict=True):
                of_classes.index_add_(0, labels, part)
    for layer, total in zip(layers, sums, strict=True):
        for of_classes in total.of_classes:
            of_classes /= counts.view(-1, 1)
        mean, variance = (getattr(layer, f"running_{each}", None) for each in ("mean", "var"))
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            total.running[:] = [mean, variance]
    return sums


_OfLayer = tuple[list[Tensor], list[Tensor]]  # of the batch, of each image


def _inputs_as(network: nn.Module, layers: Sequence[nn.Module], images: Tensor) -> list[_OfLayer]:
    """The moments of the batch and of each image, for every layer, in the order of ``layers``."""
    found: dict[int, _OfLayer] = {}

    def read(layer: nn.Module, inputs: Tensor) -> Tensor:
        of = partial(moments, layer, inputs)
        found[id(layer)] = of(), of(of_each=True)
        return inputs

    with reading_inputs(network, layers, read):
        network(images)
    return [found[id(layer)] for layer in layers]


def _zeros(batch: Sequence[Tensor], each: Sequence[Tensor], num_classes: int) -> RealStatistics:
    return RealStatistics(
        [torch.zeros_like(part) for part in batch],
        [part.new_zeros((num_classes, *part.shape[1:])) for part in each],
    )
