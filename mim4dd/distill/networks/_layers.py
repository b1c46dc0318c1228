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
    "first_padding",
    "norm_alone",
    "norm_relu_pool",
]

Norm = Literal["instance", "group", "layer", "batch", "none"]
Pooling = Literal["avg", "max", "none"]


def norm_relu_pool(
    norm: Norm, width: int, pooling: Pooling = "none", size: int | None = None
) -> list[nn.Module]:
    """Norm, ReLU and a pooling that halves the maps, of ``width`` channels; fused where it can be.

    The layer norm scales and shifts every entry of the maps by its own numbers, as in the field,
    and is the only one that needs the ``size`` of the maps.

    Raises:
        ValueError: If ``norm`` or ``pooling`` is unknown.
    """
    check_choice("norm", norm, ("instance", "group", "layer", "batch", "none"))
    check_choice("pooling", pooling, ("avg", "max", "none"))
    last: list[nn.Module] = [nn.MaxPool2d(2)] if pooling == "max" else []
    if norm in ("batch", "layer", "none"):
        first: nn.Module = nn.Identity()
        if norm == "batch":
            first = nn.BatchNorm2d(width)
        elif norm == "layer":
            assert size is not None
            first = nn.LayerNorm((width, size, size))
        return [first, nn.ReLU(), *([nn.AvgPool2d(2)] if pooling == "avg" else last)]
    groups = {"instance": width, "group": min(4, width)}[norm]
    return [NormReLUPool2d(groups, width, pool=2 if pooling == "avg" else 1), *last]


def norm_alone(norm: Norm, width: int) -> nn.Module:
    """Instance norm, as groups of one channel like everywhere in the field, or batch norm."""
    check_choice("norm", norm, ("instance", "batch"))
    return nn.GroupNorm(width, width) if norm == "instance" else nn.BatchNorm2d(width)


def first_padding(
    padding: int, channels: int, image_size: int, halvings: int, last_size: int
) -> tuple[int, int]:
    """Padding of a first convolution that else keeps the size, and the size of its maps.

    The field pads the 28 pixels of MNIST to 32 there, so that all other layers stay the same. Its
    code does so to every image of one channel, and sizes the later layers as if it had not. So its
    networks of one channel exist where the poolings round the 4 pixels away: there the padding is
    theirs. Elsewhere it keeps the size.

    Args:
        padding: The padding that keeps the size.
        channels: Channels of the images.
        image_size: Height and width of the images.
        halvings: How often the network halves its maps.
        last_size: Height and width of the maps that the field's linear map reads.
    """
    if image_size == 28:
        return padding + 2, 32
    padded = image_size + 4
    if channels == 1 and padded >> halvings == last_size > 0:
        return padding + 2, padded
    return padding, image_size


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
