"""Data sets from PyTorch's own."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.tensors import from_tensors

__all__ = ["from_dataset", "stack", "to_tensor"]


def from_dataset(
    dataset: Dataset[Any],
    test: Dataset[Any] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    name: str = "dataset",
    zca: bool = False,
) -> ImageData:
    """Make a data set of any map-style :class:`torch.utils.data.Dataset` of (image, label) pairs.

    Images may be tensors (channels, H, W), arrays or PIL images, all of one size, or rows (D,);
    ``test`` and the other arguments are as in :func:`from_tensors`.
    """
    return from_tensors(
        *stack(_items(dataset)),
        None if test is None else stack(_items(test)),
        class_names=class_names,
        name=name,
        zca=zca,
    )


def _items(dataset: Dataset[Any]) -> Iterator[tuple[Tensor, int]]:
    # Dataset declares no length: a map-style one has it all the same.
    for index in range(len(dataset)):  # type: ignore[arg-type]
        image, label = dataset[index]
        yield to_tensor(image), int(label)


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


def stack(items: Iterator[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """All images (N, …) and labels (N,), if the images are of one size."""
    images: list[Tensor] = []
    labels: list[int] = []
    for image, label in items:
        if images and image.shape != images[0].shape:
            raise ValueError(
                "all images must have one size and number of channels, got "
                f"{tuple(images[0].shape)} and {tuple(image.shape)}; image_size (--image-size) "
                "resizes a folder's"
            )
        images.append(image)
        labels.append(label)
    if not images:
        raise ValueError("the data set must not be empty, got no images")
    return torch.stack(images), torch.tensor(labels)
