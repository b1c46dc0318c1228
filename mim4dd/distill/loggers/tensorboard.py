"""TensorBoard's event files."""

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
        self._library = import_extra("tensorboardX")
        self._file: Any = None
        self._flushed = 0.0

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Add a scalar for each value.

        Raises:
            OSError: If the file cannot be written.
        """
        scalar = self._library.summary.scalar
        with self._opened(iteration):
            for name, value in values.items():
                self._write(step=iteration, summary=scalar(name, value))

    def add_image(self, name: str, pixels: Any, iteration: int) -> None:
        """Add a picture. (H, W, 3) uint8

        Raises:
            OSError: If the file cannot be written.
        """
        with self._opened(iteration):
            image = self._library.summary.image(name, pixels, dataformats="HWC")
            self._write(step=iteration, summary=image)

    def close(self) -> None:
        """Write what is not written yet.

        Raises:
            OSError: If it cannot be.
        """
        if self._file is not None:
            file, self._file = self._file, None
            with self._named(Path(file.path)):
                file.close()

    @contextmanager
    def _opened(self, iteration: int) -> Iterator[None]:
        """Have a file to write to, which holds what comes from ``iteration`` on.

        Not by tensorboardX's writer: its thread dies of a full disk, and the run then waits for it.
        """
        path = _next_path(self.folder) if self._file is None else Path(self._file.path)
        with self._named(path):
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = self._library.RecordWriter(str(path))
                self._write(file_version="brain.Event:2")
                start = self._library.proto.event_pb2.SessionLog(status="START")
                self._write(step=iteration, session_log=start)
            yield
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()

    def _write(self, **content: Any) -> None:
        event = self._library.proto.event_pb2.Event(wall_time=time.time(), **content)
        self._file.write(event.SerializeToString())

    @contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._file = None
            raise OSError(error.errno, f"{path} could not be written ({error.strerror})") from error


def _next_path(folder: Path) -> Path:
    """A new name, the last in order, as TensorBoard reads files by their names.

    They hold the second by the clock, which may have been put back since the last one.
    """
    there = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    last = max((int(second) for second in there if second.isdecimal()), default=0)
    second = max(int(time.time()), last + 1)
    return folder / f"events.out.tfevents.{second:010}.{socket.gethostname()}.{len(there):04}"
