"""CIFAR-10 and CIFAR-100, in the Python and in the binary version of their archives."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.readers.downloaded import first_present, require_file
from mim4dd.distill.data.registry import data_set
from mim4dd.distill.data.standard import from_standard
from mim4dd.distill.files.plain_pickle import load_plain_pickle
from mim4dd.distill.files.regular import read_bytes

__all__ = ["load_cifar10", "load_cifar100"]

_URL = "https://www.cs.toronto.edu/~kriz/"
_PIXELS = 3 * 32 * 32


class _Python(NamedTuple):
    """Where the Python version keeps what."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    label_key: str
    names_key: str


class _Binary(NamedTuple):
    """Where the binary version keeps what."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int  # before the pixels of an image; the last one is its class


_CIFAR10 = (
    _Python(
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        "batches.meta",
        "labels",
        "label_names",
    ),
    _Binary(
        "cifar-10-batches-bin",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        "batches.meta.txt",
        1,
    ),
)
_CIFAR100 = (
    _Python("cifar-100-python", ("train",), "test", "meta", "fine_labels", "fine_label_names"),
    _Binary("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 2),
)


@data_set("cifar10")
def load_cifar10(data_path: Path, zca: bool) -> ImageData:
    """CIFAR-10 from ``cifar-10-batches-py``, or else ``cifar-10-batches-bin``, in ``data_path``."""
    return _load("cifar10", *_CIFAR10, data_path, zca, _URL + "cifar-10-python.tar.gz")


@data_set("cifar100")
def load_cifar100(data_path: Path, zca: bool) -> ImageData:
    """CIFAR-100 from ``cifar-100-python``, or else ``cifar-100-binary``, in ``data_path``."""
    return _load("cifar100", *_CIFAR100, data_path, zca, _URL + "cifar-100-python.tar.gz")


def _load(
    name: str, python: _Python, binary: _Binary, data_path: Path, zca: bool, url: str
) -> ImageData:
    folders = [data_path / python.folder, data_path / binary.folder]
    folder = first_present(folders, name, url)
    layout: _Python | _Binary = python if folder == folders[0] else binary
    url = url if layout is python else url.replace("python", "binary")

    def path(file: str) -> Path:
        return require_file(folder / file, name, url)

    parts = [_read(path(file), layout) for file in (*layout.train, layout.test)]
    images, labels = (torch.cat(batches) for batches in zip(*parts[:-1], strict=True))
    class_names = _read_names(path(layout.names), layout)
    return from_standard(name, (images, labels), parts[-1], class_names, zca)


def _read(path: Path, layout: _Python | _Binary) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) as bytes, and labels (N,)."""
    if isinstance(layout, _Python):
        return _read_python(path, layout)
    return _read_binary(path, layout)


def _read_python(path: Path, layout: _Python) -> tuple[Tensor, Tensor]:
    """A pickled batch: pixels (N, 3072), all red ones first, and a list of labels."""
    batch = load_plain_pickle(path)
    pixels, labels = batch.get("data"), batch.get(layout.label_key)
    if not isinstance(pixels, Tensor) or pixels.dim() != 2 or pixels.shape[1] != _PIXELS:
        raise ValueError(f"{path} must hold 'data', an array of bytes (N, {_PIXELS})")
    if not isinstance(labels, (list, tuple)) or any(type(label) is not int for label in labels):
        raise ValueError(f"{path} must hold {layout.label_key!r}, a list of integers")
    if len(labels) != len(pixels):
        raise ValueError(f"{path} must hold as many labels as images, got {len(labels)}")
    return pixels.reshape(-1, 3, 32, 32), torch.tensor(labels)


def _read_binary(path: Path, layout: _Binary) -> tuple[Tensor, Tensor]:
    """Records of one or two labels and 3072 pixels, all red ones first."""
    content, record = read_bytes(path), layout.label_bytes + _PIXELS
    if not content or len(content) % record:
        raise ValueError(
            f"{path} is truncated or foreign: {len(content)} bytes are no whole number of "
            f"records of {record}"
        )
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, record)
    pixels = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
    return pixels, records[:, layout.label_bytes - 1].long()


def _read_names(path: Path, layout: _Python | _Binary) -> list[str]:
    """Names of the classes."""
    if isinstance(layout, _Binary):
        return read_bytes(path).decode("latin1").split()
    names = load_plain_pickle(path).get(layout.names_key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} must hold {layout.names_key!r}, a list of names")
    return names
