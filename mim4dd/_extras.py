"""What optional parts need, and which extra of the package brings it."""

import importlib
from typing import Any

__all__ = ["import_extra", "missing"]

_EXTRAS = {
    "datasets": "hf",
    "optuna": "search",
    "tensorboardX": "tensorboard",
    "wandb": "wandb",
    "yaml": "yaml",
}


def import_extra(module: str) -> Any:
    """Import a module that not every installation has.

    Raises:
        ModuleNotFoundError: If it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ModuleNotFoundError(missing(module), name=module) from error


def missing(module: str) -> str:
    """That a module is not there, and what brings it."""
    if module == "torchvision":  # as an extra it would bring the torch that it pins
        return "torchvision is missing; install its release for the torch that is here"
    extra = _EXTRAS.get(module, "distill")
    return f"{module} is missing; pip install 'mim4dd[{extra}]' brings it"
