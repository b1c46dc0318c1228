"""The real data that scikit-learn carries."""

from pathlib import Path
from typing import Any

import torch

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.registry import data_set
from mim4dd.distill.data.tensors import from_tensors

__all__ = ["load_breast_cancer", "load_digits", "load_wine"]


@data_set("digits")
def load_digits(_data_path: Path, zca: bool) -> ImageData:
    """1,797 handwritten digits of 8 × 8 pixels."""
    from sklearn import datasets

    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    return from_tensors(images, torch.from_numpy(digits.target), name="digits", zca=zca)


@data_set("wine")
def load_wine(_data_path: Path, zca: bool) -> ImageData:
    """178 wines of 3 cultivars, 13 measurements of each."""
    from sklearn import datasets

    return _rows("wine", datasets.load_wine(), zca)


@data_set("breast_cancer")
def load_breast_cancer(_data_path: Path, zca: bool) -> ImageData:
    """569 tumours, malignant or benign, 30 measurements of each."""
    from sklearn import datasets

    return _rows("breast_cancer", datasets.load_breast_cancer(), zca)


def _rows(name: str, bunch: Any, zca: bool) -> ImageData:
    """What scikit-learn calls a bunch, as rows."""
    return from_tensors(
        torch.from_numpy(bunch.data),
        torch.from_numpy(bunch.target),
        class_names=[str(each) for each in bunch.target_names],
        name=name,
        zca=zca,
    )
