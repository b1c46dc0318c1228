"""A network for what is not an image."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from mim4dd.distill.networks._layers import check_sizes
from mim4dd.distill.networks.registry import network
from mim4dd.distill.settings import Settings

__all__ = ["MLP", "MLPSettings"]

_DEPTH = 2


@dataclass(frozen=True)
class MLPSettings(Settings):
    """What the MLP can be asked for.

    Args:
        width: Units of every hidden layer.
    """

    width: int = 32

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(width=1)


class MLP(nn.Module):
    """Multi-layer perceptron: two hidden layers with ReLU; then a linear map.

    Parameters have the order of MTT's MLP, and for its images, 1 × 28 × 28 and 3 × 32 × 32, its
    shapes.

    Args:
        num_classes: Number of classes C.
        num_features: Numbers in a sample, D.
        width: Units of every hidden layer.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> import torch
        >>> from mim4dd.distill.networks import MLP
        >>> MLP(num_classes=3, num_features=13)(torch.zeros(2, 13)).shape
        torch.Size([2, 3])

    References:
        Sizes as in the code of DC and MTT.
    """

    def __init__(self, num_classes: int, num_features: int, width: int = 128) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, num_features=num_features, width=width)
        self.num_features = num_features
        sizes = [num_features] + _DEPTH * [width]
        self.hidden = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(before, after), nn.ReLU())
                for before, after in pairwise(sizes)
            )
        )
        self.classifier = nn.Linear(width, num_classes)

    @property
    def feature_layers(self) -> list[str]:
        """Names of the submodules whose outputs are the features of the layers, early to late."""
        return [f"hidden.{layer}" for layer in range(_DEPTH)]

    def forward(self, samples: Tensor) -> Tensor:
        """Logits (B, C) of samples (B, …) of D numbers each, such as rows or images."""
        rows = samples.flatten(1) if samples.dim() > 2 else samples
        if rows.dim() != 2 or rows.shape[1] != self.num_features:
            raise ValueError(
                f"samples must be (B, ...) of {self.num_features} numbers each, "
                f"got {tuple(samples.shape)}"
            )
        return self.classifier(self.hidden(rows))


@network("mlp", title="MLP", settings=MLPSettings, takes_rows=True)
def _make(num_classes: int, channels: int, image_size: int, settings: MLPSettings) -> MLP:
    return MLP(num_classes, channels * image_size**2, settings.width)
