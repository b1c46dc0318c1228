"""TensorBoard's event files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim4dd._extras import import_extra

__all__ = ["TensorBoard"]

_FLUSH_SECONDS = 5


class TensorBoard:
    """Writes event files, which TensorBoard reads while the run trains.

    A run that goes on adds a file; TensorBoard then drops what the files before it hold of the
    iterations that are done again.

    Args:
        folder: Where the files go; TensorBoard names the run by it.

    Raises:
        ModuleNotFoundError: If tensorboardX is not installed.

    Example:
        >>> from mim4dd import distill
        >>> board = distill.TensorBoard("runs/a/tensorboard")  # doctest: +SKIP
        >>> distill.run("digits", out="runs/a", loggers=[board])  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._make_writer = import_extra("tensorboardX").SummaryWriter
        self._writer: Any = None

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Add a scalar for each value."""
        writer = self._opened(iteration)
        for name, value in values.items():
            writer.add_scalar(name, value, iteration)

    def add_image(self, name: str, pixels: Any, iteration: int) -> None:
        """Add a picture. (H, W, 3) uint8"""
        self._opened(iteration).add_image(name, pixels, iteration, dataformats="HWC")

    def close(self) -> None:
        """Write what is not written yet."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _opened(self, iteration: int) -> Any:
        if self._writer is None:
            # Names hold the second: a run that goes on within it would write over its own file.
            number = len(list(self.folder.glob("events.*")))
            self._writer = self._make_writer(
                str(self.folder),
                purge_step=iteration,
                flush_secs=_FLUSH_SECONDS,
                filename_suffix=f".{number:04}",
            )
        return self._writer
