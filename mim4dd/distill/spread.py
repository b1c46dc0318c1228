"""Mean and standard deviation of a few values."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Spread"]


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation and number of some values; None where there are too few."""

    mean: float | None
    std: float | None
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """The spread of ``values``; NaN of any that hold NaN.

        Example:
            >>> from mim4dd.distill.spread import Spread
            >>> Spread.of([1.0, 3.0]).mean, Spread.of([2.0]).std
            (2.0, None)
        """
        if not values:
            return Spread(None, None, 0)
        mean = statistics.fmean(values)
        if len(values) == 1:
            return Spread(mean, None, 1)
        # Which statistics.stdev cannot take.
        std = math.nan if math.isnan(mean) else statistics.stdev(values)
        return Spread(mean, std, len(values))
