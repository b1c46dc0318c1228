"""What a run's numbers are given to while it trains."""

from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["Logger", "numbers"]


class Logger(Protocol):
    """Takes the numbers of a run, an iteration after another.

    A run that goes on from a checkpoint logs the iterations after it once more. A closed logger may
    be given more: the run went on.

    Example:
        >>> from mim4dd import distill
        >>> class Printer:
        ...     def log(self, iteration, values):
        ...         print(iteration, sorted(values))
        ...     def close(self):
        ...         print("closed")
        >>> few = {"iterations": 1, "width": 4, "depth": 1, "batch_real": 4, "eval_every": 0}
        >>> run = distill.run("digits", method="dm", weight=0.0, loggers=[Printer()], **few)
        0 ['embedding_distance', 'loss', 'seconds', 'syn_lr']
        1 ['syn_lr']
        closed
    """

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Take what an iteration measured, by name, as ``metrics.jsonl`` holds it."""

    def close(self) -> None:
        """Write what is not written yet: the run ends here, done or stopped."""


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of metrics, without its iteration.

    Example:
        >>> from mim4dd.distill.loggers import numbers
        >>> numbers({"iteration": 3, "loss": 0.5, "note": "a text"})
        {'loss': 0.5}
    """
    return {
        name: value
        for name, value in row.items()
        if name != "iteration" and isinstance(value, int | float)
    }
