"""The networks by name: what each can be asked for, and what it is called."""

from typing import Literal, NamedTuple, get_args

from torch import nn

from mim4dd._checks import check_choice
from mim4dd.distill.networks._layers import Norm, Pooling
from mim4dd.distill.networks.alexnet import AlexNet
from mim4dd.distill.networks.convnet import ConvNet
from mim4dd.distill.networks.lenet import LeNet
from mim4dd.distill.networks.mlp import MLP
from mim4dd.distill.networks.resnet18 import ResNet18
from mim4dd.distill.networks.vgg11 import VGG11

__all__ = [
    "NETWORKS",
    "NetworkName",
    "check_network",
    "fixed_sizes",
    "make_network",
    "network_title",
    "networks_with",
]

NetworkName = Literal["convnet", "lenet", "alexnet", "vgg11", "resnet18", "mlp"]
NETWORKS: tuple[NetworkName, ...] = get_args(NetworkName)


class _Choices(NamedTuple):
    """What a network can be asked for; of norms and poolings the first is the field's default."""

    title: str
    norms: tuple[Norm, ...] = ("none",)
    poolings: tuple[Pooling, ...] = ("max",)
    has_width: bool = False
    has_depth: bool = False


_CHOICES: dict[NetworkName, _Choices] = {
    "convnet": _Choices(
        "ConvNet",
        ("instance", "group", "layer", "batch", "none"),
        ("avg", "max", "none"),
        has_width=True,
        has_depth=True,
    ),
    "lenet": _Choices("LeNet"),
    "alexnet": _Choices("AlexNet", ("none", "instance", "batch")),
    "vgg11": _Choices("VGG11", ("instance", "batch")),
    "resnet18": _Choices("ResNet18", ("instance", "batch"), ("none", "avg")),
    "mlp": _Choices("MLP", poolings=("none",), has_width=True),
}


def check_network(
    name: NetworkName, *, norm: Norm | None, pooling: Pooling | None
) -> tuple[Norm, Pooling]:
    """The norm and the pooling that a network gets; None takes the field's default.

    Raises:
        ValueError: If the name is unknown, or the network does not come with the norm or pooling.
    """
    check_choice("network", name, NETWORKS)
    choices = _CHOICES[name]
    norm = choices.norms[0] if norm is None else norm
    pooling = choices.poolings[0] if pooling is None else pooling
    check_choice(f"norm of {name}", norm, choices.norms)
    check_choice(f"pooling of {name}", pooling, choices.poolings)
    return norm, pooling


def networks_with(norm: Norm) -> list[NetworkName]:
    """The networks that come with a norm.

    Example:
        >>> from mim4dd.distill.networks import networks_with
        >>> networks_with("batch")
        ['convnet', 'alexnet', 'vgg11', 'resnet18']
    """
    return [name for name in NETWORKS if norm in _CHOICES[name].norms]


def fixed_sizes(name: NetworkName) -> set[str]:
    """Which of width and depth a network has of its own, whatever is asked for.

    Example:
        >>> from mim4dd.distill.networks import fixed_sizes
        >>> fixed_sizes("mlp")
        {'depth'}
    """
    choices = _CHOICES[name]
    given = {"width": choices.has_width, "depth": choices.has_depth}
    return {size for size, has in given.items() if not has}


def make_network(
    name: NetworkName,
    *,
    num_classes: int,
    channels: int,
    image_size: int,
    width: int = 128,
    depth: int = 3,
    norm: Norm | None = None,
    pooling: Pooling | None = None,
) -> nn.Module:
    """A freshly initialised network.

    Args:
        name: One of :data:`NETWORKS`.
        num_classes: Number of classes C.
        channels: Channels of the images.
        image_size: Height and width of the images, in pixels. For rows of D numbers, which the MLP
            takes, channels are D and the size is 1.
        width: Channels of the ConvNet, units of the MLP; the others have widths of their own.
        depth: Blocks of the ConvNet; the others have depths of their own.
        norm: None takes the field's default for the network.
        pooling: Likewise.

    Returns:
        The network; its ``feature_layers`` are the names of the layers to compare.

    Raises:
        ValueError: If the name is unknown, the network does not come with the norm or pooling, or
            a size does not fit.

    Example:
        >>> from mim4dd.distill.networks import make_network
        >>> network = make_network("vgg11", num_classes=10, channels=1, image_size=8)
        >>> network.feature_layers
        ['stages.0', 'stages.1', 'stages.2', 'stages.3', 'stages.4']
    """
    norm, pooling = check_network(name, norm=norm, pooling=pooling)
    match name:
        case "convnet":
            return ConvNet(num_classes, channels, width, depth, image_size, norm, pooling)
        case "lenet":
            return LeNet(num_classes, channels, image_size)
        case "alexnet":
            return AlexNet(num_classes, channels, image_size, norm)
        case "vgg11":
            return VGG11(num_classes, channels, image_size, norm)
        case "resnet18":
            return ResNet18(num_classes, channels, image_size, norm, pooling)
        case "mlp":
            return MLP(num_classes, channels * image_size**2, width)


def network_title(
    name: NetworkName, *, width: int, depth: int, norm: Norm | None, pooling: Pooling | None
) -> str:
    """What the network is, by the options that it has: equal titles mean equal networks.

    Example:
        >>> from mim4dd.distill.networks import network_title
        >>> network_title("resnet18", width=32, depth=2, norm=None, pooling="avg")
        'ResNet18 norm=instance pooling=avg'
    """
    norm, pooling = check_network(name, norm=norm, pooling=pooling)
    choices = _CHOICES[name]
    parts = [choices.title]
    if choices.has_width:
        parts.append(f"width={width}")
    if choices.has_depth:
        parts.append(f"depth={depth}")
    if len(choices.norms) > 1:
        parts.append(f"norm={norm}")
    if len(choices.poolings) > 1:
        parts.append(f"pooling={pooling}")
    return " ".join(parts)
