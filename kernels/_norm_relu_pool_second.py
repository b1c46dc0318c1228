"""The second derivative of norm_relu_pool; docs/math.md, "Norm, ReLU and pool", has the formulas.

d = x − mean; g = the upstream gradient of a pixel behind the ReLU; u = the tangent of the input.
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
def second_kernel(
    tangent_ptr,  # (B, C, H, W): u
    tangent_weight_ptr,  # (C,)
    tangent_bias_ptr,  # (C,)
    grad_out_ptr,  # (B, C, H // POOL, W // POOL)
    input_ptr,  # (B, C, H, W)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    mean_ptr,  # (B, G)
    rstd_ptr,  # (B, G)
    grad_grad_out_ptr,  # (B, C, H // POOL, W // POOL)
    grad_input_ptr,  # (B, C, H, W)
    sums_ptr,  # (3, B, C): of g, of g·d, of g·u
    means_ptr,  # (2, B, G): of u, of u·x̂
    B,
    C,
    H,
    W,
    groups,
    tiles,
    HAS_TANGENT: tl.constexpr,
    HAS_TANGENT_WEIGHT: tl.constexpr,
    HAS_TANGENT_BIAS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OF_GRAD_OUT: tl.constexpr,
    OF_INPUT: tl.constexpr,
    POOL: tl.constexpr,
    OWN: tl.constexpr,
    LAST: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One pass for the sums, one for both images."""
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    sample, first, end = locate(tl.program_id(0), C, groups, tiles, OWN, BLOCK_C)
    pixels = H * W
    out_width = W // POOL
    windows = H // POOL * out_width
    input_ptr += sample * C * pixels
    if HAS_TANGENT:
        tangent_ptr += sample * C * pixels
    grad_out_ptr += sample * C * windows
    offs_p = tl.arange(0, BLOCK_P)
    count = pixels.to(dtype) if OWN else (pixels * (end - first)).to(dtype)
    mean, rstd, statistic = statistics(mean_ptr, rstd_ptr, sample, first, C, groups, OWN, BLOCK_C)

    # By channel: of u, u·d; with a = weight·g of a, a·d, a·u; with b = weight tangent·g of b, b·d.
    m_u = tl.zeros((BLOCK_C,), dtype)
    m_ud = tl.zeros((BLOCK_C,), dtype)
    m_a = tl.zeros((BLOCK_C,), dtype)
    m_ad = tl.zeros((BLOCK_C,), dtype)
    m_au = tl.zeros((BLOCK_C,), dtype)
    m_b = tl.zeros((BLOCK_C,), dtype)
    m_bd = tl.zeros((BLOCK_C,), dtype)
    for start in range(first, end, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        mask_c = offs_c < end
        weight = numbers(weight_ptr, offs_c, mask_c, HAS_WEIGHT, 1.0, dtype)
        along = numbers(tangent_weight_ptr, offs_c, mask_c, HAS_TANGENT_WEIGHT, 0.0, dtype)
        scale, shift = weight * rstd, numbers(bias_ptr, offs_c, mask_c, HAS_BIAS, 0.0, dtype)
        sum_g = tl.zeros((BLOCK_C,), dtype)
        sum_gd = tl.zeros((BLOCK_C,), dtype)
        sum_gu = tl.zeros((BLOCK_C,), dtype)
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
                if HAS_TANGENT:
                    u = tl.load(tangent_ptr + at, mask=mask, other=0.0).to(dtype)
                    sum_gu += tl.sum(g * u, axis=1)
                    m_u += tl.sum(u, axis=1)
                    m_ud += tl.sum(u * d, axis=1)
        if HAS_TANGENT and REST:
            for begin in range(0, pixels, BLOCK_P):
                places = begin + offs_p
                rest = (places < pixels) & is_rest(places, H, W, POOL)
                mask = mask_c[:, None] & rest[None, :]
                at = plane_offsets(offs_c, places, C, pixels, LAST)
                x = tl.load(input_ptr + at, mask=mask, other=0.0).to(dtype)
                u = tl.load(tangent_ptr + at, mask=mask, other=0.0).to(dtype)
                m_u += tl.sum(u, axis=1)
                m_ud += tl.sum(u * tl.where(mask, x - mean[:, None], 0.0), axis=1)
        tl.store(sums_ptr + sample * C + offs_c, sum_g, mask=mask_c)
        tl.store(sums_ptr + (B + sample) * C + offs_c, sum_gd, mask=mask_c)
        tl.store(sums_ptr + (2 * B + sample) * C + offs_c, sum_gu, mask=mask_c)
        m_a += weight * sum_g
        m_ad += weight * sum_gd
        m_au += weight * sum_gu
        m_b += along * sum_g
        m_bd += along * sum_gd
    m_u = over_group(m_u, OWN) / count
    m_ux = rstd * over_group(m_ud, OWN) / count
    m_a = over_group(m_a, OWN) / count
    m_ax = rstd * over_group(m_ad, OWN) / count
    m_au = over_group(m_au, OWN) / count
    m_b = over_group(m_b, OWN) / count
    m_bx = rstd * over_group(m_bd, OWN) / count
    lanes = first + tl.arange(0, BLOCK_C)
    stored = (lanes < end) & (OWN | (lanes == first))
    tl.store(means_ptr + statistic, m_u, mask=stored)
    tl.store(means_ptr + B * groups + statistic, m_ux, mask=stored)

    curvature = m_bx + rstd * (m_au - m_u * m_a - m_ux * m_ax)
    by_d = rstd * rstd * (2 * rstd * m_ux * m_ax - curvature)
    by_u = -rstd * rstd * m_ax
    constant = rstd * (rstd * m_ux * m_a - m_b + rstd * m_u * m_ax)
    for start in range(first, end, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        mask_c = offs_c < end
        weight = numbers(weight_ptr, offs_c, mask_c, HAS_WEIGHT, 1.0, dtype)
        along = numbers(tangent_weight_ptr, offs_c, mask_c, HAS_TANGENT_WEIGHT, 0.0, dtype)
        scale, shift = weight * rstd, numbers(bias_ptr, offs_c, mask_c, HAS_BIAS, 0.0, dtype)
        by_g = rstd * (along - rstd * m_ux * weight)  # of d in the output's tangent too
        moved = numbers(tangent_bias_ptr, offs_c, mask_c, HAS_TANGENT_BIAS, 0.0, dtype)
        moved -= rstd * m_u * weight
        for begin in range(0, windows, BLOCK_P):
            offs_w = begin + offs_p
            mask = mask_c[:, None] & (offs_w < windows)[None, :]
            at_window = plane_offsets(offs_c, offs_w, C, windows, LAST)
            upstream = tl.load(grad_out_ptr + at_window, mask=mask, other=0.0).to(dtype)
            upstream = upstream / (POOL * POOL)
            pooled = tl.zeros((BLOCK_C, BLOCK_P), dtype)
            for i in tl.static_range(POOL * POOL):
                at = plane_offsets(offs_c, pixel_of(offs_w, i, W, out_width, POOL), C, pixels, LAST)
                x = tl.load(input_ptr + at, mask=mask, other=0.0).to(dtype)
                d = x - mean[:, None]
                off = d * scale[:, None] + shift[:, None] <= 0
                grad = by_g[:, None] * tl.where(off, 0.0, upstream)
                grad += by_d[:, None] * d + constant[:, None]
                out = by_g[:, None] * d + moved[:, None]
                if HAS_TANGENT:
                    u = tl.load(tangent_ptr + at, mask=mask, other=0.0).to(dtype)
                    grad += by_u[:, None] * u
                    out += scale[:, None] * u
                if OF_INPUT:
                    tl.store(grad_input_ptr + sample * C * pixels + at, grad, mask=mask)
                pooled += tl.where(off, 0.0, out)
            if OF_GRAD_OUT:
                to = grad_grad_out_ptr + sample * C * windows + at_window
                tl.store(to, pooled / (POOL * POOL), mask=mask)
        if OF_INPUT and REST:
            for begin in range(0, pixels, BLOCK_P):
                places = begin + offs_p
                rest = (places < pixels) & is_rest(places, H, W, POOL)
                mask = mask_c[:, None] & rest[None, :]
                at = plane_offsets(offs_c, places, C, pixels, LAST)
                x = tl.load(input_ptr + at, mask=mask, other=0.0).to(dtype)
                grad = by_d[:, None] * (x - mean[:, None]) + constant[:, None]
                if HAS_TANGENT:
                    u = tl.load(tangent_ptr + at, mask=mask, other=0.0).to(dtype)
                    grad += by_u[:, None] * u
                tl.store(grad_input_ptr + sample * C * pixels + at, grad, mask=mask)
