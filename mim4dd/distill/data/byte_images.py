"""Images that stay bytes until they are used."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mim4dd.distill.data.normalization import Normalization, fixed_normalization
from mim4dd.distill.data.streamed import StreamedPixels

__all__ = ["ByteImages", "Images", "standardize_bytes", "taken"]

_CHUNK = 256


class ByteImages:
    """Images as bytes, normalised as they are taken: a quarter of the memory of a float32 tensor.

    It stands where a tensor (N, channels, H, W) would that samples are taken from: an index, a
    slice or a tensor of rows gives the same values, in float32, bit for bit.

    Args:
        pixels: Bytes of images, of which these may be a part, in memory or read as they are taken.
            (M, channels, H, W) uint8
        rows: Which of them, in which order. (N,)
        normalization: What makes samples of pixels from 0 to 1.
    """

    def __init__(
        self, pixels: Tensor | StreamedPixels, rows: Tensor, normalization: Normalization
    ) -> None:
        self.pixels = pixels
        self.rows = rows
        self.normalization = normalization

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Tensor:
        rows = self.rows[index]
        pixels = self.pixels[rows].float().div_(255)
        if pixels.dim() == 3:
            return self.normalization(pixels[None])[0]
        return self.normalization(pixels)

    @property
    def shape(self) -> torch.Size:
        """(N, channels, H, W)"""
        return torch.Size((len(self), *self.pixels.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """What they are once they are taken."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.pixels.device

    def dim(self) -> int:
        """Four."""
        return len(self.pixels.shape)

    def numel(self) -> int:
        """How many values there would be in a tensor."""
        return math.prod(self.shape)

    def split(self, size: int) -> "_Parts":
        """Parts of so many, each made when it is asked for."""
        return _Parts(self, size)

    @property
    def streamed(self) -> bool:
        """Whether they are read as they are taken."""
        return isinstance(self.pixels, StreamedPixels)

    def expect(self, index: Tensor | slice) -> None:
        """Say what is taken next: streamed images are read while something else is computed."""
        if isinstance(self.pixels, StreamedPixels):
            self.pixels.expect(self.rows[index])

    def take(self, rows: Tensor) -> "ByteImages":
        """Some of the images, still as bytes, which both share."""
        return ByteImages(self.pixels, self.rows[rows], self.normalization)

    def to(self, device: torch.device | str) -> "ByteImages":
        """The same on another device."""
        return ByteImages(
            self.pixels.to(device), self.rows.to(device), self.normalization.to(device)
        )


class _Parts(Sequence[Tensor]):
    def __init__(self, images: ByteImages, size: int) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.images[self._slice(index % len(self))]

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(len(self)):
            part = self[index]
            if index + 1 < len(self):
                self.images.expect(self._slice(index + 1))
            yield part

    def _slice(self, index: int) -> slice:
        return slice(index * self.size, (index + 1) * self.size)


Images: TypeAlias = Tensor | ByteImages
"""Samples as networks are trained on them."""


def taken(images: Images, parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """Samples of several rows, part by part; streamed ones are read a part ahead.

    Example:
        >>> import torch
        >>> from mim4dd.distill.data.byte_images import taken
        >>> list(taken(torch.arange(5.0), torch.tensor([4, 0, 2]).split(2)))
        [tensor([4., 0.]), tensor([2.])]
    """
    for index, part in enumerate(parts):
        samples = images[part]
        if isinstance(images, ByteImages) and index + 1 < len(parts):
            images.expect(parts[index + 1])
        yield samples


def standardize_bytes(pixels: Tensor | StreamedPixels, rows: Tensor) -> Normalization:
    """Zero mean and unit deviation of every channel of some images, from exact sums of bytes.

    Args:
        pixels: (M, channels, H, W) uint8
        rows: Which of them. (N,)

    Raises:
        ValueError: If a channel does not vary.
    """
    values = torch.arange(256, device=pixels.device)
    counts = torch.zeros(pixels.shape[1], 256, dtype=torch.int64, device=pixels.device)
    for chunk in rows.split(_CHUNK):
        for channel, count in zip(pixels[chunk].unbind(1), counts, strict=True):
            count += channel.flatten().int().bincount(minlength=256)
    sums, squares = ((counts * powers).sum(1).tolist() for powers in (values, values.square()))
    number = len(rows) * pixels.shape[2:].numel()
    # Whole numbers, so exact.
    spreads = [number * two - one**2 for one, two in zip(sums, squares, strict=True)]
    constant = [channel for channel, spread in enumerate(spreads) if spread == 0]
    if constant:
        raise ValueError(
            f"images must vary in every channel to be standardised, channel {constant} does not"
        )
    means = torch.tensor([total / number / 255 for total in sums])
    variances = [spread / (number * (number - 1)) for spread in spreads]
    deviations = torch.tensor([math.sqrt(variance) / 255 for variance in variances])
    return fixed_normalization(means.to(pixels.device), deviations.to(pixels.device))
