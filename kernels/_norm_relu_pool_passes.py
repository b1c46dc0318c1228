"""What both derivatives of norm_relu_pool do with a tile of channels: their two passes over it.

d = x − mean; g = the upstream gradient of a pixel behind the ReLU; u = the tangent of the input,
which the first derivative has not. docs/math.md, "Norm, ReLU and pool", has the formulas.
"""

import triton
import triton.language as tl

from mim4dd.kernels._norm_relu_pool_layout import (
    Sums,
    image_of,
    num_windows,
    pixel_at,
    pooled_of,
    rest_at,
    windows_at,
)


@triton.jit
def load_upstream(grad_out, to, mask, dtype: tl.constexpr, tiling: tl.constexpr):
    """Of every pixel of a window."""
    upstream = tl.load(grad_out + to, mask=mask, other=0.0).to(dtype)
    return upstream / (tiling.POOL * tiling.POOL)


@triton.jit
def is_off(d, channels):
    """Whether the ReLU lets nothing through; a NaN passes."""
    return d * channels.scale[:, None] + channels.shift[:, None] <= 0


@triton.jit
def sum_maps(maps, sample, channels, of_u, of_ud, sizes, tiling: tl.constexpr):
    """Over pixels, by channel: of g, g·d; where there is a tangent of g·u, u, u·d.

    The last two are added to ``of_u`` and ``of_ud``: what is loaded and summed from zeros on, four
    times in a loop, stops Triton (an assertion of 3.9's pass OptimizeThreadLocality).
    """
    BLOCK_C: tl.constexpr = tiling.BLOCK_C
    BLOCK_P: tl.constexpr = tiling.BLOCK_P
    UNROLL: tl.constexpr = tiling.UNROLL  # Triton 3.6 unrolls by no field
    dtype: tl.constexpr = channels.mean.dtype
    mean = channels.mean[:, None]
    image = image_of(maps.input, sample, sizes)
    grad_out = pooled_of(maps.grad_out, sample, sizes, tiling)
    if maps.tangent is not None:
        tangent = image_of(maps.tangent, sample, sizes)
    of_g = tl.zeros((BLOCK_C,), dtype)
    of_gd = tl.zeros((BLOCK_C,), dtype)
    of_gu = tl.zeros((BLOCK_C,), dtype)
    for begin in range(0, num_windows(sizes, tiling), BLOCK_P):
        to, mask = windows_at(channels.offs, channels.mask, begin, sizes, tiling)
        upstream = load_upstream(grad_out, to, mask, dtype, tiling)
        for step in range(0, tiling.POOL * tiling.POOL, UNROLL):
            for i in tl.static_range(UNROLL):
                at = pixel_at(channels.offs, begin, step + i, sizes, tiling)
                x = tl.load(image + at, mask=mask, other=0.0).to(dtype)
                d = tl.where(mask, x - mean, 0.0)
                g = tl.where(is_off(d, channels), 0.0, upstream)
                of_g += tl.sum(g, axis=1)
                of_gd += tl.sum(g * d, axis=1)
                if maps.tangent is not None:
                    u = tl.load(tangent + at, mask=mask, other=0.0).to(dtype)
                    of_gu += tl.sum(g * u, axis=1)
                    of_u += tl.sum(u, axis=1)
                    of_ud += tl.sum(u * d, axis=1)
    if maps.tangent is not None and tiling.REST:
        for begin in range(0, sizes.height * sizes.width, BLOCK_P):
            at, mask = rest_at(channels.offs, channels.mask, begin, sizes, tiling)
            x = tl.load(image + at, mask=mask, other=0.0).to(dtype)
            u = tl.load(tangent + at, mask=mask, other=0.0).to(dtype)
            of_u += tl.sum(u, axis=1)
            of_ud += tl.sum(u * tl.where(mask, x - mean, 0.0), axis=1)
    return Sums(of_g, of_gd, of_gu, of_u, of_ud)


@triton.jit
def store_maps(
    maps, sample, channels, by_g, by_d, by_u, constant, moved, sizes, tiling: tl.constexpr
):
    """grad_input = by_g·g + by_d·d + by_u·u + constant, and the pooled tangent of the output.

    That is by_g·d + scale·u + moved where the ReLU is on.
    """
    BLOCK_C: tl.constexpr = tiling.BLOCK_C
    BLOCK_P: tl.constexpr = tiling.BLOCK_P
    UNROLL: tl.constexpr = tiling.UNROLL  # Triton 3.6 unrolls by no field
    dtype: tl.constexpr = channels.mean.dtype
    mean = channels.mean[:, None]
    image = image_of(maps.input, sample, sizes)
    grad_out = pooled_of(maps.grad_out, sample, sizes, tiling)
    if maps.tangent is not None:
        tangent = image_of(maps.tangent, sample, sizes)
    for begin in range(0, num_windows(sizes, tiling), BLOCK_P):
        to, mask = windows_at(channels.offs, channels.mask, begin, sizes, tiling)
        upstream = load_upstream(grad_out, to, mask, dtype, tiling)
        pooled = tl.zeros((BLOCK_C, BLOCK_P), dtype)
        for step in range(0, tiling.POOL * tiling.POOL, UNROLL):
            for i in tl.static_range(UNROLL):
                at = pixel_at(channels.offs, begin, step + i, sizes, tiling)
                x = tl.load(image + at, mask=mask, other=0.0).to(dtype)
                if maps.tangent is not None:
                    u = tl.load(tangent + at, mask=mask, other=0.0).to(dtype)
                d = x - mean
                off = is_off(d, channels)
                if maps.grad_input is not None:
                    grad = by_g[:, None] * tl.where(off, 0.0, upstream)
                    grad += by_d[:, None] * d + constant[:, None]
                    if maps.tangent is not None:
                        grad += by_u[:, None] * u
                    tl.store(image_of(maps.grad_input, sample, sizes) + at, grad, mask=mask)
                if maps.grad_grad_out is not None:
                    out = by_g[:, None] * d + moved[:, None]
                    if maps.tangent is not None:
                        out += channels.scale[:, None] * u
                    pooled += tl.where(off, 0.0, out)
        if maps.grad_grad_out is not None:
            pooled = pooled / (tiling.POOL * tiling.POOL)
            tl.store(pooled_of(maps.grad_grad_out, sample, sizes, tiling) + to, pooled, mask=mask)
    if maps.grad_input is not None and tiling.REST:
        for begin in range(0, sizes.height * sizes.width, BLOCK_P):
            at, mask = rest_at(channels.offs, channels.mask, begin, sizes, tiling)
            d = tl.load(image + at, mask=mask, other=0.0).to(dtype) - mean
            grad = by_d[:, None] * d + constant[:, None]
            if maps.tangent is not None:
                grad += by_u[:, None] * tl.load(tangent + at, mask=mask, other=0.0).to(dtype)
            tl.store(image_of(maps.grad_input, sample, sizes) + at, grad, mask=mask)
