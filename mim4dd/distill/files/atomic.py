"""Files that are either whole or not there: atomic writes, and tensors without pickles."""

import csv
import errno
import fcntl
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor

from mim4dd.distill.files.hold import require_there
from mim4dd.distill.files.regular import read_bytes, require_regular
from mim4dd.distill.files.temporary import remove_abandoned, temporary_of

__all__ = [
    "append",
    "link",
    "load_tensors",
    "open_tensors",
    "parse_json",
    "read_header",
    "read_json",
    "readable",
    "replacing",
    "require_writable",
    "save_tensors",
    "write_atomically",
    "write_csv",
    "write_json",
    "write_text",
]

_HEADER = "mim4dd"
_NO_SYNC = (errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOTSUP)
_SHOWN = 300  # characters of another library's message


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the name ``path`` at the end of the block, whole and on disk.

    At any moment, crash or full disk included, ``path`` is the old file or the new one. What a
    killed process left of an earlier try is removed.

    Raises:
        OSError: If it cannot be written; what stood at ``path`` before still does.
    """
    require_there(path)
    temporary = temporary_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        with _locked(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # which on a read-only disk even a file that is not there raises
            temporary.unlink()
        if isinstance(error, OSError):
            raise _unwritten(path, error) from error
        raise
    _sync_folder(path)


def _unwritten(path: Path, error: OSError) -> OSError:
    why = "it is a link" if error.errno == errno.ELOOP else error.strerror
    return OSError(error.errno, f"{path} could not be written ({why}); what it held is kept")


def _sync_folder(path: Path) -> None:
    """Have the rename itself on the disk, where the file system can do that for folders."""
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise OSError(
                error.errno, f"{path} could not be written for good ({error.strerror})"
            ) from error


def _locked(temporary: Path) -> BinaryIO:
    """A new file under a lock, which ends with this process however that ends."""
    while True:
        file = temporary.open("wb")
        # Without locks, as on some network file systems, nothing is ever taken for abandoned.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink > 0:
            return file
        file.close()  # removed between its making and its locking


def require_writable(path: Path) -> None:
    """Raise OSError if no file could take the name ``path``: before the work that ends in it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(
            error.errno, f"{path} cannot be written ({error.strerror}); choose another place"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment, crash or full disk included, it is the old or the new.

    Raises:
        OSError: If it cannot be written; what stood at ``path`` before still does.
    """
    with replacing(path) as file:
        file.write(content)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file, which is made if it is not there. A link is not followed.

    Raises:
        OSError: If not all of it can be written; what is new may be cut off then.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    try:
        with open(path, "ab", opener=lambda name, _: os.open(name, flags, 0o666)) as file:
            file.write(content)
    except OSError as error:
        raise _unwritten(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically; what a file's name has that is no text, as it is there."""
    write_atomically(path, text.encode(errors="surrogateescape"))


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows of cells to a CSV file, atomically; lines end as on Unix everywhere."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def readable(name: str) -> str:
    """The name of a file as text, the same in every locale, for what is drawn or compared.

    Python reads names by the locale, and holds bytes that are no text of it by surrogates. Names
    are UTF-8 here, and other bytes "�".
    """
    return name.encode(errors="surrogateescape").decode(errors="replace")


def link(source: Path, target: Path) -> None:
    """Give what ``source`` holds a second name, atomically; a copy where links cannot be had.

    A file that is later replaced under one name keeps its content under the other.
    """
    require_there(target)
    temporary = temporary_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target)
        os.link(source, temporary)
    except OSError:
        write_atomically(target, source.read_bytes())
        return
    try:
        os.replace(temporary, target)
    except OSError as error:
        raise _unwritten(target, error) from error
    finally:
        with suppress(OSError):  # where both were one file already, replace leaves it
            temporary.unlink()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: If the file is not there or does not hold one.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    return parse_json(content, str(path))


def parse_json(text: bytes | str, source: str) -> dict[str, Any]:
    """A JSON object, of text that stands in ``source``.

    Raises:
        ValueError: If the text is something else.
    """
    try:
        value = json.loads(text, parse_int=_parse_int)
        # Half a character, which JSON can escape, could be written nowhere; but names of files may
        # have bytes that are no text.
        json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")
    except (ValueError, RecursionError) as error:  # also of brackets within brackets
        raise ValueError(f"{source} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{source} must hold a JSON object, got {type(value).__name__}")
    return value


def _parse_int(text: str) -> int:
    """A whole number, if it is one that a float could be: others would fail where they are used."""
    value = int(text)
    try:
        float(value)
    except OverflowError as error:
        raise ValueError(f"a number of {len(text)} digits") from error
    return value


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able header into one safetensors file, atomically."""
    contiguous: dict[str, Tensor] = {}
    storages = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        storage = whole.untyped_storage().data_ptr()
        # safetensors refuses one tensor under two names, such as labels that are the classes.
        contiguous[name] = whole.clone() if storage in storages else whole
        storages.add(storage)
    # One key: safetensors writes several in random order, and equal sets must give equal files.
    header = {_HEADER: json.dumps(metadata)}
    write_atomically(path, safetensors.torch.save(contiguous, header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote: the tensors, on the CPU, and the header.

    Raises:
        ValueError: If the file is not there, truncated or not a safetensors file.
    """
    with open_tensors(path) as file:
        names = file.keys()  # a file of safetensors is no mapping
        return {name: file.get_tensor(name) for name in names}, read_header(file, path)


def open_tensors(path: Path) -> Any:
    """Open a safetensors file for reading parts of it, memory-mapped.

    Raises:
        ValueError: If the file is not there, truncated or not a safetensors file.
    """
    try:
        require_regular(path)
        return safetensors.safe_open(str(path), framework="pt")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except (OSError, safetensors.SafetensorError) as error:
        said = str(error)[:_SHOWN]  # which may be all of the header
        raise ValueError(f"{path} is truncated or not a safetensors file: {said}") from error


def read_header(file: Any, path: Path) -> dict[str, Any]:
    """The header of a file from :func:`open_tensors`; empty where another program wrote it.

    Raises:
        ValueError: If it is no JSON object.
    """
    return parse_json((file.metadata() or {}).get(_HEADER, "{}"), f"the header of {path}")
