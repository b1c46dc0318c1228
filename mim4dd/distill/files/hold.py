"""Folders in which one process at a time works."""

import errno
import fcntl
import os
import re
import socket
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

__all__ = ["Held", "gone", "hold", "require_there"]

_NOTE = ".lock"
_TRIES, _PAUSE = 20, 0.1  # workers of a process that was killed end a moment after it
_MOST_READ = 300
# What a folder answers that cannot be written: nobody can work there.
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class Held:
    """A folder that this process holds, wherever it is moved."""

    def __init__(self, folder: Path, descriptor: int, file: FileIO | None) -> None:
        self.folder = folder
        self.descriptor = descriptor
        self.file = file

    def require_there(self) -> None:
        """Raise FileNotFoundError if the folder was removed, moved, or replaced by another."""
        with suppress(OSError):
            if os.path.samestat(os.stat(self.folder), os.fstat(self.descriptor)):
                return
        raise gone(self.folder)


# Whatever this process writes asks for them; they are the process's, as the locks are.
_holds: list[Held] = []


def _close_in_child() -> None:
    """A fork has its parent's locks for its own, and could outlive it."""
    for held in _holds:
        if held.file is not None:
            held.file.close()


os.register_at_fork(after_in_child=_close_in_child)


def require_there(path: Path) -> None:
    """Raise FileNotFoundError if ``path`` is in a folder that is held and gone.

    Whoever makes the folders of a file asks first: what was moved away is not made anew.
    """
    for held in tuple(_holds):
        if path.absolute().is_relative_to(held.folder.absolute()):
            held.require_there()


def gone(folder: Path) -> FileNotFoundError:
    """What is raised where a folder is not there any more, so that it is not made anew."""
    return FileNotFoundError(
        errno.ENOENT,
        f"{folder} was removed or moved while a command was at work there. Once it is back, the "
        "command goes on from what it holds",
    )


@contextmanager
def hold(folder: Path, lock: bool = True) -> Iterator[Held]:
    """Work in a folder that nobody else works in, until the end of the block.

    The folder is made if it is not there, and removed in the end if nothing came into it. The
    kernel ends the lock with the process, however that ends. A folder that cannot be written is
    not locked. One whose file system has no locks is not either, which a warning says.

    Args:
        folder: The folder.
        lock: False where another process, with which this one works there, holds it already.

    Raises:
        BlockingIOError: If another process, or another thread, holds it.
        OSError: If it cannot be made, or its file ``.lock`` is a link or no file.

    Example:
        >>> from pathlib import Path
        >>> from mim4dd.distill.files.hold import hold
        >>> with hold(Path("runs/a")) as held:  # doctest: +SKIP
        ...     held.require_there()
    """
    made: list[Path] = []
    process = os.getpid()
    try:
        while True:
            made += _make(folder)
            with suppress(FileNotFoundError):  # removed again by who made it at the same time
                held = _enter(folder, lock)
                break
        _holds.append(held)
        try:
            yield held
        finally:
            _holds.remove(held)
            # A fork that ends within the block leaves the lock to its parent.
            if held.file is not None and os.getpid() == process:
                with suppress(OSError):
                    os.unlink(_NOTE, dir_fd=held.descriptor)
                held.file.close()
            os.close(held.descriptor)
    finally:
        if os.getpid() == process:
            with suppress(OSError):  # of the first that holds something
                for each in made:
                    each.rmdir()


def _enter(folder: Path, lock: bool) -> Held:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return Held(folder, descriptor, _take(folder, descriptor) if lock else None)
    except BaseException:
        os.close(descriptor)
        raise


def _make(folder: Path) -> list[Path]:
    """Make a folder, and return what was made, the deepest first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno, f"{folder} cannot be written ({error.strerror}); choose another place"
        ) from error
    return missing


def _take(folder: Path, descriptor: int) -> FileIO | None:
    """The locked file of a folder; None where the folder cannot be written."""
    holder = ""
    for _ in range(_TRIES):
        file = _open(folder, descriptor)
        if file is None:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(file)
            file.close()
            time.sleep(_PAUSE)
            continue
        except OSError as error:
            warnings.warn(
                f"the file system of {folder} has no locks ({error.strerror}): see to it that no "
                "other process works there",
                stacklevel=2,
            )
            return file
        if _is_there(file, descriptor):
            _write(file, folder)
            return file
        file.close()  # removed by its holder between its opening and its locking
    raise BlockingIOError(
        f"{folder} is in use: {holder or 'another process'} is at work there; wait for its end, "
        "stop it, or choose another directory"
    )


def _open(folder: Path, descriptor: int) -> FileIO | None:
    # A link could lead to any file of the user's, and a pipe would block.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        opened = os.open(_NOTE, flags, 0o666, dir_fd=descriptor)
    except OSError as error:
        if error.errno in _READ_ONLY and not os.access(folder, os.W_OK):
            return None
        why = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise _unusable(folder, error.errno, why) from error
    status = os.fstat(opened)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return open(opened, "r+b", buffering=0)
    os.close(opened)
    raise _unusable(folder, errno.EINVAL, "it is another's link, or no file")


def _unusable(folder: Path, number: int | None, why: str | None) -> OSError:
    return OSError(
        number, f"{folder / _NOTE} cannot be locked ({why}); remove it if nothing is at work there"
    )


def _is_there(file: FileIO, descriptor: int) -> bool:
    try:
        found = os.stat(_NOTE, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(file.fileno()))


def _write(file: FileIO, folder: Path) -> None:
    """Leave word of who holds the folder."""
    try:
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n".encode())
    except OSError as error:
        file.close()
        raise OSError(
            error.errno, f"{folder} cannot be written ({error.strerror}); choose another place"
        ) from error


def _read(file: FileIO) -> str:
    """Who holds a folder, as far as the file tells it."""
    found = re.fullmatch(rb"([0-9]+) ([\w.-]+)\n", file.read(_MOST_READ))
    return "" if found is None else f"process {int(found[1])} on {found[2].decode()}"
