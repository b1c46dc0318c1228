"""What a base method and an add-on agree on."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mim4dd.distill.data import ImageData

__all__ = ["BaseLoss", "BaseMethod", "ComparedNetwork", "RealData"]


@dataclass(frozen=True)
class RealData:
    """The real side of a step: the images, and the random stream that every draw comes from."""

    data: ImageData
    generator: torch.Generator  # on the CPU

    def integer(self, below: int) -> int:
        """A number in [0, below)."""
        return int(torch.randint(below, (), generator=self.generator))

    def sample(self, batch: int) -> tuple[Tensor, Tensor]:
        """``batch`` training images and their labels, each drawn independently of the others."""
        size = len(self.data.image_train)
        rows = torch.randint(size, (batch,), generator=self.generator)
        rows = rows.to(self.data.image_train.device)
        return self.data.image_train[rows], self.data.label_train[rows]


class ComparedNetwork(NamedTuple):
    """A network at the parameters whose features of synthetic and of real samples may be compared.

    ``theta_syn`` carries gradients into the synthetic set where they were trained on it.
    """

    network: nn.Module
    theta_syn: Tensor  # (P,)
    theta_real: Tensor  # (P,)


@dataclass(frozen=True)
class BaseLoss:
    """A method's loss of one outer step, and the networks that an add-on may look into."""

    value: Tensor
    compared: list[ComparedNetwork]
    metrics: dict[str, float] = field(default_factory=dict)


class BaseMethod(Protocol):
    """A distillation objective. It knows nothing of the loop, the optimisers or the files."""

    def loss(
        self,
        image_syn: Tensor,  # (n, channels, H, W)
        label_syn: Tensor,  # (n,)
        syn_lr: Tensor,  # ()
        real: RealData,
    ) -> BaseLoss:
        """The loss of one outer step, differentiable in images, labels and step size."""
        ...
