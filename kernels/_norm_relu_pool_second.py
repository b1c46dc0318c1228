"""The second derivative of norm_relu_pool; docs/math.md, "Norm, ReLU and pool", has the formulas.

d = x − mean; g = the upstream gradient of a pixel behind the ReLU; u = the tangent of the input.
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
    numbers,
    over_group,
    statistics_at,
)
from mim4dd.kernels._norm_relu_pool_passes import store_maps, sum_maps


@triton.jit
def second_kernel(
    maps: Maps,
    tangents: Affine,
    affine: Affine,
    statistics: Statistics,
    sums_ptr,  # (B, 3, C): of g, of g·d, of g·u
    means_ptr,  # (B, 2, G): of u, of u·x̂
    sizes: Sizes,
    tiling: tl.constexpr,
):
    """One pass for the sums, one for both maps."""
    BLOCK_C: tl.constexpr = tiling.BLOCK_C
    dtype: tl.constexpr = statistics.mean.dtype.element_ty
    part = locate(sizes, tiling)
    count = count_of(part, sizes, tiling, dtype)
    mean, rstd = load_statistics(statistics, part, sizes, tiling)
    sums_ptr += part.sample * 3 * sizes.channels
    # By channel: of u, u·d; with a = weight·g of a, a·d, a·u; with b = weight tangent·g of b, b·d.
    m_u = tl.zeros((BLOCK_C,), dtype)
    m_ud = tl.zeros((BLOCK_C,), dtype)
    m_a = tl.zeros((BLOCK_C,), dtype)
    m_ad = tl.zeros((BLOCK_C,), dtype)
    m_au = tl.zeros((BLOCK_C,), dtype)
    m_b = tl.zeros((BLOCK_C,), dtype)
    m_bd = tl.zeros((BLOCK_C,), dtype)
    for start in range(part.first, part.end, BLOCK_C):
        channels = load_channels(affine, start, part.end, mean, rstd, tiling)
        along = numbers(tangents.weight, channels.offs, channels.mask, 0.0, dtype)
        sums = sum_maps(maps, part.sample, channels, m_u, m_ud, sizes, tiling)
        m_u = sums.u
        m_ud = sums.ud
        to = sums_ptr + channels.offs
        tl.store(to, sums.g, mask=channels.mask)
        tl.store(to + sizes.channels, sums.gd, mask=channels.mask)
        tl.store(to + 2 * sizes.channels, sums.gu, mask=channels.mask)
        m_a += channels.weight * sums.g
        m_ad += channels.weight * sums.gd
        m_au += channels.weight * sums.gu
        m_b += along * sums.g
        m_bd += along * sums.gd
    m_u = over_group(m_u, tiling) / count
    m_ux = rstd * over_group(m_ud, tiling) / count
    m_a = over_group(m_a, tiling) / count
    m_ax = rstd * over_group(m_ad, tiling) / count
    m_au = over_group(m_au, tiling) / count
    m_b = over_group(m_b, tiling) / count
    m_bx = rstd * over_group(m_bd, tiling) / count
    at, stored = statistics_at(part, 2, sizes, tiling)
    tl.store(means_ptr + at, m_u, mask=stored)
    tl.store(means_ptr + sizes.groups + at, m_ux, mask=stored)

    curvature = m_bx + rstd * (m_au - m_u * m_a - m_ux * m_ax)
    by_d = rstd * rstd * (2 * rstd * m_ux * m_ax - curvature)
    by_u = -rstd * rstd * m_ax
    constant = rstd * (rstd * m_ux * m_a - m_b + rstd * m_u * m_ax)
    for start in range(part.first, part.end, BLOCK_C):
        channels = load_channels(affine, start, part.end, mean, rstd, tiling)
        along = numbers(tangents.weight, channels.offs, channels.mask, 0.0, dtype)
        by_g = rstd * (along - rstd * m_ux * channels.weight)
        moved = numbers(tangents.bias, channels.offs, channels.mask, 0.0, dtype)
        moved -= rstd * m_u * channels.weight
        store_maps(
            maps, part.sample, channels, by_g, by_d, by_u, constant, moved, sizes, tiling
        )  # fmt: skip
