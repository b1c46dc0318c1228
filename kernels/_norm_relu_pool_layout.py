"""What travels together to the kernels of norm_relu_pool, and where it is in memory."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Maps(NamedTuple):
    """What has pixels or windows; None of what is not given, or not wanted."""

    input: Tensor  # (B, C, H, W): x
    grad_out: Tensor  # (B, C, H // POOL, W // POOL)
    tangent: Tensor | None  # (B, C, H, W): u
    grad_input: Tensor | None  # (B, C, H, W)
    grad_grad_out: Tensor | None  # (B, C, H // POOL, W // POOL)


class Affine(NamedTuple):
    """Numbers by channel."""

    weight: Tensor | None  # (C,)
    bias: Tensor | None  # (C,)


class Statistics(NamedTuple):
    """Numbers by sample and group."""

    mean: Tensor  # (B, G)
    rstd: Tensor  # (B, G)


class Sizes(NamedTuple):
    """Of one sample."""

    channels: int
    height: int
    width: int
    groups: int
    tiles: int  # programs


class PoolTiling(NamedTuple):
    """What a kernel is compiled for."""

    POOL: int  # pixels along a side of a window
    OWN: bool  # every channel is a group of its own
    LAST: bool  # channels-last
    REST: bool  # some pixels are in no window
    BLOCK_C: int
    BLOCK_P: int  # pixels or windows
    UNROLL: int  # pixels of a window that are loaded together, a divisor of POOL * POOL


class Part(NamedTuple):
    """Channels of a program: a tile, or a group that takes it several tiles."""

    sample: tl.tensor
    first: tl.tensor
    end: tl.tensor


class Channels(NamedTuple):
    """A tile of channels and what is applied to them, (BLOCK_C,) each."""

    offs: tl.tensor
    mask: tl.tensor
    mean: tl.tensor
    weight: tl.tensor
    scale: tl.tensor  # weight · rstd
    shift: tl.tensor  # bias


class Sums(NamedTuple):
    """Over pixels, (BLOCK_C,) each; g, d and u as in :mod:`._norm_relu_pool_passes`."""

    g: tl.tensor
    gd: tl.tensor
    gu: tl.tensor
    u: tl.tensor
    ud: tl.tensor


@triton.jit
def locate(sizes, tiling: tl.constexpr):
    """The part of this program."""
    sample = (tl.program_id(0) // sizes.tiles).to(tl.int64)
    part = tl.program_id(0) % sizes.tiles
    if tiling.OWN:
        first = part * tiling.BLOCK_C
        end = tl.minimum(first + tiling.BLOCK_C, sizes.channels)
    else:
        first = part * (sizes.channels // sizes.groups)
        end = first + sizes.channels // sizes.groups
    return Part(sample, first, end)


@triton.jit
def count_of(part, sizes, tiling: tl.constexpr, dtype: tl.constexpr):
    """Pixels of a group."""
    pixels = sizes.height * sizes.width
    return pixels.to(dtype) if tiling.OWN else (pixels * (part.end - part.first)).to(dtype)


@triton.jit
def over_group(values, tiling: tl.constexpr):
    """Of sums by channel: those of each channel's group."""
    if tiling.OWN:
        return values
    return tl.zeros_like(values) + tl.sum(values, axis=0)


@triton.jit
def statistics_at(part, rows, sizes, tiling: tl.constexpr):
    """Where each lane's group is in the last of ``rows`` (G,) of a sample; which lanes store there.

    Of a group all lanes hold the same, and the first one stores it.
    """
    lanes = part.first + tl.arange(0, tiling.BLOCK_C)
    at = part.sample * rows * sizes.groups
    if tiling.OWN:
        return at + lanes, lanes < part.end
    group = part.first // (sizes.channels // sizes.groups)
    return at + tl.zeros_like(lanes) + group, lanes == part.first


