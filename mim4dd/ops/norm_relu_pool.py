"""Group norm, ReLU and average pooling as one layer: public function and its checks."""

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
)
from mim4dd.ops import _norm_relu_pool_op as op

__all__ = ["norm_relu_pool"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
    return op.norm_relu_pool(input, weight, bias, num_groups, pool, eps)[0]


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
    allowed = (input.dtype, op.wide(input))
    if tensor.dtype not in allowed and mix_under_autocast(input, tensor):
        tensor = tensor.to(op.wide(input))
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype) for dtype in dict.fromkeys(allowed))
        raise TypeError(f"{name} must be {names} for {input.dtype} input, got {tensor.dtype}")
    check_same_device(name, tensor, "input", input)
    return tensor
