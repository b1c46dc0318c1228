"""Data sets by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.readers.cifar import load_cifar10, load_cifar100
from mim4dd.distill.data.readers.embedded import load_breast_cancer, load_digits, load_wine
from mim4dd.distill.data.readers.folder import from_folder
from mim4dd.distill.data.readers.imagenet import IMAGENET_SUBSETS, load_imagenet_subset
from mim4dd.distill.data.readers.mnist import load_fashion_mnist, load_mnist
from mim4dd.distill.data.readers.svhn import load_svhn
from mim4dd.distill.data.readers.tiny_imagenet import load_tiny_imagenet
from mim4dd.distill.data.shapes import load_shapes

__all__ = ["DATA_NAMES", "load_data"]

_EMBEDDED: dict[str, Callable[[bool], ImageData]] = {
    "digits": load_digits,
    "wine": load_wine,
    "breast_cancer": load_breast_cancer,
}
_DOWNLOADED: dict[str, Callable[[Path, bool], ImageData]] = {
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
    "svhn": load_svhn,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "tiny_imagenet": load_tiny_imagenet,
}
# Of these the images can be had in any size.
_SIZED: dict[str, Callable[[Path, bool, int | None], ImageData]] = {
    "shapes": lambda _data_path, zca, image_size: load_shapes(zca, image_size),
    **{name: partial(load_imagenet_subset, name) for name in IMAGENET_SUBSETS},
}

DATA_NAMES = (*_EMBEDDED, "shapes", *_DOWNLOADED, *IMAGENET_SUBSETS)


def load_data(
    source: str,
    image_size: int | None = None,
    zca: bool = False,
    data_path: str | Path = "data",
) -> ImageData:
    """Load a data set by name or path.

    Args:
        source: ``"digits"`` (scikit-learn's 1,797 real handwritten digits of 8 × 8 pixels),
            ``"wine"`` or ``"breast_cancer"`` (its rows of measurements), ``"shapes"`` (generated),
            a data set that lies in ``data_path`` (``"cifar10"``, …; docs/data.md has them all and
            which files each expects), or a folder of images, see :func:`from_folder`.
        image_size: Height and width to resize the images of a folder or of an ImageNet subset to,
            or to draw shapes at.
        zca: Whiten by ZCA instead of standardising every channel.
        data_path: Where downloaded data sets lie.

    Raises:
        ValueError: If ``source`` is none of these, a file is missing, or what it holds cannot be
            used.

    Example:
        >>> from mim4dd.distill.data import load_data
        >>> load_data("digits").image_train.shape
        torch.Size([1438, 1, 8, 8])
    """
    if source in _SIZED:
        return _SIZED[source](Path(data_path), zca, image_size)
    if source in _EMBEDDED or source in _DOWNLOADED:
        if image_size is not None:
            raise ValueError(f"image_size does not apply to {source}, got {image_size}")
        if source in _EMBEDDED:
            return _EMBEDDED[source](zca)
        return _DOWNLOADED[source](Path(data_path), zca)
    if Path(source).is_dir():
        return from_folder(source, image_size, zca)
    raise ValueError(
        f"data must be one of {', '.join(DATA_NAMES)}, or an existing folder of images, "
        f"got {source!r}"
    )
