"""The gradient of norm_relu_pool and its sums over samples; docs/math.md, "Norm, ReLU and pool".

d = x − mean; g = the upstream gradient of a pixel behind the ReLU; u = the tangent of the input,
whose sums only the second derivative has.
"""

import triton
import triton.language as tl

from mim4dd.kernels._norm_relu_pool_layout import (
    is_rest,
    locate,
    numbers,
    over_group,
    pixel_of,
    plane_offsets,
    statistics,
)


@triton.jit
def backward_kernel(
    grad_out_ptr,  # (B, C, H // POOL, W // POOL)
    input_ptr,  # (B, C, H, W)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    mean_ptr,  # (B, G)
    rstd_ptr,  # (B, G)
    grad_input_ptr,  # (B, C, H, W)
    sums_ptr,  # (2, B, C): of g, of g·d
    B,
    C,
    H,
    W,
    groups,
    tiles,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OF_INPUT: tl.constexpr,
    POOL: tl.constexpr,
    OWN: tl.constexpr,
    LAST: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One pass for the sums, one for grad_input."""
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    sample, first, end = locate(tl.program_id(0), C, groups, tiles, OWN, BLOCK_C)
    pixels = H * W
    out_width = W // POOL
    windows = H // POOL * out_width
    input_ptr += sample * C * pixels
    grad_out_ptr += sample * C * windows
    offs_p = tl.arange(0, BLOCK_P)
    count = pixels.to(dtype) if OWN else (pixels * (end - first)).to(dtype)
    mean, rstd, _ = statistics(mean_ptr, rstd_ptr, sample, first, C, groups, OWN, BLOCK_C)

    a = tl.zeros((BLOCK_C,), dtype)  # of weight·g
    ad = tl.zeros((BLOCK_C,), dtype)
    for start in range(first, end, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        mask_c = offs_c < end
        weight = numbers(weight_ptr, offs_c, mask_c, HAS_WEIGHT, 1.0, dtype)
        scale, shift = weight * rstd, numbers(bias_ptr, offs_c, mask_c, HAS_BIAS, 0.0, dtype)
        sum_g = tl.zeros((BLOCK_C,), dtype)
        sum_gd = tl.zeros((BLOCK_C,), dtype)
        for begin in range(0, windows, BLOCK_P):
            offs_w = begin + offs_p
            mask = mask_c[:, None] & (offs_w < windows)[None, :]
            at = plane_offsets(offs_c, offs_w, C, windows, LAST)
            upstream = tl.load(grad_out_ptr + at, mask=mask, other=0.0).to(dtype) / (POOL * POOL)
            for i in tl.static_range(POOL * POOL):
                at = plane_offsets(offs_c, pixel_of(offs_w, i, W, out_width, POOL), C, pixels, LAST)
                x = tl.load(input_ptr + at, mask=mask, other=0.0).to(dtype)
                d = tl.where(mask, x - mean[:, None], 0.0)
                g = tl.where(d * scale[:, None] + shift[:, None] <= 0, 0.0, upstream)
                sum_g += tl.sum(g, axis=1)
                sum_gd += tl.sum(g * d, axis=1)
        tl.store(sums_ptr + sample * C + offs_c, sum_g, mask=mask_c)
        tl.store(sums_ptr + (B + sample) * C + offs_c, sum_gd, mask=mask_c)
        a += weight * sum_g
        ad += weight * sum_gd
    if OF_INPUT:
        grad_input_ptr += sample * C * pixels
        constant = -rstd * over_group(a, OWN) / count
        by_d = -rstd * rstd * rstd * over_group(ad, OWN) / count
        for start in range(first, end, BLOCK_C):
            offs_c = start + tl.arange(0, BLOCK_C)
            mask_c = offs_c < end
            scale = numbers(weight_ptr, offs_c, mask_c, HAS_WEIGHT, 1.0, dtype) * rstd
            shift = numbers(bias_ptr, offs_c, mask_c, HAS_BIAS, 0.0, dtype)
            for begin in range(0, windows, BLOCK_P):
                offs_w = begin + offs_p
                mask = mask_c[:, None] & (offs_w < windows)[None, :]
                at = plane_offsets(offs_c, offs_w, C, windows, LAST)
                upstream = tl.load(grad_out_ptr + at, mask=mask, other=0.0).to(dtype)
                upstream = upstream / (POOL * POOL)
                for i in tl.static_range(POOL * POOL):
                    at = plane_offsets(
                        offs_c, pixel_of(offs_w, i, W, out_width, POOL), C, pixels, LAST
                    )
                    x = tl.load(input_ptr + at, mask=mask, other=0.0).to(dtype)
                    d = x - mean[:, None]
                    g = tl.where(d * scale[:, None] + shift[:, None] <= 0, 0.0, upstream)
                    grad = scale[:, None] * g + (by_d[:, None] * d + constant[:, None])
                    tl.store(grad_input_ptr + at, grad, mask=mask)
            if REST:
                for begin in range(0, pixels, BLOCK_P):
                    places = begin + offs_p
                    rest = (places < pixels) & is_rest(places, H, W, POOL)
                    mask = mask_c[:, None] & rest[None, :]
                    at = plane_offsets(offs_c, places, C, pixels, LAST)
                    x = tl.load(input_ptr + at, mask=mask, other=0.0).to(dtype)
                    grad = by_d[:, None] * (x - mean[:, None]) + constant[:, None]
                    tl.store(grad_input_ptr + at, grad, mask=mask)


@triton.jit
def over_samples_kernel(
    sums_ptr,  # (2 or 3, B, C): of g, of g·d; if SECOND of g·u
    rstd_ptr,  # (B, G)
    means_ptr,  # (2, B, G): of u, of u·x̂
    grad_weight_ptr,  # (C,)
    grad_bias_ptr,  # (C,)
    B,
    C,
    groups,
    SECOND: tl.constexpr,
    OF_WEIGHT: tl.constexpr,
    OF_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums over the samples, in their order."""
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = offs_c < C
    group = offs_c // (C // groups)
    of_weight = tl.zeros((BLOCK_C,), dtype)
    of_bias = tl.zeros((BLOCK_C,), dtype)
    for sample in range(0, B):
        g = tl.load(sums_ptr + sample * C + offs_c, mask=mask, other=0.0)
        gd = tl.load(sums_ptr + (B + sample) * C + offs_c, mask=mask, other=0.0)
        rstd = tl.load(rstd_ptr + sample * groups + group, mask=mask, other=0.0)
        if SECOND:
            gu = tl.load(sums_ptr + (2 * B + sample) * C + offs_c, mask=mask, other=0.0)
            u = tl.load(means_ptr + sample * groups + group, mask=mask, other=0.0)
            ux = tl.load(means_ptr + (B + sample) * groups + group, mask=mask, other=0.0)
            of_weight += rstd * (gu - u * g - rstd * ux * gd)
        else:
            of_weight += rstd * gd
            of_bias += g
    if OF_WEIGHT:
        tl.store(grad_weight_ptr + offs_c, of_weight, mask=mask)
    if OF_BIAS:
        tl.store(grad_bias_ptr + offs_c, of_bias, mask=mask)
