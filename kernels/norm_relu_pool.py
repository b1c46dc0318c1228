"""Triton launchers of norm_relu_pool: forward, gradients, second derivatives.

A program has a tile of channels of one sample: as many as fit where every channel is a group of its
own, else one group, tile by tile. It goes over its pixels a second time once it has their sums:
they come from the cache then. Nothing is added atomically: the same bits every time.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mim4dd.kernels._ahead_of_time import Compilation, compilation
from mim4dd.kernels._norm_relu_pool_backward import backward_kernel, over_samples_kernel
from mim4dd.kernels._norm_relu_pool_forward import forward_kernel
from mim4dd.kernels._norm_relu_pool_second import second_kernel

TILE = 512  # elements: four for each thread of four warps
LINE_BYTES = 64  # of channels-last memory that are read together
CHANNELS = 64  # of a program that sums over samples


class Launch(NamedTuple):
    """What all kernels are launched with."""

    grid: tuple[int]
    sizes: tuple[int, ...]  # C, H, W, groups, tiles per sample
    constants: dict[str, int | bool]
    layout: torch.memory_format

    def image(self, tensor: Tensor) -> Tensor:
        """In the layout of the input."""
        return tensor.contiguous(memory_format=self.layout)

    def new_image(self, like: Tensor, height: int, width: int, wanted: bool = True) -> Tensor:
        """Empty, in the layout of the input; (0,) where it is not wanted."""
        if not wanted:
            return like.new_empty(0)
        shape = (*like.shape[:2], height, width)
        options = {"dtype": like.dtype, "device": like.device}
        return torch.empty(shape, memory_format=self.layout, **options)


def blocks(
    channels: int, windows: int, channels_last: bool, element_size: int
) -> dict[str, int | bool]:
    """The tile, whose faster side is the one that memory has."""
    most_channels = triton.next_power_of_2(channels)
    most_windows = triton.next_power_of_2(max(1, windows))
    if channels_last:
        BLOCK_C = min(most_channels, LINE_BYTES // element_size)
        BLOCK_P = min(most_windows, TILE // BLOCK_C)
    else:
        BLOCK_P = min(most_windows, TILE)
        BLOCK_C = min(most_channels, TILE // BLOCK_P)
    # Without a limit ptxas spills a few registers so that one more program fits.
    launch = {"num_warps": 4, "enable_fp_fusion": True, "maxnreg": 255}
    return {"BLOCK_C": BLOCK_C, "BLOCK_P": BLOCK_P, **launch}


def plan(input: Tensor, num_groups: int, pool: int) -> Launch:
    """For input (B, C, H, W)."""
    B, C, H, W = input.shape
    channels_last = not input.is_contiguous() and input.is_contiguous(
        memory_format=torch.channels_last
    )
    own = num_groups == C
    windows = (H // pool) * (W // pool)
    tile = blocks(C if own else C // num_groups, windows, channels_last, input.element_size())
    tiles = triton.cdiv(C, tile["BLOCK_C"]) if own else num_groups
    rest = windows * pool**2 != H * W
    constants = {"POOL": pool, "OWN": own, "LAST": channels_last, "REST": rest, **tile}
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return Launch((B * tiles,), (C, H, W, num_groups, tiles), constants, layout)


def _wide(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


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
    B, _, H, W = input.shape
    launch = plan(input, num_groups, pool)
    weight, bias = _contiguous(weight, bias)
    out = launch.new_image(input, H // pool, W // pool)
    mean, rstd = torch.empty((2, B, num_groups), dtype=_wide(input), device=input.device).unbind()
    if input.numel():
        with torch.cuda.device_of(input):
            forward_kernel[launch.grid](
                launch.image(input),
                weight,
                bias,
                out,
                mean,
                rstd,
                *launch.sizes,
                EPS=eps,  # as an argument it would be rounded to float32
                HAS_WEIGHT=weight is not None,
                HAS_BIAS=bias is not None,
                **launch.constants,
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
    launch = plan(input, num_groups, pool)
    weight, bias, mean, rstd = _contiguous(weight, bias, mean, rstd)
    grad_input = launch.new_image(input, *input.shape[2:], of_input)
    sums = mean.new_zeros((2, *input.shape[:2]))
    if input.numel():
        with torch.cuda.device_of(input):
            backward_kernel[launch.grid](
                launch.image(grad_out),
                launch.image(input),
                weight,
                bias,
                mean,
                rstd,
                grad_input,
                sums,
                len(input),
                *launch.sizes,
                HAS_WEIGHT=weight is not None,
                HAS_BIAS=bias is not None,
                OF_INPUT=of_input,
                **launch.constants,
            )
    grad_weight, grad_bias = over_samples(
        sums, mean, rstd, None, (weight, bias), (of_weight, of_bias)
    )
    return grad_input, grad_weight, grad_bias


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
    launch = plan(input, num_groups, pool)
    numbers = _contiguous(tangent_weight, tangent_bias, weight, bias, mean, rstd)
    tangent_weight, tangent_bias, weight, bias, mean, rstd = numbers
    grad_grad_out = launch.new_image(input, *grad_out.shape[2:], of_grad_out)
    grad_input = launch.new_image(input, *input.shape[2:], of_input)
    sums, means = mean.new_zeros((3, *input.shape[:2])), mean.new_empty((2, *mean.shape))
    if input.numel():
        with torch.cuda.device_of(input):
            second_kernel[launch.grid](
                None if tangent_input is None else launch.image(tangent_input),
                tangent_weight,
                tangent_bias,
                launch.image(grad_out),
                launch.image(input),
                weight,
                bias,
                mean,
                rstd,
                grad_grad_out,
                grad_input,
                sums,
                means,
                len(input),
                *launch.sizes,
                HAS_TANGENT=tangent_input is not None,
                HAS_TANGENT_WEIGHT=tangent_weight is not None,
                HAS_TANGENT_BIAS=tangent_bias is not None,
                HAS_WEIGHT=weight is not None,
                HAS_BIAS=bias is not None,
                OF_GRAD_OUT=of_grad_out,
                OF_INPUT=of_input,
                **launch.constants,
            )
    grad_weight, _ = over_samples(sums, mean, rstd, means, (weight, bias), (of_weight, False))
    return grad_grad_out, grad_input, grad_weight


def over_samples(
    sums: Tensor,  # (2 or 3, B, C)
    mean: Tensor,  # (B, G)
    rstd: Tensor,  # (B, G)
    means: Tensor | None,  # (2, B, G), of the second derivative
    parameters: tuple[Tensor | None, Tensor | None],
    wanted: tuple[bool, bool],
) -> list[Tensor]:
    """Launch: gradients of weight and bias (C,) from what every sample has of them."""
    B, C = sums.shape[1:]
    results = [
        torch.empty(
            C if flag else 0,
            dtype=sums.dtype if parameter is None else parameter.dtype,
            device=sums.device,
        )
        for parameter, flag in zip(parameters, wanted, strict=True)
    ]
    if any(wanted) and C:
        with torch.cuda.device_of(sums):
            over_samples_kernel[(triton.cdiv(C, CHANNELS),)](
                sums,
                rstd,
                means,
                *results,
                B,
                C,
                mean.shape[1],
                SECOND=means is not None,
                OF_WEIGHT=wanted[0],
                OF_BIAS=wanted[1],
                BLOCK_C=CHANNELS,
                num_warps=2,
                enable_fp_fusion=True,
            )
    return results


def compilations() -> Iterator[Compilation]:
    """Instance norm of the field's ConvNet and one group over all, in both layouts."""
    images = ("input_ptr", "out_ptr", "grad_out_ptr", "grad_input_ptr", "tangent_ptr")
    images += ("grad_grad_out_ptr",)
    numbers = ("weight_ptr", "bias_ptr", "tangent_weight_ptr", "tangent_bias_ptr")
    affine: dict[str, Any] = {"HAS_WEIGHT": True, "HAS_BIAS": True}
    tangents = dict.fromkeys(("HAS_TANGENT", "HAS_TANGENT_WEIGHT", "HAS_TANGENT_BIAS"), True)
    flags = (
        ("forward", forward_kernel, {**affine, "EPS": 1e-5}),
        ("backward", backward_kernel, {**affine, "OF_INPUT": True}),
        ("second", second_kernel, {**affine, **tangents, "OF_GRAD_OUT": True, "OF_INPUT": True}),
    )
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        narrow = (*images, *numbers)
        for channels_last in (False, True):
            tile = blocks(128, 256, channels_last, dtype.itemsize)
            for own in (True, False):
                layout = "channels-last" if channels_last else "planes"
                norm = "instance" if own else "group"
                constants = {"POOL": 2, "OWN": own, "LAST": channels_last, "REST": not own, **tile}
                for name, kernel, options in flags:
                    yield compilation(
                        f"norm_relu_pool {name} {layout} {norm}",
                        kernel,
                        dtype,
                        narrow,
                        {**constants, **options},
                    )
        for second in (False, True):
            yield compilation(
                f"norm_relu_pool over samples {'second' if second else 'first'}",
                over_samples_kernel,
                dtype,
                ("grad_weight_ptr", "grad_bias_ptr"),
                {
                    "SECOND": second,
                    "OF_WEIGHT": True,
                    "OF_BIAS": not second,
                    "BLOCK_C": CHANNELS,
                    "num_warps": 2,
                    "enable_fp_fusion": True,
                },
            )
