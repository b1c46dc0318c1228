"""How the pictures of a sweep look: the axis of an option, and colours."""

from collections.abc import Sequence
from typing import Any

from mim4dd.distill.sweep.grid import shown

__all__ = ["COLORS", "GREY", "MARKERS", "Scale"]

# Okabe and Ito's colours, which colour-blind people tell apart, and two of Tol's; markers say it
# again.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C510A",
    "#882255", "#999933",
)  # fmt: skip
MARKERS = "os^DvPX*<>"
GREY = "0.45"


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
        labels = [shown(value) for value in self.values]
        long = max(map(len, labels)) > 8 or sum(map(len, labels)) > 25
        axis.set_xticks(ticks, labels, rotation=30 if long else 0, ha="right" if long else "center")
        axis.set_xticks([], minor=True)
        axis.margins(x=0.08)
        axis.set_xlabel(name)
