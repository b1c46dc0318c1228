"""Networks by their names in an option, each with options of its own."""

from mim4dd.distill.networks import NETWORKS, networks_with
from mim4dd.distill.settings import Settings, options_of

__all__ = ["parse_networks"]


def parse_networks(option: str, text: str) -> list[tuple[str, Settings]]:
    """Names and settings of networks with BatchNorm, as in ``resnet18,convnet:width=32:depth=3``.

    Args:
        option: What is read, for messages.
        text: Networks joined by commas; none where it is empty.

    Raises:
        ValueError: If there is no such network with BatchNorm, or it has no such option.

    Example:
        >>> from mim4dd.distill.methods.named_networks import parse_networks
        >>> parse_networks("other_teachers", "convnet:depth=1")
        [('convnet', ConvNetSettings(width=32, depth=1, norm='batch', pooling='avg'))]
    """
    return [_parse(option, part.strip()) for part in text.split(",")] if text else []


def _parse(option: str, text: str) -> tuple[str, Settings]:
    name, *options = text.split(":")
    if name not in networks_with("batch"):
        raise ValueError(
            f"{option} must name networks among {', '.join(networks_with('batch'))}, got {name!r}"
        )
    kind = NETWORKS[name].settings
    known = options_of(kind)
    values: dict[str, str | int] = {"norm": "batch"}
    for each in options:
        key, _, value = each.partition("=")
        if key not in known or key == "norm":
            allowed = ", ".join(key for key in known if key != "norm")
            raise ValueError(f"{option} must give {name} options among {allowed}, got {each!r}")
        if not isinstance(known[key].default, int):
            values[key] = value
        elif value.isdecimal():
            values[key] = int(value)
        else:
            raise ValueError(f"{option} must give {key} of {name} a number, got {value!r}")
    return name, kind(**values)
