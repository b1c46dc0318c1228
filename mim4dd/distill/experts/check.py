"""Whether the parameters of a foreign expert do in our network what they did in theirs."""

import copy
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mim4dd.distill.data import ImageData
from mim4dd.distill.training.network import accuracy

__all__ = ["check_expert"]

_MOST_IMAGES = 2000
_DEVIATIONS = 3  # above chance, which one network in seven hundred reaches by luck


def check_expert(network: nn.Module, parameters: Sequence[Tensor], data: ImageData) -> float:
    """Test accuracy of a network with these parameters; warns where it is no better than chance.

    Batch norms have no running statistics in the field's files: theirs are taken from training
    images, as many as are tested on.

    Args:
        network: What the parameters are of; it is left as it is.
        parameters: In the order of ``network.parameters()``, of its shapes.
        data: Where the images come from, normalised as the expert saw them. Up to 2000 are tested.
    """
    network = copy.deepcopy(network).to(data.image_train.device)
    with torch.no_grad():
        for own, given in zip(network.parameters(), parameters, strict=True):
            own.copy_(given)
    dtype = next(network.parameters()).dtype
    _estimate_statistics(network, data.image_train[_some(data.label_train)].to(dtype))
    some = _some(data.label_test)
    images, labels = data.image_test[some].to(dtype), data.label_test[some]
    found = accuracy(network, images, labels)
    chance = labels.bincount().max().item() / len(labels)
    threshold = chance + _DEVIATIONS * math.sqrt(chance * (1 - chance) / len(labels))
    if not found > threshold:  # NaN included
        warnings.warn(
            f"the first expert classifies {found:.1%} of {len(labels)} test images of {data.name}, "
            f"no better than chance, which may reach {threshold:.1%}. Classes in their order, "
            "normalisation (zca), image size, network, norm and pooling must be those that the "
            "experts were trained with",
            stacklevel=3,
        )
    return found


def _some(values: Tensor) -> slice:
    """Up to 2000 of them, spread over all."""
    return slice(None, None, -(-len(values) // _MOST_IMAGES))


@torch.no_grad()
def _estimate_statistics(network: nn.Module, images: Tensor) -> None:
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    network.train()
    for batch in images.split(256):
        network(batch)
