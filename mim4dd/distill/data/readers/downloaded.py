"""Files of downloaded data sets: where they must lie, and what to say where they do not.

torchvision, which reads the same layouts, cannot be used: each of its releases pins one release of
torch, and would replace the one that the extension was built against.
"""

import gzip
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from mim4dd.distill.files.regular import read_bytes, require_regular

__all__ = ["first_present", "missing_file", "read_unpacked", "require_file"]

_MOST_UNPACKED = 1032  # bytes of one, as the format of deflate has it


def missing_file(path: Path, what: str, url: str, alternatives: Sequence[Path] = ()) -> ValueError:
    """The error for a file or folder that is not there; it names the archive if that lies near.

    Args:
        path: What is missing.
        what: Name of the data set.
        url: Where its archive comes from.
        alternatives: What may be there in its place.
    """
    places = f"{path}{''.join(f' (or {other.name})' for other in alternatives)}"
    message = f"{places} is missing: {what} expects it there, as downloaded from {url}"
    archive = url.rpartition("/")[2]
    for folder in list(path.parents)[:3]:
        for name in {archive, archive.removesuffix(".gz"), archive.replace("python", "binary")}:
            if (found := folder / name).is_file():
                message += f"; {found} is there: unpack or move it, so that {path.name} exists"
    return ValueError(message)


def require_file(path: Path, what: str, url: str) -> Path:
    """``path``, if it is a file.

    Raises:
        ValueError: If it is not, saying what it is expected to hold and where to get it.
    """
    if not path.is_file():
        raise missing_file(path, what, url)
    return path


def first_present(paths: list[Path], what: str, url: str) -> Path:
    """The first of the places that exists.

    Raises:
        ValueError: If none does, naming all.
    """
    for path in paths:
        if path.exists():
            return path
    raise missing_file(paths[0], what, url, paths[1:])


def read_unpacked(path: Path, header_size: int, size: Callable[[bytes], int]) -> bytes:
    """What a file holds, unpacked where its name ends in .gz; a byte more than it should at most.

    Args:
        path: The file.
        header_size: How many of the first bytes say how long it is.
        size: How long it is, by these bytes or as many as there are; ValueError refuses them.

    Raises:
        ValueError: If it cannot be unpacked.
    """
    if path.suffix != ".gz":
        return read_bytes(path)
    require_regular(path)
    try:
        # A thousand times of a file may come out of it: no more is unpacked than is asked for.
        most = _MOST_UNPACKED * path.stat().st_size
        with gzip.open(path) as file:
            header = file.read(header_size)
            return header + file.read(min(max(0, size(header) - len(header)), most) + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or not a gzip file: {error}") from error
