"""How many images of each class."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = [
    "PerClass",
    "class_counts",
    "draw_of_class",
    "evenly_over_classes",
    "rows_of_classes",
    "spread",
]

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


def draw_of_class(
    labels: Tensor,
    label: int,
    count: int | Callable[[int], int],
    generator: torch.Generator,
) -> Tensor:
    """Different rows of a class in a random order.

    Args:
        labels: Class of every row. (N,)
        label: The class.
        count: How many rows at most, or what makes that of the size of the class.
        generator: Where the draw comes from, on the CPU.

    Returns:
        Rows on the device of ``labels``; fewer than ``count`` where the class is smaller.

    Example:
        >>> import torch
        >>> from mim4dd.distill.data.per_class import draw_of_class
        >>> labels = torch.tensor([0, 1, 0, 1, 1])
        >>> draw_of_class(labels, 0, 5, torch.Generator()).sort().values
        tensor([0, 2])
    """
    members = torch.where(labels == label)[0]
    most = count if isinstance(count, int) else count(len(members))
    order = torch.randperm(len(members), generator=generator)[:most]
    return members[order.to(members.device)]


def rows_of_classes(labels: Tensor, num_classes: int) -> tuple[Tensor, ...]:
    """The rows of every class, in their order."""
    return labels.argsort(stable=True).split(labels.bincount(minlength=num_classes).tolist())


def evenly_over_classes(labels: Tensor, num_classes: int, total: int) -> Tensor:
    """About ``total`` rows, by class: as many of each as there can be, at equal distances."""
    most = -(-total // num_classes)
    return torch.cat([spread(rows, most) for rows in rows_of_classes(labels, num_classes)])


def spread(rows: Tensor, most: int) -> Tensor:
    """Up to ``most`` of the rows, at equal distances.

    Example:
        >>> import torch
        >>> from mim4dd.distill.data.per_class import spread
        >>> spread(torch.arange(10), 4)
        tensor([0, 3, 6, 9])
    """
    return rows[:: max(1, -(-len(rows) // most))]
