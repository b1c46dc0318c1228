"""Folders that are either whole or not there."""

import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replacing_folder"]


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the name ``path`` at the end of the block.

    A block that fails, or is killed, leaves at ``path`` what was there; what a killed one had
    begun is removed by the next. A folder that is replaced is gone for the moment between two
    renames.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    lock = os.open(temporary, os.O_RDONLY)
    try:
        with suppress(OSError):  # where there are no locks nothing is ever taken for abandoned
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield temporary
        replaced = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        if path.exists():
            path.rename(replaced)
        try:
            temporary.rename(path)
        except BaseException:
            if replaced.exists():
                replaced.rename(path)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(path: Path) -> None:
    """Remove unfinished folders for ``path`` whose writers live no more."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}"):
        with suppress(OSError):  # one that cannot be locked is being written
            lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(temporary)
            finally:
                os.close(lock)
