"""MNIST and FashionMNIST: idx files, as the archives hold them and torchvision leaves them.

The format: two zero bytes, one for the type, one for the number of dimensions, the dimensions as
big-endian 32-bit integers, the values.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.readers.downloaded import first_present, read_unpacked
from mim4dd.distill.data.registry import data_set
from mim4dd.distill.data.standard import from_standard

__all__ = ["load_fashion_mnist", "load_mnist"]

_UNSIGNED_BYTE = 0x08

_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@data_set("mnist")
def load_mnist(data_path: Path, zca: bool) -> ImageData:
    """MNIST from ``data_path/MNIST/raw``, files plain or .gz."""
    url = "https://ossci-datasets.s3.amazonaws.com/mnist/"  # its authors' own site is gone
    parts = _read_parts(data_path / "MNIST" / "raw", "mnist", url)
    return from_standard("mnist", *parts, [str(digit) for digit in range(10)], zca)


@data_set("fashion_mnist")
def load_fashion_mnist(data_path: Path, zca: bool) -> ImageData:
    """FashionMNIST from ``data_path/FashionMNIST/raw``, files plain or .gz."""
    url = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    parts = _read_parts(data_path / "FashionMNIST" / "raw", "fashion_mnist", url)
    return from_standard("fashion_mnist", *parts, _FASHION_CLASSES, zca)


def _read_parts(
    folder: Path, name: str, url: str
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    train, test = (
        tuple(
            _read_idx(folder / f"{part}-{values}-idx{rank}-ubyte", rank, name, url)
            for values, rank in (("images", 3), ("labels", 1))
        )
        for part in ("train", "t10k")
    )
    return (train[0].unsqueeze(1), train[1]), (test[0].unsqueeze(1), test[1])


def _read_idx(path: Path, rank: int, name: str, url: str) -> Tensor:
    """The values of an idx file of unsigned bytes."""
    path = first_present([path, path.with_name(path.name + ".gz")], name, url + path.name + ".gz")
    magic, sizes_end = bytes([0, 0, _UNSIGNED_BYTE, rank]), 4 + 4 * rank

    def sizes_in(header: bytes) -> list[int]:
        if header[:4] != magic or len(header) < sizes_end:
            raise ValueError(
                f"{path} must be an idx file of {rank}-d bytes, beginning {magic.hex()}, "
                f"got {header[:4].hex() or 'nothing'}"
            )
        return [int.from_bytes(header[at : at + 4], "big") for at in range(4, sizes_end, 4)]

    content = read_unpacked(path, sizes_end, lambda header: sizes_end + math.prod(sizes_in(header)))
    sizes = sizes_in(content)
    if len(content) - sizes_end != math.prod(sizes) or 0 in sizes:
        raise ValueError(
            f"{path} is truncated or foreign: its header says {sizes} values, "
            f"it holds {len(content) - sizes_end}"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=sizes_end).view(sizes)
