"""The real data that scikit-learn carries."""

from typing import Any

import torch

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.tensors import from_tensors

__all__ = ["load_breast_cancer", "load_digits", "load_wine"]


def load_digits(zca: bool) -> ImageData:
    """1,797 handwritten digits of 8 × 8 pixels."""
    from sklearn import datasets

    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    return from_tensors(images, torch.from_numpy(digits.target), name="digits", zca=zca)


def load_wine(zca: bool) -> ImageData:
    """178 wines of 3 cultivars, 13 measurements of each."""
    from sklearn import datasets

    return _rows("wine", datasets.load_wine(), zca)


def load_breast_cancer(zca: bool) -> ImageData:
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
