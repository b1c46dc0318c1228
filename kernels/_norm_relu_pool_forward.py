"""The forward pass of norm_relu_pool; docs/math.md, "Norm, ReLU and pool"."""

import triton
import triton.language as tl

from mim4dd.kernels._norm_relu_pool_layout import (
    group_of,
    locate,
    numbers,
    over_group,
    pixel_of,
    plane_offsets,
)


@triton.jit
def forward_kernel(
    input_ptr,  # (B, C, H, W)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    out_ptr,  # (B, C, H // POOL, W // POOL)
    mean_ptr,  # (B, G)
    rstd_ptr,  # (B, G)
    C,
    H,
    W,
    groups,
    tiles,
    EPS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    POOL: tl.constexpr,
    OWN: tl.constexpr,
    LAST: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Two passes for mean and variance, a third that normalises; from the cache but the first."""
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    sample, first, end = locate(tl.program_id(0), C, groups, tiles, OWN, BLOCK_C)
    pixels = H * W
    input_ptr += sample * C * pixels
    offs_p = tl.arange(0, BLOCK_P)
    count = pixels.to(dtype) if OWN else (pixels * (end - first)).to(dtype)
    total = tl.zeros((BLOCK_C,), dtype)
    for start in range(first, end, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        for begin in range(0, pixels, BLOCK_P):
            mask = (offs_c < end)[:, None] & (begin + offs_p < pixels)[None, :]
            at = plane_offsets(offs_c, begin + offs_p, C, pixels, LAST)
            total += tl.sum(tl.load(input_ptr + at, mask=mask, other=0.0).to(dtype), axis=1)
    mean = over_group(total, OWN) / count
    square = tl.zeros((BLOCK_C,), dtype)
    for start in range(first, end, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        for begin in range(0, pixels, BLOCK_P):
            mask = (offs_c < end)[:, None] & (begin + offs_p < pixels)[None, :]
            at = plane_offsets(offs_c, begin + offs_p, C, pixels, LAST)
            x = tl.load(input_ptr + at, mask=mask, other=0.0).to(dtype)
            d = tl.where(mask, x - mean[:, None], 0.0)
            square += tl.sum(d * d, axis=1)
    rstd = 1.0 / tl.sqrt(over_group(square, OWN) / count + EPS)
    offs_c = first + tl.arange(0, BLOCK_C)
    statistic = sample * groups + group_of(offs_c, first, C, groups, OWN)
    # Of a group all lanes hold the same: the first one stores it.
    stored = (offs_c < end) & (OWN | (offs_c == first))
    tl.store(mean_ptr + statistic, mean, mask=stored)
    tl.store(rstd_ptr + statistic, rstd, mask=stored)

    out_width = W // POOL
    windows = H // POOL * out_width
    out_ptr += sample * C * windows
    for start in range(first, end, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        mask_c = offs_c < end
        scale = numbers(weight_ptr, offs_c, mask_c, HAS_WEIGHT, 1.0, dtype) * rstd
        shift = numbers(bias_ptr, offs_c, mask_c, HAS_BIAS, 0.0, dtype)
        for begin in range(0, windows, BLOCK_P):
            offs_w = begin + offs_p
            mask = mask_c[:, None] & (offs_w < windows)[None, :]
            pooled = tl.zeros((BLOCK_C, BLOCK_P), dtype)
            for i in tl.static_range(POOL * POOL):
                at = plane_offsets(offs_c, pixel_of(offs_w, i, W, out_width, POOL), C, pixels, LAST)
                x = tl.load(input_ptr + at, mask=mask, other=0.0).to(dtype)
                z = (x - mean[:, None]) * scale[:, None] + shift[:, None]
                pooled += tl.where(z <= 0, 0.0, z)  # a NaN passes
            at = plane_offsets(offs_c, offs_w, C, windows, LAST)
            tl.store(out_ptr + at, pooled / (POOL * POOL), mask=mask)