@triton.jit
def load_statistics(statistics, part, sizes, tiling: tl.constexpr):
    """Mean and rstd of each lane."""
    at, known = statistics_at(part, 1, sizes, tiling)
    known = known | (not tiling.OWN)  # of a group all lanes are known, and the same
    mean = tl.load(statistics.mean + at, mask=known, other=0.0)
    rstd = tl.load(statistics.rstd + at, mask=known, other=0.0)
    return mean, rstd


@triton.jit
def numbers(ptr, channels, mask, other: tl.constexpr, dtype: tl.constexpr):
    """One per channel, ``other`` where there are none."""
    if ptr is not None:
        return tl.load(ptr + channels, mask=mask, other=0.0).to(dtype)
    return tl.full(channels.shape, other, dtype)


@triton.jit
def load_channels(affine, start, end, mean, rstd, tiling: tl.constexpr):
    """The tile that starts at channel ``start``."""
    offs = start + tl.arange(0, tiling.BLOCK_C)
    mask = offs < end
    weight = numbers(affine.weight, offs, mask, 1.0, mean.dtype)
    shift = numbers(affine.bias, offs, mask, 0.0, mean.dtype)
    return Channels(offs, mask, mean, weight, weight * rstd, shift)


@triton.jit
def image_of(ptr, sample, sizes):
    """Where a sample's pixels start."""
    return ptr + sample * sizes.channels * (sizes.height * sizes.width)


@triton.jit
def num_windows(sizes, tiling: tl.constexpr):
    """Of a plane."""
    return sizes.height // tiling.POOL * (sizes.width // tiling.POOL)


@triton.jit
def pooled_of(ptr, sample, sizes, tiling: tl.constexpr):
    """Where a sample's windows start."""
    return ptr + sample * sizes.channels * num_windows(sizes, tiling)


@triton.jit
def plane_offsets(channels, places, size, sizes, tiling: tl.constexpr):
    """Of a sample's maps with ``size`` places: (C, size) in memory, or (size, C) if LAST."""
    if tiling.LAST:
        return channels[:, None] + places[None, :] * sizes.channels
    return channels[:, None] * size + places[None, :]


@triton.jit
def pixels_at(channels, mask_c, begin, sizes, tiling: tl.constexpr):
    """Where a tile of pixels is in a sample, and which are there."""
    size = sizes.height * sizes.width
    offs = begin + tl.arange(0, tiling.BLOCK_P)
    mask = mask_c[:, None] & (offs < size)[None, :]
    return plane_offsets(channels, offs, size, sizes, tiling), mask


@triton.jit
def rest_at(channels, mask_c, begin, sizes, tiling: tl.constexpr):
    """The same without the pixels of windows."""
    size = sizes.height * sizes.width
    offs = begin + tl.arange(0, tiling.BLOCK_P)
    below = offs // sizes.width >= sizes.height // tiling.POOL * tiling.POOL
    beside = offs % sizes.width >= sizes.width // tiling.POOL * tiling.POOL
    # Joined before they are broadcast, or Triton moves the masks through shared memory.
    mask = mask_c[:, None] & ((offs < size) & (below | beside))[None, :]
    return plane_offsets(channels, offs, size, sizes, tiling), mask


@triton.jit
def windows_at(channels, mask_c, begin, sizes, tiling: tl.constexpr):
    """Where a tile of windows is in a sample's pooled maps, and which are there."""
    size = num_windows(sizes, tiling)
    offs = begin + tl.arange(0, tiling.BLOCK_P)
    mask = mask_c[:, None] & (offs < size)[None, :]
    return plane_offsets(channels, offs, size, sizes, tiling), mask


@triton.jit
def pixel_at(channels, begin, i, sizes, tiling: tl.constexpr):
    """Where the i-th pixel of each window of a tile is in a sample."""
    window = begin + tl.arange(0, tiling.BLOCK_P)
    out_width = sizes.width // tiling.POOL
    row = window // out_width * tiling.POOL + i // tiling.POOL
    pixel = row * sizes.width + window % out_width * tiling.POOL + i % tiling.POOL
    return plane_offsets(channels, pixel, sizes.height * sizes.width, sizes, tiling)
