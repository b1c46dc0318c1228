"""What the files of other projects' distilled sets hold; nothing in them is run.

MTT, TESLA, FTD and DATM leave ``images_best.pt``, ``labels_best.pt`` and, DATM alone,
``lr_best.pt``, and the same of iterations; DD-Ranking takes ``images.pt``, ``labels.pt`` and
``lr.pt``. DC, DSA, DM and CAFE leave ``res_DC_CIFAR10_ConvNet_1ipc.pt``. None says how images are
normalised.

https://github.com/GeorgeCazenavette/mtt-distillation, https://github.com/justincui03/tesla,
https://github.com/NUS-HPC-AI-Lab/DATM, https://github.com/NUS-HPC-AI-Lab/DD-Ranking,
https://github.com/VICO-UoE/DatasetCondensation, https://github.com/kaiwang960112/CAFE
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim4dd.distill.data.normalization import Normalization, fixed_normalization
from mim4dd.distill.files.tensor_files import load_torch_file

__all__ = ["NAMES_OF_DATA", "ForeignSet", "images_paths", "open_foreign"]

_IMAGES = re.compile(r"images(?:_(best|\d+))?\.pt")
_RESULT = re.compile(r"res_([^_]+)_([^_]+)_.*ipc\.pt")
# What the projects call the data sets.
NAMES_OF_DATA = {
    "MNIST": "mnist",
    "FashionMNIST": "fashion_mnist",
    "SVHN": "svhn",
    "CIFAR10": "cifar10",
    "CIFAR100": "cifar100",
    "TinyImageNet": "tiny_imagenet",
}
# Of all their means and deviations these alone are not those of mim4dd.distill.data.standard.
_CIFAR100_OF_DC = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
_OF_DC = frozenset({"DC", "DSA", "DM"})


@dataclass(frozen=True)
class ForeignSet:
    """A set in files of another project, before anybody said which data it is of.

    Args:
        name: What it was read from, as messages call it.
        images: As networks are trained on them. (n, channels, H, W)
        labels: Classes (n,), probabilities (n, C), or logits (n, C) as DATM's.
        lr: The step size to train networks with; None where no file holds it.
        method: What the file's name says made it, as mim4dd calls it; empty of the others.
        data: Likewise, of the data.
        zca: Whether the images are whitened by ZCA; None where nothing tells.
        normalization: By what they are normalised, where it is known and not what mim4dd does.
    """

    name: str
    images: Tensor
    labels: Tensor
    lr: float | None = None
    method: str = ""
    data: str = ""
    zca: bool | None = None
    normalization: Normalization | None = None

    @property
    def is_soft(self) -> bool:
        """Whether labels are probabilities or logits, not classes."""
        return self.labels.is_floating_point()

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return self.labels.shape[1] if self.is_soft else int(self.labels.max()) + 1


def open_foreign(path: str | Path) -> list[ForeignSet]:
    """What the files of another project hold.

    Raises:
        ValueError: If a file is missing, is truncated or holds anything else.
    """
    path = Path(path)
    if path.is_dir():
        path = _newest(path)
    if _tag(path) is not None:
        return [_of_trajectory_matching(path)]
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    return _of_condensation(path)


def images_paths(folder: Path) -> dict[str, Path]:
    """The images of all sets in a folder, by what tells them apart: best, or their iteration."""
    tags = {path: _tag(path) for path in folder.glob("images*.pt")}
    return {tag: path for path, tag in tags.items() if tag is not None}


def _tag(path: Path) -> str | None:
    """Which set of its folder an images file is of; "" of the only one, None of other files."""
    found = _IMAGES.fullmatch(path.name)
    return found and (found[1] or "")


def _newest(folder: Path) -> Path:
    """The images of the best set in a folder, or else of the last."""
    tags = images_paths(folder)
    if not tags:
        raise ValueError(f"{folder} must hold images_best.pt and labels_best.pt, got neither")
    if "best" in tags:
        return tags["best"]
    return tags[max(tags, key=lambda tag: int(tag or 0))]


def _of_trajectory_matching(path: Path) -> ForeignSet:
    """A set in files of its own, as MTT and those that build on it leave it."""
    labels_path, lr_path = (path.with_name(path.name.replace("images", kind, 1))
                            for kind in ("labels", "lr"))  # fmt: skip
    images, labels = _images(_load(path), str(path)), _load(labels_path)
    lr = _step_size(_load(lr_path), lr_path) if lr_path.exists() else None
    # Beside the whitened images MTT leaves pictures of them, and otherwise none.
    zca = True if any(path.parent.glob("images_zca_*.pt")) else None
    return ForeignSet(
        str(path), images, _labels(labels, len(images), str(labels_path)), lr, zca=zca
    )


def _of_condensation(path: Path) -> list[ForeignSet]:
    """The sets of all experiments in one file, as DC's programs and CAFE's leave them."""
    content = _load(path)
    pairs = content.get("data") if isinstance(content, dict) else None
    if not isinstance(pairs, list) or not pairs:
        raise ValueError(
            f"{path} must hold a dictionary with the sets of one or more experiments, "
            "{'data': [[images, labels], …], …}, or be named images_….pt beside labels_….pt, "
            f"got {_kind(content)}"
        )
    named = _RESULT.fullmatch(path.name)
    method, data = (named[1], NAMES_OF_DATA.get(named[2], "")) if named else ("", "")
    normalization = None
    if method in _OF_DC and data == "cifar100":
        mean, deviation = map(torch.tensor, _CIFAR100_OF_DC)
        normalization = fixed_normalization(mean, deviation)
    sets = []
    for experiment, pair in enumerate(pairs):
        name = f"{path}, experiment {experiment}" if len(pairs) > 1 else str(path)
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"{name} must be a list of images and labels, got {_kind(pair)}")
        images = _images(pair[0], name)
        labels = _labels(pair[1], len(images), name)
        # None of these projects has ZCA.
        sets.append(
            ForeignSet(name, images, labels, None, method.lower(), data, False, normalization)
        )
    return sets


class _Ignored:
    """Stand-in for NumPy's scalars and arrays, which DC's files hold accuracies as."""

    def __init__(self, *_arguments: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


_OF_NUMPY = (
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",  # of NumPy 1
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
)
# A class of its own for each name: the same under two is refused.
_STAND_INS: list[Any] = [
    (type(f"NumPy_{number}", (_Ignored,), {}), name) for number, name in enumerate(_OF_NUMPY)
]


def _load(path: Path) -> Any:
    """What a file of torch.save holds, as far as that is tensors, numbers and containers."""
    return load_torch_file(path, stand_ins=_STAND_INS)


def _images(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
        raise ValueError(
            f"{name} must hold images (n, channels, H, W) in floating point, got {_kind(value)}"
        )
    if len(value) == 0 or not value.isfinite().all():
        raise ValueError(f"{name} must hold finite images and not none, got {_kind(value)}")
    return value.detach().float()


def _labels(value: Any, number: int, name: str) -> Tensor:
    expected = f"{name} must hold classes ({number},), or probabilities or logits ({number}, C)"
    if not isinstance(value, Tensor) or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"{expected}, got {_kind(value)}")
    soft = value.is_floating_point()
    if value.dim() != (2 if soft else 1) or len(value) != number:
        raise ValueError(f"{expected}, got {_kind(value)}")
    if soft and not value.isfinite().all():
        raise ValueError(f"{expected}, got NaN or infinity")
    if soft and (value.shape[1] == 0 or number % value.shape[1]):
        raise ValueError(
            f"{name} must hold labels of as many images for each class, in the order of the "
            f"classes, got {number} for {value.shape[1]} classes"
        )
    if not soft and value.min() < 0:
        raise ValueError(f"{name} must hold classes from 0 on, got {int(value.min())}")
    return value.detach().float() if soft else value.detach().long()


def _step_size(value: Any, path: Path) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, (int, float)) and 0 < value < math.inf:
        return float(value)
    raise ValueError(f"{path} must hold a positive step size, got {_kind(value)}")


def _kind(value: Any) -> str:
    """What a value is, in few words."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {value.dtype}"
    if isinstance(value, (int, float)):
        return repr(value)
    size = f" of {len(value)}" if isinstance(value, Sequence) else ""
    return f"a {type(value).__name__}{size}"
