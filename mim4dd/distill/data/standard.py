"""The field's normalisation of its data sets, so that buffers and distilled sets of others fit.

Sources: ``get_dataset`` of VICO-UoE/DatasetCondensation and of GeorgeCazenavette/mtt-distillation.
Where they differ, on CIFAR-100, MTT's is taken, whose experts are the ones passed around: it uses
CIFAR-10's numbers there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.normalization import fixed_normalization
from mim4dd.distill.data.tensors import from_tensors

__all__ = ["IMAGENET", "STATISTICS", "from_standard"]

_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Mean and deviation of every channel, of pixels from 0 to 1.
STATISTICS = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2861,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "tiny_imagenet": IMAGENET,
}


def from_standard(
    name: str,
    train: tuple[Tensor, Tensor],  # (N, channels, H, W) uint8, (N,)
    test: tuple[Tensor, Tensor],
    class_names: Sequence[str],
    zca: bool,
) -> ImageData:
    """A named data set with the field's normalisation, or with ZCA fitted to its own pixels."""
    normalization = None
    if not zca:
        mean, std = STATISTICS.get(name, IMAGENET)
        normalization = fixed_normalization(torch.tensor(mean), torch.tensor(std))
    return from_tensors(
        *train,
        test,
        class_names=class_names,
        name=name,
        zca=zca,
        normalization=normalization,
    )
