"""What a few distillations tell: their mean, how much they differ, and whether a gain is one.

The one room for this. The unit is the distillation: networks trained on one set are not independent
of each other, so a set counts with their mean, and ± is the standard deviation over sets.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["CONFIDENCE", "Spread"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation and number of some values; None where there are too few.

    Example:
        >>> from mim4dd.distill.spread import Spread
        >>> spread = Spread.of([0.88, 0.90])
        >>> round(spread.mean, 2), spread.count
        (0.89, 2)
    """

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
        # Of NaN and infinity statistics.stdev knows nothing.
        std = statistics.stdev(values) if math.isfinite(mean) else math.nan
        return Spread(mean, std, len(values))

    @staticmethod
    def of_gains(pairs: Iterable[tuple[float | None, float | None]]) -> "Spread":
        """The spread of first − second, over pairs that share a seed; those with None are left out.

        Example:
            >>> from mim4dd.distill.spread import Spread
            >>> Spread.of_gains([(0.5, 0.25), (0.75, None)])
            Spread(mean=0.25, std=None, count=1)
        """
        return Spread.of(
            [first - second for first, second in pairs if first is not None and second is not None]
        )

    def interval(self) -> tuple[float, float] | None:
        r"""Student's interval, of ``CONFIDENCE``, for the mean that the values are drawn around.

        :math:`\bar{x} \pm t_{n-1} s / \sqrt{n}`, for values that are roughly normal. None for fewer
        than two.

        Example:
            >>> from mim4dd.distill.spread import Spread
            >>> low, high = Spread.of([1.0, 2.0, 3.0]).interval()
            >>> round(low, 3), round(high, 3)
            (-0.484, 4.484)
        """
        if self.mean is None or self.std is None:
            return None
        from scipy.special import stdtrit  # comes with scikit-learn

        half = stdtrit(self.count - 1, 0.5 + CONFIDENCE / 2) * self.std / math.sqrt(self.count)
        return self.mean - float(half), self.mean + float(half)

    def p_value(self) -> float | None:
        """How often values around 0 would have a mean as far from it: Student's t, two-sided.

        Of gains: how likely as large a one is where two rows do not differ. None for fewer than
        two values.

        Example:
            >>> from mim4dd.distill.spread import Spread
            >>> round(Spread.of([1.0, 2.0, 3.0]).p_value(), 3), Spread.of([1.0]).p_value()
            (0.074, None)
        """
        if self.mean is None or self.std is None:
            return None
        if self.std == 0:
            return 1.0 if self.mean == 0 else 0.0
        from scipy.special import stdtr

        t = abs(self.mean) / (self.std / math.sqrt(self.count))
        return float(2 * stdtr(self.count - 1, -t))

    def text(self, scale: float = 1.0, digits: int = 1, sign: str = "") -> str:
        """Mean ± deviation for people; of one value the mean, of none nothing.

        Example:
            >>> from mim4dd.distill.spread import Spread
            >>> Spread.of([0.5, 0.7]).text(100), Spread.of([0.5]).text(100, sign="+")
            ('60.0 ± 14.1', '+50.0')
        """
        if self.mean is None:
            return ""
        text = f"{scale * self.mean:{sign}.{digits}f}"
        return text if self.std is None else f"{text} ± {scale * self.std:.{digits}f}"

    def interval_text(self, scale: float = 1.0, digits: int = 1) -> str:
        """The interval for people; nothing where there is none.

        Example:
            >>> from mim4dd.distill.spread import Spread
            >>> Spread.of([1.0, 2.0, 3.0]).interval_text()
            '-0.5 … +4.5'
        """
        interval = self.interval()
        if interval is None:
            return ""
        low, high = (f"{scale * end:+.{digits}f}" for end in interval)
        return f"{low} … {high}"

    def summary(self) -> dict[str, float | int | None]:
        """What JSON holds: mean, deviation, and of how many."""
        return {"mean": self.mean, "std": self.std, "n": self.count}
