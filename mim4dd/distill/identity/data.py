"""What a data set holds, in few numbers: whatever its name, its folder and its machine are."""

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from mim4dd._torch_private import version
from mim4dd.distill.data.byte_images import ByteImages, Images
from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.per_class import rows_of_classes, spread
from mim4dd.distill.data.streamed import SAMPLED

__all__ = ["describe_data"]

_CHUNK = 1024
_LISTED = 8
_REMEMBERED = "_description"


def describe_data(data: ImageData) -> dict[str, Any]:
    """Classes in their order, sizes, normalisation, and the mean sample of every class.

    Of every mean sample, in the units that networks see, four projections are kept, so a picture
    more, less, elsewhere or of another class shows, while the same pictures under another name, in
    another order within their classes or on another device do not. One pass over the data, once
    for each :class:`ImageData`, and again where its tensors were changed in place. Of images that
    are streamed a mean is of some of the class, at equal distances in the order of their names.
    """
    versions = [_version(tensor) for tensor in _tensors(data)]
    known = vars(data).get(_REMEMBERED)  # beside the fields: replace() and copies leave it out
    if known is None or known[0] != versions:
        known = vars(data)[_REMEMBERED] = versions, _describe(data)
    description: dict[str, Any] = deepcopy(known[1])
    return description


def _tensors(data: ImageData) -> list[Tensor]:
    images = [
        part
        for each in (data.image_train, data.image_test)
        for part in ((each.pixels, each.rows) if isinstance(each, ByteImages) else (each,))
        if isinstance(part, Tensor)  # files are not read again to see whether they changed
    ]
    return [
        *images,
        data.label_train,
        data.label_test,
        data.normalization.mean,
        data.normalization.whiten,
    ]


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; inference tensors do not count that."""
    return None if tensor.is_inference() else version(tensor)


def _describe(data: ImageData) -> dict[str, Any]:
    return {
        "class_names": list(data.class_names),
        "sample_shape": list(data.image_train.shape[1:]),
        "normalization": {
            "kind": "zca" if data.zca else "scale",
            "mean": _values(data.normalization.mean),
            "factor": _values(data.normalization.whiten),
        },
        "train": _part(data.image_train, data.label_train, data.num_classes),
        "test": _part(data.image_test, data.label_test, data.num_classes),
    }


def _part(images: Images, labels: Tensor, num_classes: int) -> dict[str, Any]:
    classes = rows_of_classes(labels, num_classes)
    described: dict[str, Any] = {"counts": [len(members) for members in classes]}
    most = -(-SAMPLED // num_classes)
    if (
        isinstance(images, ByteImages)
        and images.streamed
        and any(len(members) > most for members in classes)
    ):
        described["at_most_of_a_class"] = most
        classes = tuple(spread(members, most) for members in classes)
    means = [_mean(images, members) for members in classes]
    return described | {"content": _projected(torch.stack(means)).flatten().tolist()}


def _mean(images: Images, rows: Tensor) -> Tensor:
    """The mean sample of some rows, in float64 on the CPU. (D,)"""
    total = torch.zeros(images.shape[1:].numel(), dtype=torch.float64, device=images.device)
    for chunk in rows.split(_CHUNK):
        total += images[chunk].flatten(1).sum(0, dtype=torch.float64)
    return (total / max(1, len(rows))).cpu()


def _values(tensor: Tensor) -> list[float]:
    """A few numbers as they are, many as their projections: of a matrix, of rows and columns."""
    if tensor.numel() <= _LISTED:
        return tensor.detach().cpu().double().flatten().tolist()
    if tensor.dim() == 2:
        chunks = [_products(chunk) for chunk in tensor.detach().split(_CHUNK)]
        return _rounded(_products(torch.cat(chunks).T)).flatten().tolist()
    return _projected(tensor.detach().flatten()).tolist()


def _projected(samples: Tensor) -> Tensor:
    """Products of vectors (…, D) with fixed ones of unit length. (…, 4), to six digits"""
    return _rounded(_products(samples))


def _rounded(values: Tensor) -> Tensor:
    return values.mul(1e6).round().div(1e6)


def _products(samples: Tensor) -> Tensor:
    return samples.cpu().double() @ _waves(samples.shape[-1])


def _waves(length: int) -> Tensor:
    """Four vectors of unit length. (length, 4)"""
    places = torch.arange(length, dtype=torch.float64) + 0.5
    # Frequencies that share no period, so that no shift or flip of a picture leaves all alike.
    waves = torch.stack([(places * math.sqrt(prime)).cos() for prime in (2, 3, 5, 7)], 1)
    return waves / waves.norm(dim=0)
