"""Data sets of images: where they come from, their split, their normalisation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mim4dd._checks import check_integer, check_rank
from mim4dd.distill.normalization import Normalization, fit_zca, standardize

__all__ = ["ImageData", "from_dataset", "from_folder", "from_tensors", "load_data"]

_IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_IMAGE_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class ImageData:
    """Images of C classes, normalised, in a training and a test part."""

    name: str
    image_train: Tensor  # (N, channels, H, W) float32
    label_train: Tensor  # (N,) int64
    image_test: Tensor
    label_test: Tensor
    class_names: tuple[str, ...]
    normalization: Normalization

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.image_train.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of an image."""
        return self.image_train.shape[2]

    def to(self, device: torch.device | str) -> "ImageData":
        """The same data on another device."""
        return ImageData(
            self.name,
            self.image_train.to(device),
            self.label_train.to(device),
            self.image_test.to(device),
            self.label_test.to(device),
            self.class_names,
            self.normalization.to(device),
        )

    def require(self, ipc: int) -> None:
        """Raise ValueError unless every class has ``ipc`` training images."""
        if ipc < 1:
            raise ValueError(f"ipc must be at least 1, got {ipc}")
        counts = self.label_train.bincount(minlength=self.num_classes).tolist()
        for class_name, count in zip(self.class_names, counts, strict=True):
            if count < ipc:
                raise ValueError(
                    f"ipc must be at most the size of the smallest class: {ipc} images "
                    f"were asked for and class {class_name!r} has {count}"
                )

    def sample(self, ipc: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ``ipc`` different training images of every class, ordered by class.

        Args:
            ipc: How many of each class.
            generator: Where the draw comes from, on the CPU.

        Raises:
            ValueError: If a class has fewer images.
        """
        self.require(ipc)
        labels = self.label_train.cpu()
        chosen = []
        for label in range(self.num_classes):
            members = torch.where(labels == label)[0]
            chosen.append(members[torch.randperm(len(members), generator=generator)[:ipc]])
        rows = torch.cat(chosen).to(self.label_train.device)
        return self.image_train[rows], self.label_train[rows]


def load_data(source: str, image_size: int | None = None, zca: bool = False) -> ImageData:
    """Load a data set by name or path.

    Args:
        source: ``"digits"`` (scikit-learn's 1,797 real handwritten digits of 8 × 8 pixels), or a
            folder of images, see :func:`from_folder`.
        image_size: Resize the images of a folder to this height and width.
        zca: Whiten by ZCA instead of standardising every channel.

    Raises:
        ValueError: If ``source`` is neither, or what it holds cannot be used.

    Example:
        >>> from mim4dd.distill.data import load_data
        >>> load_data("digits").image_train.shape
        torch.Size([1438, 1, 8, 8])
    """
    if source == "digits":
        if image_size is not None:
            raise ValueError(f"image_size does not apply to digits, got {image_size}")
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
        return from_tensors(images, torch.from_numpy(digits.target), name="digits", zca=zca)
    if Path(source).is_dir():
        return from_folder(source, image_size, zca)
    raise ValueError(f"data must be 'digits' or an existing folder of images, got {source!r}")


def from_tensors(
    images: Tensor,  # (N, channels, H, W)
    labels: Tensor,  # (N,)
    test: tuple[Tensor, Tensor] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    name: str = "tensors",
    zca: bool = False,
) -> ImageData:
    """Make a data set of any images and labels.

    Args:
        images: Floating point, or uint8 from 0 to 255. (N, channels, H, W), square
        labels: Classes 0 … C − 1, each of them there. (N,)
        test: Images and labels to test on; default: a fifth of every class, the same on each call.
        class_names: Names of the classes.
        name: Name of the data set.
        zca: Whiten by ZCA instead of standardising every channel.

    Raises:
        ValueError: On shapes, values or classes that do not fit, naming the argument.
        TypeError: On dtypes that do not fit.
    """
    images, labels = _check_part("images", images, "labels", labels)
    if test is None:
        images, labels, test_images, test_labels = _split(images, labels)
    else:
        test_images, test_labels = _check_part("test images", test[0], "test labels", test[1])
        if test_images.shape[1:] != images.shape[1:]:
            raise ValueError(
                f"test images must have the shape of images {tuple(images.shape[1:])}, "
                f"got {tuple(test_images.shape[1:])}"
            )
    counts = labels.bincount()
    empty = torch.where(counts == 0)[0].tolist()
    if empty:
        raise ValueError(
            f"labels must use every class from 0 to {len(counts) - 1}, none has {empty}"
        )
    if test_labels.max() >= len(counts):
        raise ValueError(
            f"test labels must be classes of the training part, 0 to {len(counts) - 1}, "
            f"got {int(test_labels.max())}"
        )
    if class_names is None:
        class_names = [str(label) for label in range(len(counts))]
    if len(class_names) != len(counts):
        raise ValueError(
            f"class_names must name {len(counts)} classes, got {len(class_names)} names"
        )
    normalization = fit_zca(images) if zca else standardize(images)
    return ImageData(
        name,
        normalization(images),
        labels,
        normalization(test_images),
        test_labels,
        tuple(class_names),
        normalization,
    )


def from_dataset(
    dataset: Dataset[Any],
    test: Dataset[Any] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    name: str = "dataset",
    zca: bool = False,
) -> ImageData:
    """Make a data set of any map-style :class:`torch.utils.data.Dataset` of (image, label) pairs.

    Images may be tensors (channels, H, W), arrays or PIL images, all of one size; ``test`` and the
    other arguments are as in :func:`from_tensors`.
    """
    return from_tensors(
        *_stack(_items(dataset)),
        None if test is None else _stack(_items(test)),
        class_names=class_names,
        name=name,
        zca=zca,
    )


def from_folder(path: str | Path, image_size: int | None = None, zca: bool = False) -> ImageData:
    """Make a data set of a folder with one sub-folder of images per class.

    The layout of torchvision's ``ImageFolder``: ``path/<class>/<image>``, classes in alphabetical
    order. Where ``path`` holds ``train`` and ``test`` (or ``val``) folders of that layout, they are
    the two parts.

    Args:
        path: The folder.
        image_size: Resize the images to this height and width.
        zca: Whiten by ZCA instead of standardising every channel.

    Raises:
        ValueError: If there are no classes, a class is empty, an image cannot be read, or the
            images differ in size and ``image_size`` is not given.
    """
    root = Path(path)
    parts = [root / part for part in ("train", "test", "val") if (root / part).is_dir()]
    if not (root / "train").is_dir() or len(parts) < 2:
        parts = [root]
    class_names = _class_folders(parts[0])
    mode = _common_mode(parts[:2])
    tensors = [_stack(_folder_items(part, class_names, image_size, mode)) for part in parts[:2]]
    return from_tensors(
        *tensors[0],
        tensors[1] if len(tensors) > 1 else None,
        class_names=class_names,
        name=root.resolve().name,
        zca=zca,
    )


def _check_part(
    image_name: str, images: Tensor, label_name: str, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Images as float32 and labels as int64, if they can be used."""
    check_rank(image_name, images, 4)
    check_rank(label_name, labels, 1)
    check_integer(label_name, labels)
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            f"{image_name} and {label_name} must be equally many and not none, "
            f"got {len(images)} and {len(labels)}"
        )
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"{image_name} must be square, got {tuple(images.shape[2:])} pixels")
    if images.dtype == torch.uint8:
        images = images.float() / 255
    if not images.is_floating_point():
        raise TypeError(f"{image_name} must be floating point or uint8, got {images.dtype}")
    if not images.isfinite().all():
        raise ValueError(f"{image_name} must be finite, got NaN or infinity")
    if labels.min() < 0:
        raise ValueError(f"{label_name} must be at least 0, got {int(labels.min())}")
    return images.float(), labels.long()


