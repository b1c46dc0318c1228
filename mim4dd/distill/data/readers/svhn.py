"""SVHN, format 2 (cropped digits): MATLAB files."""

from pathlib import Path

import torch
from torch import Tensor

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.readers.downloaded import require_file
from mim4dd.distill.data.readers.mat_file import read_arrays
from mim4dd.distill.data.registry import data_set
from mim4dd.distill.data.standard import from_standard

__all__ = ["load_svhn"]

_URL = "http://ufldl.stanford.edu/housenumbers/"


@data_set("svhn")
def load_svhn(data_path: Path, zca: bool) -> ImageData:
    """SVHN from ``train_32x32.mat`` and ``test_32x32.mat`` in ``data_path``."""
    train, test = (
        _read(require_file(data_path / file, "svhn", _URL + file))
        for file in ("train_32x32.mat", "test_32x32.mat")
    )
    return from_standard("svhn", train, test, [str(digit) for digit in range(10)], zca)


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) and the digits they show."""
    try:
        arrays = read_arrays(path)
        if missing := sorted({"X", "y"} - arrays.keys()):
            raise ValueError(f"it lacks {' and '.join(missing)}")
    except ValueError as error:
        raise ValueError(
            f"{path} is truncated or not a MATLAB file of images X and labels y: {error}"
        ) from error
    images, labels = arrays["X"], arrays["y"]
    if images.shape[:3] != (32, 32, 3) or images.dtype != torch.uint8:
        raise ValueError(
            f"{path} must hold X, bytes (32, 32, 3, N), got {images.dtype} {tuple(images.shape)}"
        )
    labels = labels.flatten().long()
    fits = images.dim() == 4 and 0 < len(labels) == images.shape[3]
    if not fits or labels.min() < 1 or labels.max() > 10:
        raise ValueError(f"{path} must hold y, the labels 1 to 10 of the N images in X")
    return images.permute(3, 2, 0, 1).contiguous(), labels % 10  # 10 stands for the digit 0
