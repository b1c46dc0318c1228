"""Which channels and pixels a program of norm_relu_pool has, and where they are in memory."""

import triton
import triton.language as tl


@triton.jit
def locate(pid, C, groups, tiles, OWN: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sample, first channel, past the last one, of the tile or group that a program has."""
    sample = (pid // tiles).to(tl.int64)
    part = pid % tiles
    if OWN:
        return sample, part * BLOCK_C, tl.minimum(part * BLOCK_C + BLOCK_C, C)
    return sample, part * (C // groups), (part + 1) * (C // groups)


@triton.jit
def over_group(values, OWN: tl.constexpr):
    """Of sums by channel: those of each channel's group."""
    if OWN:
        return values
    return tl.zeros_like(values) + tl.sum(values, axis=0)


@triton.jit
def group_of(channels, first, C, groups, OWN: tl.constexpr):
    """The group of each lane; of a program with one group that of the first."""
    if OWN:
        return channels
    return tl.zeros_like(channels) + first // (C // groups)


@triton.jit
def statistics(
    mean_ptr, rstd_ptr, sample, first, C, groups, OWN: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Mean and rstd of each lane, and where they are."""
    lanes = first + tl.arange(0, BLOCK_C)
    at = sample * groups + group_of(lanes, first, C, groups, OWN)
    known = (lanes < C) | (not OWN)  # of a group all lanes are known, and the same
    mean = tl.load(mean_ptr + at, mask=known, other=0.0)
    rstd = tl.load(rstd_ptr + at, mask=known, other=0.0)
    return mean, rstd, at


@triton.jit
def numbers(ptr, channels, mask, PRESENT: tl.constexpr, other: tl.constexpr, dtype: tl.constexpr):
    """One per channel, ``other`` where there are none."""
    if PRESENT:
        return tl.load(ptr + channels, mask=mask, other=0.0).to(dtype)
    return tl.full(channels.shape, other, dtype)


@triton.jit
def plane_offsets(channels, places, C, size, LAST: tl.constexpr):
    """Of a sample's maps with ``size`` places: (C, size) in memory, or (size, C) if LAST."""
    if LAST:
        return channels[:, None] + places[None, :] * C
    return channels[:, None] * size + places[None, :]


@triton.jit
def pixel_of(windows, i, W, out_width, POOL: tl.constexpr):
    """The i-th pixel of each window."""
    row = windows // out_width * POOL + i // POOL
    return row * W + windows % out_width * POOL + i % POOL


@triton.jit
def is_rest(pixels, H, W, POOL: tl.constexpr):
    """Whether a pixel is in no window."""
    return (pixels // W >= H // POOL * POOL) | (pixels % W >= W // POOL * POOL)
