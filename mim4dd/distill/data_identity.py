"""What a data set holds, in few numbers: whatever its name, its folder and its machine are."""

import math
from typing import Any

import torch
from torch import Tensor

from mim4dd.distill.data.image_data import ImageData

__all__ = ["describe_data"]

_PROJECTIONS = 4
_CHUNK = 1024
_LISTED = 8


def describe_data(data: ImageData) -> dict[str, Any]:
    """Classes in their order, sizes, normalisation, and the mean sample of every class.

    Of every mean sample, in the units that networks see, four projections are kept, so a picture
    more, less, elsewhere or of another class shows, while the same pictures under another name, in
    another order within their classes or on another device do not. One pass over the data.
    """
    return {
        "class_names": list(data.class_names),
        "sample_shape": list(data.image_train.shape[1:]),
        "normalization": {
            "kind": "zca" if data.has_images and data.normalization.whiten.dim() == 2 else "scale",
            "mean": _values(data.normalization.mean),
            "factor": _values(data.normalization.whiten),
        },
        "train": _part(data.image_train, data.label_train, data.num_classes),
        "test": _part(data.image_test, data.label_test, data.num_classes),
    }


def _part(images: Tensor, labels: Tensor, num_classes: int) -> dict[str, Any]:
    counts = labels.bincount(minlength=num_classes).tolist()
    rows = labels.argsort(stable=True)
    means = [_mean(images, members) for members in rows.split(counts)]
    return {"counts": counts, "content": _projected(torch.stack(means)).flatten().tolist()}


def _mean(images: Tensor, rows: Tensor) -> Tensor:
    """The mean sample of some rows, in float64 on the CPU. (D,)"""
    total = images.new_zeros(images[0].numel(), dtype=torch.float64)
    for chunk in rows.split(_CHUNK):
        total += images[chunk].flatten(1).sum(0, dtype=torch.float64)
    return (total / max(1, len(rows))).cpu()


def _values(tensor: Tensor) -> list[float]:
    """A few numbers as they are, many as their projections."""
    flat = tensor.detach().cpu().double().flatten()
    return flat.tolist() if len(flat) <= _LISTED else _projected(flat).tolist()


def _projected(samples: Tensor) -> Tensor:
    """Products of vectors (…, D) with fixed ones of unit length. (…, 4), to six digits"""
    places = torch.arange(samples.shape[-1], dtype=torch.float64) + 0.5
    # Frequencies that share no period, so that no shift or flip of a picture leaves all alike.
    waves = torch.stack([(places * math.sqrt(prime)).cos() for prime in (2, 3, 5, 7)], 1)
    projected = samples @ (waves / waves.norm(dim=0))
    return projected.mul(1e6).round().div(1e6)
