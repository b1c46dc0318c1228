"""Names under which files and folders are written before they take their own."""

import fcntl
import glob
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

__all__ = ["remove_abandoned", "temporary_of"]


def temporary_of(path: Path) -> Path:
    """A new name beside ``path``. Whoever writes under it locks it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def remove_abandoned(path: Path) -> None:
    """Remove what is unfinished for ``path`` and whose writers live no more."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}"):
        # One that cannot be locked is being written; one that cannot be opened is gone.
        with suppress(OSError):
            lock = os.open(temporary, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if temporary.is_dir():
                    shutil.rmtree(temporary)
                else:
                    temporary.unlink()
            finally:
                os.close(lock)
