"""Reading files that anybody may have made: what is no file is refused, by its name."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["naming", "read_bytes", "read_text", "require_regular", "require_within"]


def require_regular(path: Path | str) -> None:
    """Raise ValueError unless ``path`` is a file: a pipe would block, and a device has no end.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If there is something else.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} must be a regular file, got a folder, a pipe or a device")


def require_within(path: Path, root: Path) -> None:
    """Raise ValueError if a link leads from ``path`` out of ``root``, where it stands."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"{path} is a link out of {root}, where nothing may be written: replace it by a folder"
        )


def read_bytes(path: Path) -> bytes:
    """What a file holds.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no file.
    """
    require_regular(path)
    return path.read_bytes()


def read_text(path: Path) -> str:
    """What a file of UTF-8 holds.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no file, or not of UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Have a ValueError of the block name the file, or the folder, that it is about."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error
