"""ResNet-18 as the field cuts it for small images."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from mim4dd._checks import check_choice
from mim4dd.distill.networks._layers import (
    Norm,
    Pooling,
    check_image_size,
    check_images,
    check_sizes,
    norm_alone,
    norm_relu_pool,
)
from mim4dd.distill.networks.registry import network
from mim4dd.distill.settings import Settings

__all__ = ["ResNet18", "ResNet18Settings"]

_WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class ResNet18Settings(Settings):
    """What ResNet18 can be asked for; both are the field's by default.

    Args:
        norm: Norm of the network.
        pooling: How maps are halved: "none" by strides, "avg" by average pooling instead.
    """

    norm: Literal["instance", "batch"] = "instance"
    pooling: Literal["none", "avg"] = "none"


class ResNet18(nn.Module):
    """ResNet-18: a 3 × 3 convolution, four stages of two residual blocks, then one linear map.

    From the second on a stage halves the maps, by the stride of its convolutions as in MTT's
    ResNet18, or by average pooling as in its ResNet18_AP; the first reads the mean of the last maps
    with its linear map, the other all their pixels. As there, that mean is of the first 4 × 4
    pixels where the last maps have 5 to 7, of images of 33 to 56. Halvings that would leave fewer
    than 2 × 2 pixels are left out, since the instance norm of one pixel is a constant: at 8 pixels
    the last. Parameters come in MTT's order, or, with ``norm="batch"``, in that of the BN variants.

    Args:
        num_classes: Number of classes C.
        channels: Channels of the images.
        image_size: Height and width of the images, in pixels; at least 2.
        norm: ``"instance"`` (the field's default) or ``"batch"``.
        pooling: ``"none"`` for strides, or ``"avg"`` for ResNet18_AP.

    Raises:
        ValueError: If a size is not positive, the image is too small, or ``norm`` or ``pooling`` is
            another.

    Example:
        >>> import torch
        >>> from mim4dd.distill.networks import ResNet18
        >>> ResNet18(num_classes=10, channels=1, image_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    References:
        He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. arXiv:1512.03385; sizes
        as in the code of DC and MTT.
    """

    any_memory_format = True

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        image_size: int = 32,
        norm: Norm = "instance",
        pooling: Pooling = "none",
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, channels=channels)
        check_image_size("ResNet18", image_size, 2)
        check_choice("norm", norm, ("instance", "batch"))
        check_choice("pooling", pooling, ("none", "avg"))
        self.channels, self.image_size, self.pooling = channels, image_size, pooling
        size, before = image_size, _WIDTHS[0]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, before, kernel_size=3, padding=1, bias=False),
            *norm_relu_pool(norm, before),
        )
        stages = []
        for index, width in enumerate(_WIDTHS):
            # A convolution with stride 2 rounds up, a pooling down.
            half = size // 2 if pooling == "avg" else (size + 1) // 2
            halves = index > 0 and half >= 2
            stages.append(
                nn.Sequential(
                    _Block(before, width, norm, pooling, halves),
                    _Block(width, width, norm, pooling, halves=False),
                )
            )
            size, before = half if halves else size, width
        self.stages = nn.Sequential(*stages)
        pixels = size * size if pooling == "avg" else 1
        self.classifier = nn.Linear(before * pixels, num_classes)

    @property
    def feature_layers(self) -> list[str]:
        """Names of the submodules whose outputs are the features of the layers, early to late."""
        return [f"stages.{stage}" for stage in range(len(self.stages))]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, channels, image_size, image_size)."""
        check_images(images, self.channels, self.image_size)
        maps = self.stages(self.stem(images))
        if self.pooling == "avg":
            return self.classifier(maps.flatten(1))
        seen = 4 if maps.shape[2] < 8 else maps.shape[2]  # avg_pool2d(4) leaves the rest out
        return self.classifier(maps[..., :seen, :seen].mean((2, 3)))


class _Block(nn.Module):
    """Two convolutions beside a shortcut; the first of them halves the maps or not."""

    any_memory_format = True

    def __init__(self, before: int, width: int, norm: Norm, pooling: Pooling, halves: bool) -> None:
        super().__init__()
        stride = 2 if halves and pooling == "none" else 1
        pool: Pooling = "avg" if halves and pooling == "avg" else "none"
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.Sequential(*norm_relu_pool(norm, width, pool))
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = norm_alone(norm, width)
        self.shortcut: nn.Module = nn.Identity()
        if before != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride=stride, bias=False),
                *([nn.AvgPool2d(2)] if pool == "avg" else []),
                norm_alone(norm, width),
            )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, width, H', W') of maps (B, before, H, W)."""
        residual = self.norm2(self.conv2(self.norm1(self.conv1(maps))))
        return (residual + self.shortcut(maps)).relu()


@network("resnet18", title="ResNet18", settings=ResNet18Settings)
def _make(num_classes: int, channels: int, image_size: int, settings: ResNet18Settings) -> ResNet18:
    return ResNet18(num_classes, channels, image_size, settings.norm, settings.pooling)
