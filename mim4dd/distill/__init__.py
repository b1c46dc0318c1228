"""Dataset distillation: base methods, the MIM4DD add-on, the loop, experts, evaluation, data."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mim4dd.distill.config.commands import DistillConfig

__all__ = ["resolve"]


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
