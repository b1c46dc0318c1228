"""Group norm, ReLU and average pooling as one layer: public function, checks and registration."""

from typing import Any

import torch
from torch import Tensor

from mim4dd import reference
from mim4dd._checks import (
    Backend,
    check_choice,
    check_positive,
    check_rank,
    check_same_device,
    mix_under_autocast,
    refuse_forward_ad,
)
from mim4dd._library import LIB, expect_compiled, use_triton
from mim4dd.ops import _norm_relu_pool_autograd as autograd

__all__ = ["norm_relu_pool"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_AFFINE = "Tensor? weight, Tensor? bias"
_SAVED = f"Tensor grad_out, Tensor input, {_AFFINE}, Tensor mean, Tensor rstd"

# A result that is not wanted, by the of_… flags, is empty: (0,).
LIB.define(
    f"norm_relu_pool(Tensor input, {_AFFINE}, int num_groups, int pool, float eps)"
    " -> (Tensor out, Tensor mean, Tensor rstd)"
)
LIB.define(
    f"norm_relu_pool_bwd({_SAVED}, int num_groups, int pool,"
    " bool of_input, bool of_weight, bool of_bias)"
    " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)"
)
LIB.define(
    "norm_relu_pool_bwd_bwd(Tensor? tangent_input, Tensor? tangent_weight, Tensor? tangent_bias,"
    f" {_SAVED}, int num_groups, int pool, bool of_grad_out, bool of_input, bool of_weight)"
    " -> (Tensor grad_grad_out, Tensor grad_input, Tensor grad_weight)"
)


def norm_relu_pool(
    input: Tensor,  # (B, C, H, W)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    *,
    num_groups: int,
    pool: int = 2,
    eps: float = 1e-5,
    backend: Backend = None,
) -> Tensor:
    r"""Group or instance norm, ReLU and average pooling, in one pass over memory.

    .. math:: y = \mathrm{avgpool}\bigl(\max(0,\, \gamma\,(x - \mu)/\sqrt{\sigma^2 + \epsilon}
        + \beta)\bigr)

    with mean and variance over the channels and pixels of each group. It has first and second
    derivatives, which are one pass each too; asking for a third raises.

    Args:
        input: Feature maps, contiguous or channels-last (other strides are copied), float32,
            float64, bfloat16 or float16; half precision is computed in float32. (B, C, H, W)
        weight: Scale of each channel, in the dtype of ``input`` or the one that is computed in;
            None is 1. (C,)
        bias: Shift of each channel, likewise; None is 0. (C,)
        num_groups: Number of groups; C of them are instance norm, one is layer norm.
        pool: Height, width and stride of the pooling windows; 1 does not pool. What is left over
            at the right and at the bottom is in the statistics only, as after ``nn.AvgPool2d``.
        eps: Added to the variance.
        backend: None runs the kernel registered for the device of ``input``; ``"reference"`` the
            plain PyTorch definition.

    Returns:
        Dtype and memory layout of ``input``. (B, C, H // pool, W // pool)

    Raises:
        ValueError: If shapes, devices or numbers do not fit together.
        TypeError: If dtypes differ or are not supported.

    Example:
        >>> import torch, mim4dd
        >>> maps = torch.arange(16.0).view(1, 1, 4, 4)
        >>> mim4dd.norm_relu_pool(maps, None, None, num_groups=1)
        tensor([[[[0.0000, 0.0000],
                  [0.6508, 1.0847]]]])

    References:
        Wu, He. Group Normalization. arXiv:1803.08494.
    """
    check_rank("input", input, 4)
    if input.dtype not in _DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise TypeError(f"input must be one of {allowed}, got {input.dtype}")
    channels, height, width = input.shape[1:]
    weight = as_affine("weight", weight, input)
    bias = as_affine("bias", bias, input)
    if not isinstance(num_groups, int) or num_groups < 1 or channels % num_groups:
        raise ValueError(f"num_groups must divide the {channels} channels, got {num_groups}")
    if not isinstance(pool, int) or not 1 <= pool <= min(height, width):
        raise ValueError(f"pool must be from 1 to min(H, W) = {min(height, width)}, got {pool}")
    check_positive("eps", eps)
    check_choice("backend", backend, (None, "reference"))
    if backend == "reference":
        return reference.norm_relu_pool(input, weight, bias, num_groups, pool, eps)
    refuse_forward_ad("norm_relu_pool", input, *(t for t in (weight, bias) if t is not None))
    arguments = (input, weight, bias, num_groups, pool, eps)
    if torch.compiler.is_compiling():
        return torch.ops.mim4dd.norm_relu_pool(*arguments)[0]
    return autograd.call(autograd.NormReLUPool, *arguments)[0]


def as_affine(name: str, tensor: Tensor | None, input: Tensor) -> Tensor | None:
    """Require one number per channel, in a dtype that goes with ``input``: by autocast any does."""
    if tensor is None:
        return None
    check_rank(name, tensor, 1)
    if tensor.shape[0] != input.shape[1]:
        raise ValueError(
            f"{name} must have one element for each of the {input.shape[1]} channels, "
            f"got {tensor.shape[0]}"
        )
    allowed = (input.dtype, _wide(input))
    if tensor.dtype not in allowed and mix_under_autocast(input, tensor):
        tensor = tensor.to(_wide(input))
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype) for dtype in dict.fromkeys(allowed))
        raise TypeError(f"{name} must be {names} for {input.dtype} input, got {tensor.dtype}")
    check_same_device(name, tensor, "input", input)
    return tensor


def _wide(input: Tensor) -> torch.dtype:
    """The dtype that is computed in."""
    return torch.promote_types(input.dtype, torch.float32)


def _new_image(input: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Empty, in the layout of ``input``."""
    channels_last = not input.is_contiguous() and input.is_contiguous(
        memory_format=torch.channels_last
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)


def _new_numbers(input: Tensor, like: Tensor | None, wanted: bool) -> Tensor:
    dtype = _wide(input) if like is None else like.dtype
    return input.new_empty(input.shape[1] if wanted else 0, dtype=dtype)


@torch.library.register_fake("mim4dd::norm_relu_pool", lib=LIB)
def _fake(
    input: Tensor, weight: Any, bias: Any, num_groups: int, pool: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = input.shape
    mean = input.new_empty(batch, num_groups, dtype=_wide(input))
    out = _new_image(input, (batch, channels, height // pool, width // pool))
    return out, mean, torch.empty_like(mean)


@torch.library.register_fake("mim4dd::norm_relu_pool_bwd", lib=LIB)
def _fake_bwd(
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
    grad_input = _new_image(input, tuple(input.shape)) if of_input else input.new_empty(0)
    grad_weight = _new_numbers(input, weight, of_weight)
    return grad_input, grad_weight, _new_numbers(input, bias, of_bias)


@torch.library.register_fake("mim4dd::norm_relu_pool_bwd_bwd", lib=LIB)
def _fake_bwd_bwd(
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
    shapes = ((grad_out.shape, of_grad_out), (input.shape, of_input))
    images = [
        _new_image(input, tuple(shape)) if wanted else input.new_empty(0)
        for shape, wanted in shapes
    ]
    return images[0], images[1], _new_numbers(input, weight, of_weight)


for _name in ("norm_relu_pool", "norm_relu_pool_bwd", "norm_relu_pool_bwd_bwd"):
    expect_compiled(_name, "CPU")
    use_triton(_name, "norm_relu_pool")

autograd.register(LIB)
