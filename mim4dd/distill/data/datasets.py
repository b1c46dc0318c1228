"""Data sets from PyTorch's own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.normalization import Normalization
from mim4dd.distill.data.streamed import StreamedPixels
from mim4dd.distill.data.tensors import from_stream, from_tensors
from mim4dd.distill.runtime.progress import progress_bar

__all__ = ["from_dataset", "label_column", "pair_of", "stack", "to_tensor"]

# What the columns of the Hugging Face Hub's data sets are called.
_IMAGE_KEYS = ("image", "img", "images", "pixel_values")
_LABEL_KEYS = ("label", "labels", "fine_label", "target")


def from_dataset(
    dataset: Dataset[Any],
    test: Dataset[Any] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    name: str = "dataset",
    zca: bool = False,
    normalization: Normalization | None = None,
    keep_bytes: bool = False,
    stream: bool = False,
    readers: int = 1,
) -> ImageData:
    """Make a data set of any map-style :class:`torch.utils.data.Dataset` of (image, label) pairs.

    Images may be tensors (channels, H, W), arrays or PIL images, all of one size, or rows (D,);
    labels are integers, or arrays of one. Samples may be dictionaries instead of pairs, as those of
    Hugging Face, with ``image``, ``img``, ``images`` or ``pixel_values`` and ``label``, ``labels``,
    ``fine_label`` or ``target``. ``test`` and the other arguments are as in :func:`from_tensors`.

    With ``stream`` samples are taken from the data set when they are used, as bytes: they must be
    in uint8, as PIL images are, and the data set gives the same ones whenever it is asked. Labels
    are read first: from a list ``targets``, as data sets of torchvision have one, or from the
    column of one of Hugging Face, else from all samples. Mean and deviation are those of 5000
    images, evenly over the classes. ``readers`` is the number of threads that ask the data set at
    the same time: more than one where its ``__getitem__`` allows that.

    Raises:
        ValueError: If a sample is neither, has no key or several of an image or a label, or a label
            of more than one value; and what :func:`from_tensors` raises.
        TypeError: If a label is no integer.

    Example:
        >>> import torch
        >>> from mim4dd.distill.data import from_dataset
        >>> samples = [{"img": torch.rand(1, 8, 8), "label": index % 2} for index in range(10)]
        >>> from_dataset(samples).image_train.shape
        torch.Size([8, 1, 8, 8])
    """
    if stream:
        if zca:
            raise ValueError(
                "zca must be False with stream, because it is fitted to all images at once"
            )
        return from_stream(
            *_streamed(dataset, readers),
            None if test is None else _streamed(test, readers),
            class_names=class_names,
            name=name,
            normalization=normalization,
        )
    return from_tensors(
        *stack(_items(dataset), _length(dataset)),
        None if test is None else stack(_items(test), _length(test)),
        class_names=class_names,
        name=name,
        zca=zca,
        normalization=normalization,
        keep_bytes=keep_bytes,
    )


def _length(dataset: Dataset[Any]) -> int:
    # Dataset declares no length: a map-style one has it all the same.
    return len(dataset)  # type: ignore[arg-type]


def _items(dataset: Dataset[Any]) -> Iterator[tuple[Tensor, int]]:
    for index in range(_length(dataset)):
        image, label = pair_of(dataset[index], index)
        yield to_tensor(image), _class_of(label, index)


@dataclass(frozen=True)
class _Reader:
    dataset: Dataset[Any]

    def __call__(self, row: int) -> Tensor:
        return to_tensor(pair_of(self.dataset[row], row)[0])


def _streamed(dataset: Dataset[Any], readers: int) -> tuple[StreamedPixels, Tensor]:
    count = _length(dataset)
    if count == 0:
        raise ValueError("the data set must not be empty, got no images")
    read = _Reader(dataset)
    first = read(0)
    if first.dtype != torch.uint8 or first.dim() != 3:
        raise ValueError(
            "images must be uint8 (channels, H, W) to be streamed, as PIL images are without "
            f"ToTensor, got {first.dtype} {tuple(first.shape)}"
        )
    channels, height, width = first.shape
    labels = torch.tensor([_class_of(each, row) for row, each in enumerate(_labels(dataset))])
    if len(labels) != count or labels.min() < 0:
        raise ValueError(
            f"labels must be {count}, of at least 0, got {len(labels)} from {int(labels.min())} on"
        )
    return StreamedPixels(read, count, (channels, height, width), readers), labels


def _labels(dataset: Dataset[Any]) -> Iterable[Any]:
    """The labels, without the images where they can be had so."""
    targets = getattr(dataset, "targets", None)
    if targets is not None:
        return targets
    column = label_column(dataset)
    return _labels_of_samples(dataset) if column is None else dataset[column]


def label_column(dataset: Any) -> str | None:
    """The column of labels of a data set that has columns, as those of Hugging Face."""
    columns = getattr(dataset, "column_names", None)
    found = [key for key in _LABEL_KEYS if key in columns] if isinstance(columns, list) else []
    return found[0] if len(found) == 1 else None


def _labels_of_samples(dataset: Dataset[Any]) -> Iterator[Any]:
    with progress_bar(_length(dataset), "labels") as bar:
        for row in range(_length(dataset)):
            yield pair_of(dataset[row], row)[1]
            bar.update()


def pair_of(sample: Any, index: int) -> tuple[Any, Any]:
    """Image and label of a sample."""
    if isinstance(sample, Mapping):
        image, label = (
            [key for key in keys if key in sample] for keys in (_IMAGE_KEYS, _LABEL_KEYS)
        )
        if len(image) == len(label) == 1:
            return sample[image[0]], sample[label[0]]
        raise ValueError(
            f"samples must have one of {', '.join(_IMAGE_KEYS)} and one of "
            f"{', '.join(_LABEL_KEYS)}, sample {index} has {', '.join(map(str, sample))}"
        )
    if isinstance(sample, Sequence) and len(sample) == 2:
        return sample[0], sample[1]
    size = f" of {len(sample)}" if isinstance(sample, Sequence) else ""
    raise ValueError(
        "samples must be (image, label) pairs or dictionaries, "
        f"sample {index} is a {type(sample).__name__}{size}"
    )


def _class_of(label: Any, index: int) -> int:
    """The class that a label, or an array of one label, names."""
    if hasattr(label, "tolist"):  # a tensor, an array or a scalar of NumPy
        label = label.tolist()
    while isinstance(label, Sequence) and not isinstance(label, str):
        if len(label) != 1:
            raise ValueError(
                f"labels must be integers or arrays of one, label {index} has {len(label)} values: "
                "images of several classes (multi-label) cannot be distilled"
            )
        label = label[0]
    if isinstance(label, Integral):
        return int(label)
    if isinstance(label, float) and label.is_integer():
        return int(label)
    raise TypeError(f"labels must be integers, label {index} is {label!r}")


def to_tensor(image: Any) -> Tensor:
    """(channels, H, W) from a tensor, an array or a PIL image; a row (D,) stays one."""
    if isinstance(image, Tensor):
        return image
    import numpy as np
    from PIL import Image

    if isinstance(image, Image.Image) and image.mode == "P":
        image = image.convert("RGB")  # an array of it would be of indices into its palette
    array = torch.from_numpy(np.array(image))
    if array.dim() < 2:
        return array
    return array.unsqueeze(0) if array.dim() == 2 else array.permute(2, 0, 1)


def stack(items: Iterator[tuple[Tensor, int]], count: int) -> tuple[Tensor, Tensor]:
    """All ``count`` images (N, …) and labels (N,), if the images are of one size and dtype."""
    if count == 0:
        raise ValueError("the data set must not be empty, got no images")
    images: Tensor | None = None
    labels: list[int] = []
    for index, (image, label) in enumerate(items):
        if images is None:
            images = image.new_empty(count, *image.shape)  # not a list, which would be a copy
        if image.shape != images.shape[1:]:
            raise ValueError(
                "all images must have one size and number of channels, got "
                f"{tuple(images.shape[1:])} and {tuple(image.shape)}; image_size (--image-size) "
                "resizes a folder's"
            )
        if image.dtype != images.dtype:
            raise ValueError(
                f"all images must have one dtype, got {images.dtype} and {image.dtype}"
            )
        images[index] = image
        labels.append(label)
    assert images is not None
    return images, torch.tensor(labels)
