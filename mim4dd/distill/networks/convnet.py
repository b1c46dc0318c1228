"""The network that the field distils with."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from mim4dd.distill.networks._layers import (
    Norm,
    Pooling,
    check_images,
    check_sizes,
    first_padding,
    norm_relu_pool,
)
from mim4dd.distill.networks.registry import network
from mim4dd.distill.settings import Settings

__all__ = ["ConvNet", "ConvNetSettings"]


@dataclass(frozen=True)
class ConvNetSettings(Settings):
    """What the ConvNet can be asked for; norm and pooling are the field's by default.

    Args:
        width: Channels of every block of the ConvNet.
        depth: Blocks of the ConvNet; each halves the image.
        norm: Norm of the network.
        pooling: Pooling of the network.
    """

    width: int = 32
    depth: int = 2
    norm: Literal["instance", "group", "layer", "batch", "none"] = "instance"
    pooling: Literal["avg", "max", "none"] = "avg"

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(width=1, depth=1)


class ConvNet(nn.Module):
    """The field's ConvNet: blocks of convolution, norm, ReLU, pooling; then a linear map.

    Parameters have the order and shapes of MTT's ConvNet, so that their trajectories fit. As there,
    the first convolution pads images of 28 pixels to 32, and images of one channel by 3 pixels
    wherever MTT's network of them runs: at 3 blocks of 32 or 64 pixels, not at 1 or 2.

    Args:
        num_classes: Number of classes C.
        channels: Channels of the images.
        width: Channels of every block.
        depth: Number of blocks; each halves the image, unless there is no pooling.
        image_size: Height and width of the images, in pixels.
        norm: ``"instance"`` (the field's default), ``"group"`` (4 groups), ``"layer"`` (with a
            scale and a shift of every entry of the maps), ``"batch"`` or ``"none"``.
        pooling: ``"avg"`` (the field's default), ``"max"`` or ``"none"``.

    Raises:
        ValueError: If a size is not positive, the image is too small for ``depth`` blocks, or
            ``norm`` or ``pooling`` is unknown.

    Example:
        >>> import torch
        >>> from mim4dd.distill.networks import ConvNet
        >>> ConvNet(num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    References:
        Gidaris, Komodakis. Dynamic Few-Shot Visual Learning without Forgetting. arXiv:1804.09458.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        width: int = 128,
        depth: int = 3,
        image_size: int = 32,
        norm: Norm = "instance",
        pooling: Pooling = "avg",
    ) -> None:
        super().__init__()
        check_sizes(
            num_classes=num_classes,
            channels=channels,
            width=width,
            depth=depth,
            image_size=image_size,
        )
        # MTT's layer norm is of the size that the image has without the padding.
        halvings = 0 if pooling == "none" or norm == "layer" else depth
        last_size = image_size >> halvings
        padding, size = first_padding(1, channels, image_size, halvings, last_size)
        if pooling != "none" and size < 2**depth:
            raise ValueError(
                f"depth must be at most {size.bit_length() - 1} for image_size {image_size}, "
                f"got {depth}"
            )
        self.channels, self.image_size = channels, image_size
        blocks = []
        for block in range(depth):
            blocks.append(
                nn.Sequential(
                    nn.Conv2d(
                        channels if block == 0 else width,
                        width,
                        kernel_size=3,
                        padding=padding if block == 0 else 1,
                    ),
                    *norm_relu_pool(norm, width, pooling, size),
                )
            )
            size //= 1 if pooling == "none" else 2
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * size * size, num_classes)

    @property
    def feature_layers(self) -> list[str]:
        """Names of the submodules whose outputs are the features of the layers, early to late."""
        return [f"blocks.{block}" for block in range(len(self.blocks))]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, channels, image_size, image_size)."""
        check_images(images, self.channels, self.image_size)
        return self.classifier(self.blocks(images).flatten(1))


@network("convnet", title="ConvNet", settings=ConvNetSettings)
def _make(num_classes: int, channels: int, image_size: int, settings: ConvNetSettings) -> ConvNet:
    width, depth = settings.width, settings.depth
    return ConvNet(num_classes, channels, width, depth, image_size, settings.norm, settings.pooling)
