"""Folders that are either whole or not there."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mim4dd.distill.files.hold import require_there
from mim4dd.distill.files.temporary import remove_abandoned, temporary_of

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
    require_there(path)
    try:
        with _replacing(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno is None:  # of a library, which says more than a number would
            raise
        raise OSError(
            error.errno,
            f"{path} could not be written ({os.strerror(error.errno)}); what it held is kept",
        ) from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    temporary = temporary_of(path)
    temporary.mkdir()
    lock = os.open(temporary, os.O_RDONLY)
    try:
        with suppress(OSError):  # where there are no locks nothing is ever taken for abandoned
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield temporary
        replaced = temporary_of(path)
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
