"""The axis of an option in the pictures of a sweep."""

from collections.abc import Sequence
from typing import Any

from mim4dd.distill.sweep.grid import named, titled

__all__ = ["Scale"]


class Scale:
    """The axis of an option: its kind, and where each value lies."""

    def __init__(self, values: Sequence[Any]) -> None:
        numbers = all(type(value) in (int, float) for value in values)
        self.values = sorted(values) if numbers else list(values)
        positive = [value for value in self.values if numbers and value > 0]
        wide = len(positive) > 1 and max(positive) >= 10 * min(positive)
        self.kind = "category" if not numbers else "linear"
        if numbers and wide and min(self.values) >= 0:
            self.kind = "log" if len(positive) == len(values) else "symlog"
        self.smallest = min(positive, default=1)

    def position(self, value: Any) -> float:
        """Where a value lies on the axis."""
        return self.values.index(value) if self.kind == "category" else value

    def apply(self, axis: Any, name: str) -> None:
        """Scale an axis of matplotlib, and tick it at every value."""
        if self.kind == "symlog":  # 0 beside the decades, a decade away from the smallest
            axis.set_xscale("symlog", linthresh=self.smallest, linscale=1)
        elif self.kind != "category":
            axis.set_xscale(self.kind)
        ticks = [self.position(value) for value in self.values]
        labels = [titled(name, value) for value in self.values]
        # A narrow figure has room for fewer characters beside each other.
        room = min(25, 2 * axis.get_figure().get_figwidth())
        long = max(map(len, labels)) > 8 or sum(map(len, labels)) > room
        axis.set_xticks(ticks, labels, rotation=30 if long else 0, ha="right" if long else "center")
        axis.set_xticks([], minor=True)
        axis.margins(x=0.08)
        axis.set_xlabel(named(name))
