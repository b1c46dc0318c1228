"""How many images of each class."""

from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["PerClass", "class_counts"]

PerClass: TypeAlias = int | Sequence[int]
"""Images per class: one number for all classes, or one for each in their order."""


def class_counts(ipc: PerClass, num_classes: int) -> list[int]:
    """The number of images of each class.

    Raises:
        ValueError: If there is not a number for each class, or one below 1.

    Example:
        >>> from mim4dd.distill.data.per_class import class_counts
        >>> class_counts(3, num_classes=2), class_counts((3, 1), num_classes=2)
        ([3, 3], [3, 1])
    """
    counts = [ipc] * num_classes if isinstance(ipc, int) else list(ipc)
    if len(counts) != num_classes:
        raise ValueError(
            f"ipc must be a number for each of the {num_classes} classes, or one for all, "
            f"got {len(counts)} numbers"
        )
    if min(counts) < 1:
        raise ValueError(f"ipc must be at least 1, got {min(counts)}")
    return counts
