"""Triton launchers of norm_relu_pool: forward, gradients, second derivatives.

A program has a tile of channels of one sample: as many as fit where every channel is a group of its
own, else one group, tile by tile. It goes over its pixels a second time once it has their sums:
they come from the cache then. Nothing is added atomically: the same bits every time.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mim4dd.kernels._ahead_of_time import Compilation, compilation
from mim4dd.kernels._norm_relu_pool_backward import backward_kernel, over_samples_kernel
from mim4dd.kernels._norm_relu_pool_checks import (
    require_groups_and_windows,
    require_image,
    require_numbers,
    require_saved,
)
from mim4dd.kernels._norm_relu_pool_forward import forward_kernel
from mim4dd.kernels._norm_relu_pool_layout import Affine, Maps, PoolTiling, Sizes, Statistics
from mim4dd.kernels._norm_relu_pool_second import second_kernel

TILE = 512  # elements: four for each thread of four warps
LINE_BYTES = 64  # of channels-last memory that are read together
CHANNELS = 64  # of a program that sums over samples
# Without a limit ptxas spills a few registers so that one more program fits.
OPTIONS: dict[str, int | bool] = {"num_warps": 4, "enable_fp_fusion": True, "maxnreg": 255}
SUM_OPTIONS: dict[str, int | bool] = {"num_warps": 2, "enable_fp_fusion": True}


class Launch(NamedTuple):
    """What all kernels are launched with."""

    grid: tuple[int]
    sizes: Sizes
    tiling: PoolTiling
    layout: torch.memory_format

    def image(self, tensor: Tensor) -> Tensor:
        """In the layout of the input."""
        return tensor.contiguous(memory_format=self.layout)

    def new_image(self, like: Tensor, height: int, width: int) -> Tensor:
        """Empty, in the layout of the input."""
        shape = (*like.shape[:2], height, width)
        options = {"dtype": like.dtype, "device": like.device}
        return torch.empty(shape, memory_format=self.layout, **options)


def blocks(channels: int, windows: int, channels_last: bool, element_size: int) -> tuple[int, int]:
    """Channels and places of a tile, whose faster side is the one that memory has."""
    most_channels = triton.next_power_of_2(channels)
    most_windows = triton.next_power_of_2(max(1, windows))
    if channels_last:
        BLOCK_C = min(most_channels, LINE_BYTES // element_size)
        return BLOCK_C, min(most_windows, TILE // BLOCK_C)
    BLOCK_P = min(most_windows, TILE)
    return min(most_channels, TILE // BLOCK_P), BLOCK_P


def unroll(pool: int) -> int:
    """Pixels of a window that are loaded together; of more than four, float64 spills some."""
    return next(count for count in (4, 3, 2, 1) if pool * pool % count == 0)


def plan(input: Tensor, num_groups: int, pool: int) -> Launch:
    """For input (B, C, H, W)."""
    B, C, H, W = input.shape
    pool = min(pool, max(H, W) + 1)  # a window that fits nowhere, of an area that does not overflow
    channels_last = not input.is_contiguous() and input.is_contiguous(
        memory_format=torch.channels_last
    )
    own = num_groups == C
    windows = (H // pool) * (W // pool)
    block = blocks(C if own else C // num_groups, windows, channels_last, input.element_size())
    tiles = triton.cdiv(C, block[0]) if own else num_groups
    rest = windows * pool**2 != H * W
    tiling = PoolTiling(pool, own, channels_last, rest, *block, unroll(pool))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return Launch((B * tiles,), Sizes(C, H, W, num_groups, tiles), tiling, layout)


def _wide(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def _given(grad: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if grad is None else grad


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def norm_relu_pool(
    input: Tensor,  # (B, C, H, W)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    num_groups: int,
    pool: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, C, H // pool, W // pool), mean and rstd (B, G)."""
    B, C, H, W = input.shape
    require_groups_and_windows(input, num_groups, pool)
    require_numbers(input, C, {"weight": weight, "bias": bias})
    launch = plan(input, num_groups, pool)
    out = launch.new_image(input, H // pool, W // pool)
    mean, rstd = (input.new_empty((B, num_groups), dtype=_wide(input)) for _ in range(2))
    if input.numel():
        with torch.cuda.device_of(input):
            forward_kernel[launch.grid](
                launch.image(input),
                Affine(*_contiguous(weight, bias)),
                out,
                Statistics(mean, rstd),
                launch.sizes,
                launch.tiling,
                EPS=eps,  # as an argument it would be rounded to float32
                **OPTIONS,
            )
    return out, mean, rstd


def norm_relu_pool_bwd(
    grad_out: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    pool: int,
    of_input: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias; (0,) where not wanted."""
    require_saved(input, num_groups, pool, grad_out, weight, bias, mean, rstd)
    launch = plan(input, num_groups, pool)
    affine = Affine(*_contiguous(weight, bias))
    statistics = Statistics(mean.contiguous(), rstd.contiguous())
    grad_input = launch.new_image(input, *input.shape[2:]) if of_input else None
    sums = mean.new_zeros((len(input), 2, input.shape[1]))
    if input.numel():
        maps = Maps(launch.image(input), launch.image(grad_out), None, grad_input, None)
        with torch.cuda.device_of(input):
            backward_kernel[launch.grid](
                maps, affine, statistics, sums, launch.sizes, launch.tiling, **OPTIONS
            )
    return (
        _given(grad_input, input),
        *over_samples(sums, statistics, None, affine, (of_weight, of_bias)),
    )


def norm_relu_pool_bwd_bwd(
    tangent_input: Tensor | None,
    tangent_weight: Tensor | None,
    tangent_bias: Tensor | None,
    grad_out: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    pool: int,
    of_grad_out: bool,
    of_input: bool,
    of_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of ⟨tangents, gradients⟩ by grad_out, input and weight."""
    B, C, H, W = input.shape
    require_saved(input, num_groups, pool, grad_out, weight, bias, mean, rstd)
    require_numbers(input, C, {"tangent_weight": tangent_weight, "tangent_bias": tangent_bias})
    require_image(input, "tangent_input", tangent_input, (H, W))
    launch = plan(input, num_groups, pool)
    affine = Affine(*_contiguous(weight, bias))
    tangents = Affine(*_contiguous(tangent_weight, tangent_bias))
    statistics = Statistics(mean.contiguous(), rstd.contiguous())
    grad_grad_out = launch.new_image(input, *grad_out.shape[2:]) if of_grad_out else None
    grad_input = launch.new_image(input, *input.shape[2:]) if of_input else None
    sums, means = mean.new_zeros((B, 3, C)), mean.new_empty((B, 2, num_groups))
    if input.numel():
        tangent = None if tangent_input is None else launch.image(tangent_input)
        given = launch.image(input), launch.image(grad_out), tangent
        with torch.cuda.device_of(input):
            second_kernel[launch.grid](
                Maps(*given, grad_input, grad_grad_out),
                tangents,
                affine,
                statistics,
                sums,
                means,
                launch.sizes,
                launch.tiling,
                **OPTIONS,
            )
    grad_weight, _ = over_samples(sums, statistics, means, affine, (of_weight, False))
    return _given(grad_grad_out, input), _given(grad_input, input), grad_weight


def over_samples(
    sums: Tensor,  # (B, 2 or 3, C)
    statistics: Statistics,
    means: Tensor | None,  # (B, 2, G), of the second derivative
    affine: Affine,
    wanted: tuple[bool, bool],
) -> list[Tensor]:
    """Launch: gradients of weight and bias (C,) from what every sample has of them."""
    B, _, C = sums.shape
    dtypes = [sums.dtype if parameter is None else parameter.dtype for parameter in affine]
    grads = Affine(
        *(
            torch.empty(C, dtype=dtype, device=sums.device) if flag else None
            for dtype, flag in zip(dtypes, wanted, strict=True)
        )
    )
    if any(wanted) and C:
        groups = statistics.rstd.shape[1]
        with torch.cuda.device_of(sums):
            over_samples_kernel[(triton.cdiv(C, CHANNELS),)](
                sums, statistics.rstd, means, grads, B, C, groups, CHANNELS, **SUM_OPTIONS
            )
    return [
        sums.new_empty(0, dtype=dtype) if grad is None else grad
        for grad, dtype in zip(grads, dtypes, strict=True)
    ]


def compilations() -> Iterator[Compilation]:
    """Instance norm of the field's ConvNet and one group over all, in both layouts."""
    narrow = (*Maps._fields, *Affine._fields, "input_ptr", "out_ptr")
    first = {"maps.tangent": None, "maps.grad_grad_out": None}
    kernels = (
        ("forward", forward_kernel, {"EPS": 1e-5}),
        ("backward", backward_kernel, first),
        ("second", second_kernel, {}),
    )
    wanted = [(dtype, 2) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    # Of float64, which takes most, windows that are loaded in parts too.
    wanted += [(torch.float64, pool) for pool in (3, 8)]
    for (dtype, pool), last, own in product(wanted, *[(0, 1)] * 2):
        layout, norm = ("planes", "channels-last")[last], ("group", "instance")[own]
        block = blocks(128, 256, bool(last), dtype.itemsize)
        tiling = PoolTiling(pool, bool(own), bool(last), not own, *block, unroll(pool))
        for name, kernel, options in kernels:
            yield compilation(
                f"norm_relu_pool {name} {layout} {norm} pool {pool}",
                kernel,
                dtype,
                narrow,
                {"tiling": tiling, **options, **OPTIONS},
            )
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for name, absent in (("first", "means_ptr"), ("second", "grads.bias")):
            yield compilation(
                f"norm_relu_pool over samples {name}",
                over_samples_kernel,
                dtype,
                narrow,
                {absent: None, "BLOCK_C": CHANNELS, **SUM_OPTIONS},
            )
