"""What the metrics of a run come to at its end."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["final_bound", "final_means"]

_NOT_METRICS = ("iteration", "accuracy", "accuracy_std", "accuracy_seeds", "seconds")


def final_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Losses and bounds over the last tenth of a run: single steps differ by what they drew.

    Example:
        >>> from mim4dd.distill.runs.metrics import final_means
        >>> final_means([{"iteration": step, "loss": float(step)} for step in range(30)])
        {'loss': 28.0}
    """
    names = dict.fromkeys(name for row in rows for name in row if name not in _NOT_METRICS)
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: statistics.fmean(of[-max(1, len(of) // 10) :]) for name, of in values.items()}


def final_bound(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The MI bound over the last tenth of a run, in nats; None where no add-on measured it."""
    return final_means(rows).get("mi_lower_bound")
