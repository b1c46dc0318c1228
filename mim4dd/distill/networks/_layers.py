"""What the networks share: norm, ReLU and pooling as modules, and checks of sizes and images."""

from typing import Literal

from torch import Tensor, nn

from mim4dd._checks import check_choice
from mim4dd.fused import NormReLUPool2d

__all__ = [
    "Norm",
    "Pooling",
    "check_image_size",
    "check_images",
    "check_sizes",
    "norm_alone",
    "norm_relu_pool",
    "padding_to_32",
]

Norm = Literal["instance", "group", "layer", "batch", "none"]
Pooling = Literal["avg", "max", "none"]


def norm_relu_pool(norm: Norm, width: int, pooling: Pooling = "none") -> list[nn.Module]:
    """Norm, ReLU and a pooling that halves the maps, of ``width`` channels; fused where it can be.

    Raises:
        ValueError: If ``norm`` or ``pooling`` is unknown.
    """
    check_choice("norm", norm, ("instance", "group", "layer", "batch", "none"))
    check_choice("pooling", pooling, ("avg", "max", "none"))
    last: list[nn.Module] = [nn.MaxPool2d(2)] if pooling == "max" else []
    if norm in ("batch", "none"):
        first = nn.BatchNorm2d(width) if norm == "batch" else nn.Identity()
        return [first, nn.ReLU(), *([nn.AvgPool2d(2)] if pooling == "avg" else last)]
    groups = {"instance": width, "group": min(4, width), "layer": 1}[norm]
    return [NormReLUPool2d(groups, width, pool=2 if pooling == "avg" else 1), *last]


def norm_alone(norm: Norm, width: int) -> nn.Module:
    """Instance norm, as groups of one channel like everywhere in the field, or batch norm."""
    check_choice("norm", norm, ("instance", "batch"))
    return nn.GroupNorm(width, width) if norm == "instance" else nn.BatchNorm2d(width)


def padding_to_32(image_size: int, padding: int) -> tuple[int, int]:
    """Padding of a first convolution that else keeps the size, and the size of its maps.

    The field pads the 28 pixels of MNIST to 32 there, so that all other layers stay the same.
    """
    return (padding + 2, 32) if image_size == 28 else (padding, image_size)


def check_sizes(**sizes: int) -> None:
    """Require every size to be at least 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def check_image_size(network: str, image_size: int, smallest: int) -> None:
    """Require images that the network does not shrink to nothing."""
    if image_size < smallest:
        raise ValueError(f"image_size must be at least {smallest} for {network}, got {image_size}")


def check_images(images: Tensor, channels: int, image_size: int) -> None:
    """Require images (B, channels, image_size, image_size)."""
    expected = (channels, image_size, image_size)
    if images.dim() != 4 or tuple(images.shape[1:]) != expected:
        raise ValueError(f"images must be (B, {expected}), got {tuple(images.shape)}")
