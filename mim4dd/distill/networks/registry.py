"""The networks by name: what each can be asked for, and what it is called."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from mim4dd.distill.registry import Entry, NoSettings, Registry
from mim4dd.distill.settings import Settings, options_of

__all__ = [
    "NETWORKS",
    "NetworkEntry",
    "make_network",
    "network",
    "network_title",
    "networks_with",
]

Make = TypeVar("Make", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class NetworkEntry(Entry):
    """A network; ``takes_rows`` says that rows of numbers go through it too."""

    make: Callable[..., nn.Module]
    takes_rows: bool = False


NETWORKS: Registry[NetworkEntry] = Registry("network", "mim4dd.distill.networks", "mim4dd.networks")


def network(
    name: str,
    *,
    title: str | None = None,
    settings: type[Settings] = NoSettings,
    takes_rows: bool = False,
) -> Callable[[Make], Make]:
    """Name a function that makes a network, for ``--network`` and configurations.

    It gets the number of classes, the channels, the height and width of the images in pixels, and
    the settings. The network's ``feature_layers`` are the names of the layers to compare.

    Args:
        name: What it is called where it is asked for.
        title: What it is called where it is shown, and by experts; by default its name.
        settings: A frozen dataclass of its options. ``config.network`` is one.
        takes_rows: Whether rows of D numbers go through it: channels are D then, and the size 1.

    Raises:
        ValueError: If another module has registered the name.

    Example:
        >>> from mim4dd.distill.networks import NETWORKS
        >>> NETWORKS["convnet"].settings(width=64).norm
        'instance'
    """

    def register(make: Make) -> Make:
        NETWORKS.add(NetworkEntry(name, title or name, make, settings, takes_rows))
        return make

    return register


def networks_with(norm: str) -> list[str]:
    """The networks that can be asked for a norm.

    Example:
        >>> from mim4dd.distill.networks import networks_with
        >>> networks_with("batch")
        ['alexnet', 'convnet', 'resnet18', 'vgg11']
    """
    return [
        name
        for name, entry in NETWORKS.items()
        if "norm" in entry.options and norm in entry.settings.choices("norm")
    ]


def make_network(
    name: str,
    *,
    num_classes: int,
    channels: int,
    image_size: int,
    settings: Settings | None = None,
) -> nn.Module:
    """A freshly initialised network.

    Args:
        name: One of ``NETWORKS``.
        num_classes: Number of classes C.
        channels: Channels of the images.
        image_size: Height and width of the images, in pixels. For rows of D numbers, which the MLP
            takes, channels are D and the size is 1.
        settings: What else the network can be asked for; by default its own defaults.

    Returns:
        The network; its ``feature_layers`` are the names of the layers to compare.

    Raises:
        ValueError: If the name is unknown, or a size does not fit.

    Example:
        >>> from mim4dd.distill.networks import make_network
        >>> network = make_network("vgg11", num_classes=10, channels=1, image_size=8)
        >>> network.feature_layers
        ['stages.0', 'stages.1', 'stages.2', 'stages.3', 'stages.4']
    """
    entry = NETWORKS[name]
    if settings is None:
        settings = entry.settings()
    return entry.make(num_classes, channels, image_size, settings)


def network_title(name: str, settings: Settings) -> str:
    """What the network is, by the options that it has: equal titles mean equal networks.

    Example:
        >>> from mim4dd.distill.networks import NETWORKS, network_title
        >>> network_title("resnet18", NETWORKS["resnet18"].settings(pooling="avg"))
        'ResNet18 norm=instance pooling=avg'
    """
    entry = NETWORKS[name]
    options = [f"{name}={getattr(settings, name)}" for name in options_of(entry.settings)]
    return " ".join([entry.title, *options])
