"""Files of ``torch.save``: written; and read, without running what they hold nor making more of it.

``weights_only`` keeps torch from running code. A file may still be small and ask for much memory:
by a member that is compressed, which torch unpacks and never writes, and by a tensor of many
elements over a few bytes.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from mim4dd.distill.files.opcodes import require_plain_opcodes
from mim4dd.distill.files.regular import require_regular

__all__ = ["load_torch_file", "save_torch"]

_ZIP = b"PK\x03\x04"
# Characters of a name, a key, or a few numbers of NumPy. Whatever torch refuses it searches by an
# expression that takes the square of these.
_LONGEST = 10_000
# A magic number, a version, the machine, the objects, and which tensors' bytes follow.
_PICKLES = 5
_MOST_PLACES = 10_000_000  # of tensors and numbers; experts of a file have some ten thousand
# The number by which files of torch before 1.6 begin, pickled. Without it torch would try an even
# older format, for which it makes a temporary folder.
_BEFORE_ZIP = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"


class _Watched:
    """A file to write, which keeps what the system said when it could not."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_torch(value: object, file: BinaryIO) -> None:
    """Write by ``torch.save``.

    Raises:
        OSError: If it cannot be written, where torch says how far its own buffer was.
    """
    watched = _Watched(file)
    try:
        torch.save(value, cast(Any, watched))
    except RuntimeError:
        if watched.error is not None:
            raise watched.error from None
        raise


def load_torch_file(path: Path, *, mapped: bool = False, stand_ins: Sequence[Any] = ()) -> Any:
    """The tensors, numbers and containers of a file, on the CPU.

    Args:
        path: The file.
        mapped: Leave tensors in the file until they are used, where its format allows that.
        stand_ins: As for :class:`torch.serialization.safe_globals`: what may be named beside.

    Raises:
        ValueError: If it is not there, is truncated, or holds anything else; if its tensors are
            sparse or of more elements than memory, or lists lie in lists without end.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            begins = file.read(len(_BEFORE_ZIP))
        zipped = begins.startswith(_ZIP)
        if zipped:
            _look_through_zip(path)
        elif begins == _BEFORE_ZIP:
            _look_through_pickles(path)
        else:
            raise ValueError("it is no file of torch.save")
        with torch.serialization.safe_globals(list(stand_ins)):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=mapped and zipped
            )
        _require_plain(content, min(path.stat().st_size, _MOST_PLACES))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except Exception as error:  # whatever a parser stumbles over in a file that may be anything
        raise ValueError(
            f"{path} is truncated, or holds something else than tensors, which is not read: {error}"
        ) from error
    return content


def _look_through_zip(path: Path) -> None:
    """Require every member of a zip file to be there as it is, none of them twice."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its members are compressed, as torch.save leaves none")
        if sum(member.file_size for member in members) > size:
            raise ValueError("its members overlap")
        for member in members:
            if member.filename.lower().endswith("data.pkl"):  # as torch finds it
                with archive.open(member) as file:
                    require_plain_opcodes(file, size, _LONGEST)


def _look_through_pickles(path: Path) -> None:
    """The same of the older format: pickles one after the other, then what tensors hold."""
    with path.open("rb") as file:
        for _ in range(_PICKLES):
            require_plain_opcodes(file, path.stat().st_size, _LONGEST)


def _require_plain(content: Any, most: int) -> None:
    """Require tensors of no more elements than memory, in at most so many places.

    One list in many places of one list, and so on, would make a small file endless.
    """
    waiting = [content]
    while waiting:
        value, most = waiting.pop(), most - 1
        if most < 0:
            raise ValueError("it has lists in more places than it has bytes")
        if isinstance(value, Tensor):
            _require_whole(value)
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()


def _require_whole(tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ValueError(f"it has a tensor that is not dense: {tensor.layout}")
    taken, there = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if taken > there:
        raise ValueError(f"it has a tensor {tuple(tensor.shape)} of {there} bytes")
