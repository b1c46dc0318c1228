"""Reading the one kind of pickle that CIFAR comes in, without ever running what a pickle says.

A pickle may name any function to call. Here it gets stand-ins for the few that NumPy's arrays name,
and for no other; NumPy's own are not called either, since they trust what they are given. What
comes out is arrays of bytes in lists and dictionaries.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim4dd.distill.files.opcodes import require_plain_opcodes
from mim4dd.distill.files.regular import naming, read_bytes

__all__ = ["load_plain_pickle"]


class _Bytes:
    """Stand-in for numpy.dtype: bytes only."""

    def __init__(self, kind: Any, *_flags: Any) -> None:
        if kind != "u1":
            raise pickle.UnpicklingError(f"arrays must be of bytes, got {kind!r}")

    def __setstate__(self, _state: Any) -> None:
        """Alignment and byte order, which bytes have none of."""


class _Array:
    """Stand-in for numpy.ndarray, filled in by its state."""

    def __setstate__(self, state: Any) -> None:
        _version, shape, kind, column_major, content = state
        sizes_fit = all(type(size) is int and size > 0 for size in shape)
        if type(kind) is not _Bytes or not sizes_fit:
            raise pickle.UnpicklingError("arrays must be of bytes and not empty")
        if len(content) != math.prod(shape):
            raise pickle.UnpicklingError(f"{len(content)} bytes do not fill {tuple(shape)}")
        # No copy yet: a pickle may have a thousand arrays of the same bytes.
        self.shape, self.column_major, self.content = tuple(shape), column_major, content

    def tensor(self) -> Tensor:
        """The bytes, in memory of their own."""
        content, shape = self.content, self.shape
        if isinstance(content, str):  # Python 2's strings of bytes
            content = content.encode("latin1")
        flat = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if self.column_major:
            return flat.view(*reversed(shape)).permute(*reversed(range(len(shape))))
        return flat.view(*shape)


def _reconstruct(*_arguments: Any) -> _Array:
    """Stand-in for NumPy's: an array that its state fills."""
    return _Array()


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """Stand-in for NumPy's in protocol 5: an array over a buffer."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", content))
    return array


def _no_bytes(*arguments: Any) -> bytes:
    """Stand-in for bytes, by which Python 3 writes empty ones in Python 2's protocol."""
    if arguments:
        raise pickle.UnpicklingError(f"bytes must be empty or latin1, got {len(arguments)} values")
    return b""


def _encode(text: str, encoding: str) -> bytes:
    """Stand-in for _codecs.encode, by which Python 3 writes bytes in Python 2's protocol."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes must be written as latin1, got {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # before NumPy 2
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Bytes,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return _STAND_INS[module, name]


def load_plain_pickle(path: Path) -> dict[str, Any]:
    """A dictionary of lists, strings, numbers and arrays of bytes, the arrays as tensors.

    Who reads the archive's files by Python 3 with ``encoding="bytes"`` and writes them again gets
    bytes where there were strings. Here they are strings again.

    Raises:
        ValueError: If the file is truncated, or holds or asks for anything else.
    """
    content = read_bytes(path)
    try:
        require_plain_opcodes(io.BytesIO(content), len(content), longest=len(content))
        # latin1 reads the strings of Python 2, text and bytes alike.
        value = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # pickle's documentation: a broken one may raise any
        raise ValueError(f"{path} is truncated or not a plain pickle: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a dictionary, got {type(value).__name__}")
    arrays = [item for item in value.values() if isinstance(item, _Array)]
    if sum(len(array.content) for array in arrays) > len(content):
        raise ValueError(f"{path} must hold an array in one place, it has one in several")
    with naming(path):  # what text is not of bytes
        return {_as_text(key): _plain(item) for key, item in value.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.tensor()
    return [_as_text(item) for item in value] if isinstance(value, list) else _as_text(value)


def _as_text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value
