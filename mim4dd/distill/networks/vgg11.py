"""VGG-11 as the field cuts it for small images."""

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

__all__ = ["VGG11", "VGG11Settings"]

_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


@dataclass(frozen=True)
class VGG11Settings(Settings):
    """What VGG11 can be asked for.

    Args:
        norm: Norm of the network; the default is that of published codes.
    """

    norm: Literal["instance", "batch"] = "instance"


class VGG11(nn.Module):
    """VGG-11: eight 3 × 3 convolutions with norm and ReLU in five stages; then one linear map.

    Every stage ends in max pooling, and the linear map reads the mean of what is left: at 32 pixels
    one pixel, as in the field. Poolings that would leave fewer than 2 × 2 pixels to a following
    norm are left out, since the instance norm of one pixel is a constant: at 8 pixels the third and
    the fourth. Parameters come in the order of MTT's VGG11, or, with ``norm="batch"``, of VGG11BN,
    and do not depend on the size of the images. As there, the first convolution pads images of 28
    pixels to 32, and images of one channel by 3 pixels where that leaves one pixel, as it does at
    32.

    Args:
        num_classes: Number of classes C.
        channels: Channels of the images.
        image_size: Height and width of the images, in pixels; at least 2.
        norm: ``"instance"`` (the field's default) or ``"batch"``.

    Raises:
        ValueError: If a size is not positive, the image is too small, or ``norm`` is another.

    Example:
        >>> import torch
        >>> from mim4dd.distill.networks import VGG11
        >>> VGG11(num_classes=10, channels=1, image_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    References:
        Simonyan, Zisserman. Very Deep Convolutional Networks for Large-Scale Image Recognition.
        arXiv:1409.1556; sizes as in the code of DC and MTT.
    """

    def __init__(
        self, num_classes: int, channels: int = 3, image_size: int = 32, norm: Norm = "instance"
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, channels=channels)
        check_image_size("VGG11", image_size, 2)
        check_choice("norm", norm, ("instance", "batch"))
        self.channels, self.image_size = channels, image_size
        padding, size = first_padding(1, channels, image_size, halvings=5, last_size=1)
        before, stages = channels, []
        for index, widths in enumerate(_STAGES):
            layers: list[nn.Module] = []
            for width in widths:
                layers.append(nn.Conv2d(before, width, kernel_size=3, padding=padding))
                layers += norm_relu_pool(norm, width)
                before, padding = width, 1
            is_followed_by_a_norm = index < len(_STAGES) - 1
            if size // 2 >= (2 if is_followed_by_a_norm else 1):
                layers.append(nn.MaxPool2d(2))
                size //= 2
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(before, num_classes)

    @property
    def feature_layers(self) -> list[str]:
        """Names of the submodules whose outputs are the features of the layers, early to late."""
        return [f"stages.{stage}" for stage in range(len(self.stages))]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, channels, image_size, image_size)."""
        check_images(images, self.channels, self.image_size)
        return self.classifier(self.stages(images).mean((2, 3)))


@network("vgg11", title="VGG11", settings=VGG11Settings)
def _make(num_classes: int, channels: int, image_size: int, settings: VGG11Settings) -> VGG11:
    return VGG11(num_classes, channels, image_size, settings.norm)
