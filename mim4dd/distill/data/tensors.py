"""Data sets from tensors, which all the others come down to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mim4dd._checks import check_integer, check_rank, check_tensor
from mim4dd.distill.data.byte_images import ByteImages, standardize_bytes
from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.normalization import Normalization, fit_zca, standardize
from mim4dd.distill.data.per_class import evenly_over_classes
from mim4dd.distill.data.split import hold_out_a_fifth
from mim4dd.distill.data.streamed import SAMPLED, StreamedPixels

__all__ = ["from_stream", "from_tensors"]

_CHUNK = 1024


def from_tensors(
    images: Tensor,  # (N, channels, H, W), or (N, D)
    labels: Tensor,  # (N,)
    test: tuple[Tensor, Tensor] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    name: str = "tensors",
    zca: bool = False,
    normalization: Normalization | None = None,
    keep_bytes: bool = False,
) -> ImageData:
    """Make a data set of any images, or rows of features, and their labels.

    Args:
        images: Floating point, or uint8 from 0 to 255, square; or rows in floating point.
            (N, channels, H, W), or (N, D)
        labels: Classes 0 … C − 1, each of them there, one for each image. (N,)
        test: Images and labels to test on; default: a fifth of every class, the same on each call.
        class_names: Names of the classes.
        name: Name of the data set.
        zca: Whiten images by ZCA instead of standardising every channel. Rows are standardised by
            column, and a column must vary for it: drop those that do not.
        normalization: Take this one instead of fitting one to the training part, so that the data
            meet what experts elsewhere were trained on.
        keep_bytes: Keep uint8 images as they are, and normalise samples as they are taken: a
            quarter of the memory, for some time in every step.

    Raises:
        ValueError: On shapes, values or classes that do not fit, naming the argument.
        TypeError: On dtypes that do not fit.

    Example:
        >>> import torch
        >>> from mim4dd.distill.data import from_tensors
        >>> features = torch.randn(50, 7)
        >>> from_tensors(features, torch.arange(50) % 2).image_train.shape
        torch.Size([40, 7])
    """
    labels = _check_part("images", images, "labels", labels)
    if keep_bytes and (zca or images.dtype != torch.uint8):
        raise ValueError(
            "keep_bytes must be False with zca, and for images that are not uint8, got "
            f"{images.dtype}{' with zca' if zca else ''}"
        )
    train, held_out = torch.arange(len(labels)), None
    if test is None:
        train, held_out = hold_out_a_fifth(labels)
        test_images, test_labels = images, labels[held_out]
        labels = labels[train]
        if not keep_bytes:  # which both parts share
            test_images, images = images[held_out], images[train]
    else:
        test_images = test[0]
        test_labels = _check_part("test images", test_images, "test labels", test[1])
        if test_images.shape[1:] != images.shape[1:]:
            raise ValueError(
                f"test images must have the shape of images {tuple(images.shape[1:])}, "
                f"got {tuple(test_images.shape[1:])}"
            )
    class_names = _check_classes(labels, test_labels, class_names)
    if zca and normalization is not None:
        raise ValueError("zca fits a normalization of its own, got both")
    if zca and images.dim() == 2:
        raise ValueError(f"zca must be False for rows, which {name} holds, got True")
    if keep_bytes:
        if test is not None and test_images.dtype != torch.uint8:
            raise ValueError(f"test images must be uint8 with keep_bytes, got {test_images.dtype}")
        rows = torch.arange(len(test_labels)) if held_out is None else held_out
        if normalization is None:
            normalization = standardize_bytes(images, train)
        parts = (images, train, labels), (test_images, rows, test_labels)
        return _as_bytes(name, *parts, class_names, normalization)
    if normalization is None:
        images = _wide(images)
        normalization = fit_zca(images) if zca else standardize(images)
    return ImageData(
        name,
        _normalized(images, normalization),
        labels,
        _normalized(test_images, normalization),
        test_labels,
        class_names,
        normalization.float(),
    )


def from_stream(
    images: StreamedPixels,
    labels: Tensor,
    test: tuple[StreamedPixels, Tensor] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    name: str,
    normalization: Normalization | None = None,
) -> ImageData:
    """As :func:`from_tensors`, of images that are read when they are taken.

    A normalisation is fitted to ``SAMPLED`` images, as many of every class as there can be.
    """
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be square, got {tuple(images.shape[2:])} pixels")
    train = torch.arange(len(labels))
    if test is None:
        train, held_out = hold_out_a_fifth(labels)
        test_part = images, held_out, labels[held_out]
        labels = labels[train]
    else:
        test_part = test[0], torch.arange(len(test[1])), test[1]
    class_names = _check_classes(labels, test_part[2], class_names)
    if normalization is None:
        rows = evenly_over_classes(labels, len(class_names), SAMPLED)
        normalization = standardize_bytes(images, train[rows])
    return _as_bytes(name, (images, train, labels), test_part, class_names, normalization)


def _as_bytes(
    name: str,
    train: tuple[Tensor | StreamedPixels, Tensor, Tensor],
    test: tuple[Tensor | StreamedPixels, Tensor, Tensor],
    class_names: tuple[str, ...],
    normalization: Normalization,
) -> ImageData:
    """A data set of pixels, rows of them and labels."""
    normalization = normalization.float()
    parts = [ByteImages(pixels, rows, normalization) for pixels, rows, _ in (train, test)]
    return ImageData(name, parts[0], train[2], parts[1], test[2], class_names, normalization)


def _check_part(image_name: str, images: Tensor, label_name: str, labels: Tensor) -> Tensor:
    """Labels as int64, if they and the images can be used."""
    check_tensor(image_name, images)
    if images.dim() not in (2, 4):
        raise ValueError(
            f"{image_name} must have shape (N, channels, H, W), or (N, D) for rows, "
            f"got {tuple(images.shape)}"
        )
    if labels.dim() == 2:
        raise ValueError(
            f"{label_name} must be one class for each image (N,), got {tuple(labels.shape)}: "
            "images of several classes (multi-label) cannot be distilled; of one-hot rows take "
            "argmax(1)"
        )
    check_rank(label_name, labels, 1)
    check_integer(label_name, labels)
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            f"{image_name} and {label_name} must be equally many and not none, "
            f"got {len(images)} and {len(labels)}"
        )
    if images.dim() == 4 and images.shape[2] != images.shape[3]:
        raise ValueError(f"{image_name} must be square, got {tuple(images.shape[2:])} pixels")
    if images.dim() == 2 and not images.is_floating_point():
        raise TypeError(f"{image_name} must be floating point to be rows, got {images.dtype}")
    if images.dtype != torch.uint8:
        if not images.is_floating_point():
            raise TypeError(f"{image_name} must be floating point or uint8, got {images.dtype}")
        if not images.isfinite().all():
            raise ValueError(f"{image_name} must be finite, got NaN or infinity")
    if labels.min() < 0:
        raise ValueError(f"{label_name} must be at least 0, got {int(labels.min())}")
    return labels.long()


def _check_classes(
    labels: Tensor, test_labels: Tensor, class_names: Sequence[str] | None
) -> tuple[str, ...]:
    """Names of all classes, if each has training samples and the test part has no others."""
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
    return tuple(class_names)


def _wide(images: Tensor) -> Tensor:
    """Images as float32, bytes as fractions of 255; rows as float64.

    A column may be large beside its spread, which float32 would lose before the mean is off.
    """
    if images.dim() == 2:
        return images.double()
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def _normalized(images: Tensor, normalization: Normalization) -> Tensor:
    """The images as networks are trained on them, a chunk at a time.

    Tiny-ImageNet takes 5 GB in float32: one copy beside its bytes, not three.
    """
    normalized = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    for chunk, part in zip(normalized.split(_CHUNK), images.split(_CHUNK), strict=True):
        chunk.copy_(normalization(_wide(part)))
    return normalized
