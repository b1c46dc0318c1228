"""Which samples of a large set a picture shows, and how its caption says so."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Choice", "choose"]


class Choice(NamedTuple):
    """Rows of the samples shown, class by class, and what is left out; "" where nothing is."""

    by_class: list[Tensor]
    left_out: str


def choose(labels: Tensor, class_names: Sequence[str], max_classes: int, max_each: int) -> Choice:
    """The first samples of the first classes, so that a picture of them stays readable.

    Args:
        labels: Class of every sample. (n,)
        class_names: Names of the C classes.
        max_classes: Classes to show at most.
        max_each: Samples of each to show at most.

    Raises:
        ValueError: If a label is none of the C classes.
    """
    num_classes, labels = len(class_names), labels.cpu()
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must be classes from 0 to {num_classes - 1}, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
    members = [torch.where(labels == label)[0] for label in range(min(num_classes, max_classes))]
    most = max(len(rows) for rows in members)
    parts = []
    if num_classes > max_classes:
        parts.append(f"the first {max_classes} of {num_classes} classes")
    if most > max_each:
        parts.append(f"the first {max_each} of {most} samples per class")
    return Choice(
        [rows[:max_each] for rows in members], f"Shown: {', '.join(parts)}." if parts else ""
    )
