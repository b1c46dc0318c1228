"""The gradient of norm_relu_pool and its sums over samples; docs/math.md, "Norm, ReLU and pool".

d = x − mean; g = the upstream gradient of a pixel behind the ReLU; u = the tangent of the input,
whose sums only the second derivative has.
"""

import triton
import triton.language as tl

from mim4dd.kernels._norm_relu_pool_layout import (
    Affine,
    Maps,
    Sizes,
    Statistics,
    count_of,
    load_channels,
    load_statistics,
    locate,
    over_group,
)
from mim4dd.kernels._norm_relu_pool_passes import store_maps, sum_maps


@triton.jit
def backward_kernel(
    maps: Maps,
    affine: Affine,
    statistics: Statistics,
    sums_ptr,  # (B, 2, C): of g, of g·d
    sizes: Sizes,
    tiling: tl.constexpr,
):
    """One pass for the sums, one for grad_input."""
    BLOCK_C: tl.constexpr = tiling.BLOCK_C
    dtype: tl.constexpr = statistics.mean.dtype.element_ty
    part = locate(sizes, tiling)
    count = count_of(part, sizes, tiling, dtype)
    mean, rstd = load_statistics(statistics, part, sizes, tiling)
    sums_ptr += part.sample * 2 * sizes.channels
    zeros = tl.zeros((BLOCK_C,), dtype)
    a = zeros  # of weight·g
    ad = zeros
    for start in range(part.first, part.end, BLOCK_C):
        channels = load_channels(affine, start, part.end, mean, rstd, tiling)
        sums = sum_maps(maps, part.sample, channels, zeros, zeros, sizes, tiling)
        tl.store(sums_ptr + channels.offs, sums.g, mask=channels.mask)
        tl.store(sums_ptr + sizes.channels + channels.offs, sums.gd, mask=channels.mask)
        a += channels.weight * sums.g
        ad += channels.weight * sums.gd
    if maps.grad_input is not None:
        constant = -rstd * over_group(a, tiling) / count
        by_d = -rstd * rstd * rstd * over_group(ad, tiling) / count
        for start in range(part.first, part.end, BLOCK_C):
            channels = load_channels(affine, start, part.end, mean, rstd, tiling)
            store_maps(
                maps, part.sample, channels, channels.scale, by_d, None, constant, None,
                sizes, tiling,
            )  # fmt: skip


@triton.jit
def over_samples_kernel(
    sums_ptr,  # (B, 2, C): of g, of g·d; of the second derivative (B, 3, C): of g·u too
    rstd_ptr,  # (B, G)
    means_ptr,  # (B, 2, G): of u, of u·x̂; None of the first
    grads: Affine,
    B,
    C,
    groups,
    BLOCK_C: tl.constexpr,
):
    """Sums over the samples, in their order."""
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = offs_c < C
    group = offs_c // (C // groups)
    of_weight = tl.zeros((BLOCK_C,), dtype)
    of_bias = tl.zeros((BLOCK_C,), dtype)
    for _ in range(0, B):
        g = tl.load(sums_ptr + offs_c, mask=mask, other=0.0)
        gd = tl.load(sums_ptr + C + offs_c, mask=mask, other=0.0)
        rstd = tl.load(rstd_ptr + group, mask=mask, other=0.0)
        sums_ptr += 2 * C
        rstd_ptr += groups
        if means_ptr is not None:
            gu = tl.load(sums_ptr + offs_c, mask=mask, other=0.0)
            u = tl.load(means_ptr + group, mask=mask, other=0.0)
            ux = tl.load(means_ptr + groups + group, mask=mask, other=0.0)
            sums_ptr += C
            means_ptr += 2 * groups
            of_weight += rstd * (gu - u * g - rstd * ux * gd)
        else:
            of_weight += rstd * gd
            of_bias += g
    if grads.weight is not None:
        tl.store(grads.weight + offs_c, of_weight, mask=mask)
    if grads.bias is not None:
        tl.store(grads.bias + offs_c, of_bias, mask=mask)
