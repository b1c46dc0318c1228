"""Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim4dd._extras import import_extra

__all__ = ["WandB"]


class WandB:
    """Logs to Weights & Biases, as ``wandb login`` or ``WANDB_MODE=offline`` have set it up.

    A run that goes on becomes another run there, of the same group, from the iteration on at which
    it goes on: what was sent cannot be taken back.

    Args:
        project: The project there.
        group: What the parts of a run have in common; the first part is called so, too.
        config: Options, to be shown there.
        folder: Where wandb keeps its own files; by default where it does by itself.

    Raises:
        ModuleNotFoundError: If wandb is not installed.

    Example:
        >>> from mim4dd import distill
        >>> logger = distill.WandB("distillation", "a")  # doctest: +SKIP
        >>> distill.run("digits", out="runs/a", loggers=[logger])  # doctest: +SKIP
    """

    def __init__(
        self,
        project: str = "mim4dd",
        group: str | None = None,
        config: Mapping[str, Any] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self.project = project
        self.group = group
        self.config = dict(config or {})
        self.folder = folder
        self._wandb = import_extra("wandb")
        self._run: Any = None

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log all values at the step ``iteration``."""
        if self._run is None:
            self._run = self._begin(iteration)
        self._run.log(dict(values), step=iteration)

    def close(self) -> None:
        """Send what is not sent yet."""
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _begin(self, iteration: int) -> Any:
        name = self.group
        if name is not None and iteration > 0:
            name = f"{name} from {iteration}"
        return self._wandb.init(
            project=self.project,
            group=self.group,
            name=name,
            config=self.config,
            dir=None if self.folder is None else str(self.folder),
        )
