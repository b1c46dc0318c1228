"""The forward pass of norm_relu_pool; docs/math.md, "Norm, ReLU and pool"."""

import triton
import triton.language as tl

from mim4dd.kernels._norm_relu_pool_layout import (
    Affine,
    Sizes,
    Statistics,
    count_of,
    image_of,
    load_channels,
    locate,
    num_windows,
    over_group,
    pixel_at,
    pixels_at,
    pooled_of,
    statistics_at,
    windows_at,
)


@triton.jit
def forward_kernel(
    input_ptr,  # (B, C, H, W)
    affine: Affine,
    out_ptr,  # (B, C, H // POOL, W // POOL)
    statistics: Statistics,
    sizes: Sizes,
    tiling: tl.constexpr,
    EPS: tl.constexpr,
):
    """Two passes for mean and variance, a third that normalises; from the cache but the first."""
    BLOCK_C: tl.constexpr = tiling.BLOCK_C
    BLOCK_P: tl.constexpr = tiling.BLOCK_P
    UNROLL: tl.constexpr = tiling.UNROLL  # Triton 3.6 unrolls by no field
    dtype: tl.constexpr = statistics.mean.dtype.element_ty
    part = locate(sizes, tiling)
    count = count_of(part, sizes, tiling, dtype)
    image = image_of(input_ptr, part.sample, sizes)
    zeros = tl.zeros((BLOCK_C,), dtype)
    mean = over_group(deviations(image, part, zeros, sizes, tiling, False), tiling) / count
    variance = over_group(deviations(image, part, mean, sizes, tiling, True), tiling) / count
    rstd = 1.0 / tl.sqrt(variance + EPS)
    kept, stored = statistics_at(part, 1, sizes, tiling)
    tl.store(statistics.mean + kept, mean, mask=stored)
    tl.store(statistics.rstd + kept, rstd, mask=stored)
    out = pooled_of(out_ptr, part.sample, sizes, tiling)
    for start in range(part.first, part.end, BLOCK_C):
        channels = load_channels(affine, start, part.end, mean, rstd, tiling)
        for begin in range(0, num_windows(sizes, tiling), BLOCK_P):
            to, mask = windows_at(channels.offs, channels.mask, begin, sizes, tiling)
            pooled = tl.zeros((BLOCK_C, BLOCK_P), dtype)
            for step in range(0, tiling.POOL * tiling.POOL, UNROLL):
                for i in tl.static_range(UNROLL):
                    at = pixel_at(channels.offs, begin, step + i, sizes, tiling)
                    x = tl.load(image + at, mask=mask, other=0.0).to(dtype)
                    z = (x - mean[:, None]) * channels.scale[:, None] + channels.shift[:, None]
                    pooled += tl.where(z <= 0, 0.0, z)  # a NaN passes
            tl.store(out + to, pooled / (tiling.POOL * tiling.POOL), mask=mask)


@triton.jit
def deviations(image, part, mean, sizes, tiling: tl.constexpr, SQUARED: tl.constexpr):
    """Sums over pixels, by channel, of x; if SQUARED of (x − mean)²."""
    BLOCK_C: tl.constexpr = tiling.BLOCK_C
    BLOCK_P: tl.constexpr = tiling.BLOCK_P
    total = tl.zeros((BLOCK_C,), mean.dtype)
    for start in range(part.first, part.end, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        for begin in range(0, sizes.height * sizes.width, BLOCK_P):
            at, mask = pixels_at(offs_c, offs_c < part.end, begin, sizes, tiling)
            x = tl.load(image + at, mask=mask, other=0.0).to(mean.dtype)
            if SQUARED:
                d = tl.where(mask, x - mean[:, None], 0.0)
                x = d * d
            total += tl.sum(x, axis=1)
    return total