def _split(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hold out a fifth of every class."""
    from sklearn.model_selection import train_test_split

    counts = labels.bincount()
    if (counts == 1).any():
        raise ValueError(
            "labels must have at least 2 images of every class to hold some out, class "
            f"{int((counts == 1).int().argmax())} has 1; pass test explicitly"
        )
    held_out = max(int((counts > 0).sum()), round(0.2 * len(labels)))
    train, test = train_test_split(
        torch.arange(len(labels)).numpy(),
        test_size=held_out,
        stratify=labels.numpy(),
        random_state=0,
    )
    missing = torch.where((labels[test].bincount(minlength=len(counts)) == 0) & (counts > 0))[0]
    if len(missing):
        raise ValueError(
            f"labels must have enough images of every class to hold some out, class "
            f"{int(missing[0])} with {int(counts[missing[0]])} gets none; pass test explicitly"
        )
    return images[train], labels[train], images[test], labels[test]


def _items(dataset: Dataset[Any]) -> Iterator[tuple[Tensor, int]]:
    # Dataset declares no length: a map-style one has it all the same.
    for index in range(len(dataset)):  # type: ignore[arg-type]
        image, label = dataset[index]
        yield _to_tensor(image), int(label)


def _to_tensor(image: Any) -> Tensor:
    """(channels, H, W) from a tensor, an array or a PIL image."""
    if isinstance(image, Tensor):
        return image
    import numpy as np
    from PIL import Image

    if isinstance(image, Image.Image) and image.mode == "P":
        image = image.convert("RGB")  # an array of it would be of indices into its palette
    array = torch.from_numpy(np.array(image))
    return array.unsqueeze(0) if array.dim() == 2 else array.permute(2, 0, 1)


def _stack(items: Iterator[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images: list[Tensor] = []
    labels: list[int] = []
    for image, label in items:
        if images and image.shape != images[0].shape:
            raise ValueError(
                "all images must have one size and number of channels, got "
                f"{tuple(images[0].shape)} and {tuple(image.shape)}; image_size resizes a folder's"
            )
        images.append(image)
        labels.append(label)
    if not images:
        raise ValueError("the data set must not be empty, got no images")
    return torch.stack(images), torch.tensor(labels)


def _class_folders(root: Path) -> list[str]:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if len(names) < 2:
        raise ValueError(
            f"{root} must hold one sub-folder of images per class, at least 2, got {names}"
        )
    return names


def _common_mode(parts: Sequence[Path]) -> str:
    """Grey where every image is, else RGB, as the field's readers take all of them."""
    grey = all(
        _read(file, lambda image: image.mode in ("1", "L"))
        for part in parts
        for file in part.rglob("*")
        if file.suffix.lower() in _IMAGE_SUFFIXES
    )
    return "L" if grey else "RGB"


def _read(file: Path, use: Callable[[Any], _Read]) -> _Read:
    """What ``use`` makes of an opened image of 8 bits per channel."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            if opened.mode in _IMAGE_MODES:
                return use(opened)
            mode = opened.mode
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
    # Pillow would clip 16 bits to 8 without a word.
    raise ValueError(
        f"{file} must have 8 bits per channel, mode {', '.join(_IMAGE_MODES)}, got {mode}"
    )


def _folder_items(
    root: Path, class_names: Sequence[str], image_size: int | None, mode: str
) -> Iterator[tuple[Tensor, int]]:

    for label, class_name in enumerate(class_names):
        folder = root / class_name
        files = [file for file in folder.rglob("*") if file.suffix.lower() in _IMAGE_SUFFIXES]
        if not files:
            raise ValueError(f"class {class_name!r} must have at least one image, none in {folder}")
        for file in sorted(files):
            image = _read(file, lambda opened: opened.convert(mode))
            if image_size is not None:
                image = image.resize((image_size, image_size))
            yield _to_tensor(image), label
