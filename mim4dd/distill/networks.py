"""The networks of the field, for small images."""

from typing import Literal

from torch import Tensor, nn

from mim4dd._checks import check_choice
from mim4dd.fused import NormReLUPool2d

__all__ = ["ConvNet"]

Norm = Literal["instance", "group", "layer", "batch", "none"]


class ConvNet(nn.Module):
    """The field's ConvNet: blocks of convolution, norm, ReLU, average pooling; then a linear map.

    Parameters come in the order of MTT's ConvNet, so that their trajectories fit. Images of 28
    pixels are padded to 32, as there.

    Args:
        num_classes: Number of classes C.
        channels: Channels of the images.
        width: Channels of every block.
        depth: Number of blocks; each halves the image.
        image_size: Height and width of the images, in pixels.
        norm: ``"instance"`` (the field's default), ``"group"`` (4 groups), ``"layer"``,
            ``"batch"`` or ``"none"``.

    Raises:
        ValueError: If a size is not positive, or the image is too small for ``depth`` blocks.

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
    ) -> None:
        super().__init__()
        for name, value in (
            ("num_classes", num_classes),
            ("channels", channels),
            ("width", width),
            ("depth", depth),
            ("image_size", image_size),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        padding = 3 if image_size == 28 else 1
        size = image_size + 2 * padding - 2
        if size < 2**depth:
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
                    *_norm_relu_pool(norm, width),
                )
            )
            size //= 2
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * size * size, num_classes)

    @property
    def feature_layers(self) -> list[str]:
        """Names of the submodules whose outputs are the features of the layers, early to late."""
        return [f"blocks.{block}" for block in range(len(self.blocks))]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, channels, image_size, image_size)."""
        expected = (self.channels, self.image_size, self.image_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"images must be (B, {expected}), got {tuple(images.shape)}")
        return self.classifier(self.blocks(images).flatten(1))


def _norm_relu_pool(norm: Norm, width: int) -> list[nn.Module]:
    check_choice("norm", norm, ("instance", "group", "layer", "batch", "none"))
    if norm in ("batch", "none"):
        first = nn.BatchNorm2d(width) if norm == "batch" else nn.Identity()
        return [first, nn.ReLU(), nn.AvgPool2d(2)]
    groups = {"instance": width, "group": min(4, width), "layer": 1}[norm]
    return [NormReLUPool2d(groups, width)]
