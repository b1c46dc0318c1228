"""Numeric arrays of MATLAB's files of version 5, which versions 5 to 7 write.

A file is a header of 128 bytes and elements: a type and a size, of 32 bits each, and so many bytes,
filled up to a multiple of eight. An array is an element that holds others: its flags and class, its
sizes, its name, its values. An element of another kind holds one that is packed by zlib.
MathWorks, MAT-File Format, 2019: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf

SciPy reads these too, and much more of them; but a few changed bytes can end the process there.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mim4dd.distill.files.regular import read_bytes

__all__ = ["read_arrays"]

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8"}
_NUMERIC = range(6, 15)  # classes, from double to 64 bits; before them cells, structures and text
_COMPLEX = 0x0800
_MOST_UNPACKED = 1032  # bytes of one, as the format of deflate has it


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The numeric arrays of a file by their names, with MATLAB's order of their sizes.

    Raises:
        ValueError: If the file is truncated, or of another version; complex numbers are refused.
    """
    content = read_bytes(path)
    order = {b"IM": "<", b"MI": ">"}.get(content[_HEADER - 2 : _HEADER])
    if order is None:
        raise ValueError("it has no header of MATLAB's version 5 to 7")
    found = {}
    for kind, element in _elements(memoryview(content)[_HEADER:], order):
        if kind == _COMPRESSED:
            kind, element = _unpacked(element, order)
        if kind == _MATRIX and (array := _array(element, order)) is not None:
            found[array[0]] = array[1]
    return found


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and bytes of each."""
    at = 0
    while at < len(content):
        kind, size, begin = _tag(content, at, order)
        if begin + size > len(content):
            raise ValueError(f"an element of {size} bytes ends after the file")
        yield kind, content[begin : begin + size]
        at = begin + size
        at += 0 if kind == _COMPRESSED else -at % 8


def _tag(content: memoryview, at: int, order: str) -> tuple[int, int, int]:
    """Type, size and begin of an element; a small one has its size in the word of its type."""
    if at + 8 > len(content):
        raise ValueError("an element ends within its type and size")
    word, size = struct.unpack_from(f"{order}2I", content, at)
    if not word >> 16:
        return word, size, at + 8
    if word >> 16 > 4:
        raise ValueError(f"a small element has {word >> 16} bytes")
    return word & 0xFFFF, word >> 16, at + 4


def _unpacked(packed: memoryview, order: str) -> tuple[int, memoryview]:
    """The one element that is packed in another."""
    unpacking = zlib.decompressobj()
    try:
        kind, size, _ = _tag(memoryview(unpacking.decompress(packed, 8)), 0, order)
        most = min(size, _MOST_UNPACKED * len(packed))
        element = unpacking.decompress(unpacking.unconsumed_tail, most) if most else b""
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(element) != size:
        raise ValueError(f"an element of {size} bytes holds {len(element)}")
    return kind, memoryview(element)


def _array(element: memoryview, order: str) -> tuple[str, Tensor] | None:
    """Name and values of an array, None of one that is not of numbers."""
    parts = list(_elements(element, order))
    if len(parts) < 3 or len(parts[0][1]) != 8 or len(parts[1][1]) % 4:
        raise ValueError("an array has no flags, sizes and name")
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    sizes = struct.unpack(f"{order}{len(parts[1][1]) // 4}i", parts[1][1])
    name = str(parts[2][1], "latin1")
    if flags & 0xFF not in _NUMERIC or flags & _COMPLEX:
        return None
    if len(parts) != 4 or parts[3][0] not in _NUMBERS or min(sizes, default=0) < 0:
        raise ValueError(f"{name!r:.50} is no array of numbers")
    kind = np.dtype(order + _NUMBERS[parts[3][0]])
    if len(parts[3][1]) != math.prod(sizes) * kind.itemsize:
        raise ValueError(f"{name!r:.50} of {sizes} has {len(parts[3][1])} bytes")
    values = np.frombuffer(parts[3][1], kind).astype(kind.newbyteorder("="))
    transposed = torch.from_numpy(values).view(*reversed(sizes))  # the first size varies fastest
    return name, transposed.permute(*reversed(range(len(sizes))))
