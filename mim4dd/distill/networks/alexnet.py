"""AlexNet as the field cuts it for small images."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from mim4dd._checks import check_choice
from mim4dd.distill.networks._layers import (
    Norm,
    check_image_size,
    check_images,
    check_sizes,
    first_padding,
    norm_relu_pool,
)
from mim4dd.distill.networks.registry import network
from mim4dd.distill.settings import Settings

__all__ = ["AlexNet", "AlexNetSettings"]

_STAGES = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))


@dataclass(frozen=True)
class AlexNetSettings(Settings):
    """What AlexNet can be asked for.

    Args:
        norm: Norm of the network; the default is that of published codes.
    """

    norm: Literal["none", "instance", "batch"] = "none"


class AlexNet(nn.Module):
    """AlexNet: five convolutions with ReLU, the first two of 5 × 5; then one linear map.

    Max pooling halves the maps after the first, second and fifth. Parameters come in the order of
    MTT's AlexNet, or, with ``norm="batch"``, of DC's AlexNetBN. As there, the first convolution
    pads images of 28 pixels to 32, and images of one channel by 4 pixels where that leaves the
    classifier its 4 × 4 pixels, as it does at 32; other sizes have a classifier of their own.

    Args:
        num_classes: Number of classes C.
        channels: Channels of the images.
        image_size: Height and width of the images, in pixels; at least 8.
        norm: ``"none"`` (the field's default), ``"instance"`` or ``"batch"``.

    Raises:
        ValueError: If a size is not positive, the image is too small, or ``norm`` is another.

    Example:
        >>> import torch
        >>> from mim4dd.distill.networks import AlexNet
        >>> AlexNet(num_classes=10, channels=1, image_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    References:
        Krizhevsky, Sutskever, Hinton. ImageNet Classification with Deep Convolutional Neural
        Networks. NeurIPS 2012; sizes as in the code of DC and MTT.
    """

    def __init__(
        self, num_classes: int, channels: int = 3, image_size: int = 32, norm: Norm = "none"
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, channels=channels)
        check_image_size("AlexNet", image_size, 8)
        check_choice("norm", norm, ("none", "instance", "batch"))
        self.channels, self.image_size = channels, image_size
        first, size = first_padding(2, channels, image_size, halvings=3, last_size=4)
        before = channels
        stages: list[nn.Module] = []
        for width, kernel, is_pooled in _STAGES:
            padding = kernel // 2 if stages else first
            stages.append(
                nn.Sequential(
                    nn.Conv2d(before, width, kernel, padding=padding),
                    *norm_relu_pool(norm, width, "max" if is_pooled else "none"),
                )
            )
            size, before = size // 2 if is_pooled else size, width
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(before * size * size, num_classes)

    @property
    def feature_layers(self) -> list[str]:
        """Names of the submodules whose outputs are the features of the layers, early to late."""
        return [f"stages.{stage}" for stage in range(len(self.stages))]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, channels, image_size, image_size)."""
        check_images(images, self.channels, self.image_size)
        return self.classifier(self.stages(images).flatten(1))


@network("alexnet", title="AlexNet", settings=AlexNetSettings)
def _make(num_classes: int, channels: int, image_size: int, settings: AlexNetSettings) -> AlexNet:
    return AlexNet(num_classes, channels, image_size, settings.norm)
