"""Dataset distillation: base methods, the MIM4DD add-on, the loop, experts, evaluation, data."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mim4dd.distill.config.commands import DistillConfig
    from mim4dd.distill.face.one_run import Run
    from mim4dd.distill.face.start import open_run, run, train_experts
    from mim4dd.distill.loggers import Logger, TensorBoard, WandB
    from mim4dd.distill.runs import SyntheticSet, read_set

__all__ = [
    "MIM4DD",
    "Logger",
    "Run",
    "SyntheticSet",
    "TensorBoard",
    "WandB",
    "open_run",
    "read_set",
    "resolve",
    "run",
    "train_experts",
]

# These import all parts, so not before they are asked for.
_PLACES = {
    "Logger": "loggers",
    "Run": "face.one_run",
    "SyntheticSet": "runs",
    "TensorBoard": "loggers",
    "WandB": "loggers",
    "open_run": "face.start",
    "read_set": "runs",
    "run": "face.start",
    "train_experts": "face.start",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


def MIM4DD(**options: Any) -> dict[str, Any]:
    """The add-on with these options of its own, for the option ``add_on``.

    ``run(data, add_on=MIM4DD(weight=0.1))`` is ``run(data, add_on="mim4dd", weight=0.1)``.

    Example:
        >>> from mim4dd import distill
        >>> distill.resolve(method="dm", add_on=distill.MIM4DD(weight=0.5)).add_on.weight
        0.5
    """
    return {"add_on": "mim4dd", **options}


def resolve(**options: Any) -> "DistillConfig":
    """The configuration of a distillation, as ``mim4dd distill`` resolves its options.

    What is given counts; then what was published for the method, the data and the images per class
    (docs/methods.md), on digits what was measured; then the defaults of
    :class:`~mim4dd.distill.config.commands.DistillConfig` and of what is chosen by its name.
    Options are given flat, and held by what they are of: ``config.method.syn_steps``.
    ``ExpertsConfig.resolve`` and ``CompareConfig.resolve`` do the same for the other commands.

    Raises:
        ValueError: If an option does not exist, is not of its type or has a bad value.

    Example:
        >>> from mim4dd import distill
        >>> config = distill.resolve(method="mtt", data="cifar10", ipc=10)
        >>> config.iterations, config.network.width, config.zca
        (5000, 128, True)
    """
    from mim4dd.distill.config.commands import (
        DistillConfig,  # not before it is needed: it imports all parts
    )

    return DistillConfig.resolve(**options)
