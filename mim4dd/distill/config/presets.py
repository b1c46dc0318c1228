"""Defaults by method, data set and images per class: published ones, and on digits our own."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from mim4dd.distill.methods import METHODS

__all__ = ["expert_preset", "preset"]


@cache
def _presets() -> dict[str, Any]:
    return dict(json.loads(files("mim4dd.distill.config").joinpath("presets.json").read_bytes()))


def preset(data: str, method: str | None = None, ipc: int | None = None) -> dict[str, Any]:
    """What options are by default for a data set, and for a method at some images per class.

    Args:
        data: Name of the data set.
        method: Name of the method; without it only what concerns network and evaluation.
        ipc: Images per class. Between two that are tabulated, the smaller one's options apply.

    Returns:
        Values by the name of the option; none where nothing is known.

    Example:
        >>> from mim4dd.distill.config.presets import preset
        >>> preset("cifar10", "mtt", ipc=10)["syn_steps"]
        30
    """
    presets = _presets()
    options = dict(presets["networks"].get(data, {}))
    by_ipc: Mapping[str, Mapping[str, Any]] = presets["methods"].get(method, {}).get(data, {})
    if method is not None:
        by_ipc = METHODS[method].presets.get(data, by_ipc)
    options |= by_ipc.get("any", {})
    tabulated = [int(key) for key in by_ipc if key != "any" and int(key) <= (ipc or 0)]
    if tabulated:
        options |= by_ipc[str(max(tabulated))]
    return options


def expert_preset(data: str) -> dict[str, Any]:
    """What options of training experts are by default for a data set."""
    presets = _presets()
    return presets["networks"].get(data, {}) | presets["experts"].get(data, {})
