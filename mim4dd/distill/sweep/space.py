"""What a search draws from, and what it tried."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mim4dd.distill.sweep.grid import Setting, option_name, parse_value

__all__ = ["Range", "Space", "Trial", "parse_space"]


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; ``log`` draws them by their logarithm."""

    low: float
    high: float
    log: bool

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def __str__(self) -> str:
        """As it is typed."""
        return f"{self.low}..{self.high}{':log' if self.log else ''}"


Space = Mapping[str, Range | list[Any]]


@dataclass(frozen=True)
class Trial:
    """A setting that was tried: the mean accuracy over seeds on held-out training images.

    ``accuracy`` is None where a distillation diverged.
    """

    number: int
    setting: Setting
    accuracy: float | None
    std: float | None


def parse_space(texts: Sequence[str]) -> dict[str, Range | list[Any]]:
    """What to search, from ``name=low..high``, ``name=low..high:log`` or ``name=value,value,…``.

    Raises:
        ValueError: If an option is unknown or named twice, a value is not of its type, or a range
            is empty or, on a logarithmic scale, not above 0.

    Example:
        >>> from mim4dd.distill.sweep.space import parse_space
        >>> parse_space(["weight=0.01..1:log", "critic=info_nce,nce"])
        {'weight': Range(low=0.01, high=1.0, log=True), 'critic': ['info_nce', 'nce']}
    """
    space: dict[str, Range | list[Any]] = {}
    for text in texts:
        left, equals, right = text.partition("=")
        if not equals or not right.strip():
            raise ValueError(f"vary must be name=low..high or name=value,value,…, got {text!r}")
        name = option_name(left)
        if name in space:
            raise ValueError(f"vary must name an option once, got {name} twice")
        if ".." in right:
            space[name] = _parse_range(name, right)
        else:
            space[name] = [
                parse_value(name, value) for value in right.split("|" if "|" in right else ",")
            ]
    return space


def _parse_range(name: str, text: str) -> Range:
    bounds, colon, scale = text.partition(":")
    low, high = (parse_value(name, bound) for bound in bounds.split("..", 1))
    if type(low) not in (int, float) or type(high) not in (int, float):
        raise ValueError(f"vary: {name} must be a number to have a range, got {text!r}")
    if colon and scale.strip() != "log":
        raise ValueError(f"vary: the scale of {name} must be log or left out, got {scale!r}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"vary: {name} must range from a number to a larger one, got {text!r}")
    if colon and low <= 0:
        raise ValueError(f"vary: {name} must be above 0 for a logarithmic scale, got {text!r}")
    return Range(low, high, bool(colon))
