"""Argument checks shared by the public functions: each names the argument, the rule, the value."""

import functools
import math
import numbers
from typing import Literal

import torch
from torch import Tensor

from mim4dd._torch_private import in_forward_mode, is_functorch_wrapped

Reduction = Literal["mean", "sum", "none"]
Backend = Literal["reference"] | None

NO_FORWARD_MODE = "{} has no forward-mode derivative; pass backend='reference' for torch.func.jvp"


def check_tensor(name: str, value: object) -> None:
    """Require a tensor, where a list or an array is easily passed."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_rank(name: str, tensor: Tensor, rank: int) -> None:
    """Require ``tensor`` to have ``rank`` dimensions."""
    check_tensor(name, tensor)
    if tensor.dim() != rank:
        raise ValueError(f"{name} must be {rank}-d, got shape {tuple(tensor.shape)}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Require a real floating-point dtype."""
    check_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")


def check_integer(name: str, tensor: Tensor) -> None:
    """Require an integer dtype, as class labels and indices have."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer dtype, got {tensor.dtype}")


def check_classes(name: str, labels: Tensor, num_classes: int | None = None) -> None:
    """Require class labels (n,) from 0 on, below ``num_classes`` if that is known."""
    lowest, highest = (int(bound) for bound in labels.aminmax())
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        allowed = "at least 0" if num_classes is None else f"from 0 to {num_classes - 1}"
        raise ValueError(f"{name} must be classes, {allowed}, got from {lowest} to {highest}")


def check_probabilities(name: str, rows: Tensor) -> None:
    """Require rows (n, C) that are not negative and sum to 1, to the rounding of their dtype."""
    rounding = max(1e-4, 2 * torch.finfo(rows.dtype).eps)
    rows = rows.detach()
    lowest, sums = float(rows.amin()), rows.sum(1, dtype=torch.float64)
    least, most = float(sums.amin()), float(sums.amax())
    if not (lowest >= -rounding and least >= 1 - rounding and most <= 1 + rounding):  # nor NaN
        raise ValueError(
            f"{name} (n, C) must hold probabilities, rows of at least 0 that sum to 1, got values "
            f"from {lowest:.7g} and sums from {least:.7g} to {most:.7g}: apply softmax(1) to "
            f"logits, or give a loss of your own for other labels"
        )


def check_same_device(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    """Require both tensors on one device."""
    if first.device != second.device:
        raise ValueError(
            f"{first_name} and {second_name} must be on one device, "
            f"got {first.device} and {second.device}"
        )


def check_matching(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    """Require both tensors to share dtype and device."""
    check_tensor(first_name, first)
    check_tensor(second_name, second)
    if first.dtype != second.dtype:
        raise TypeError(
            f"{first_name} and {second_name} must share a dtype, "
            f"got {first.dtype} and {second.dtype}"
        )
    check_same_device(first_name, first, second_name, second)


def mix_under_autocast(*tensors: Tensor) -> bool:
    """Whether autocast would multiply tensors of these dtypes with each other: all but float64."""
    device = tensors[0].device.type
    return (
        torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
        and all(each.is_floating_point() and each.dtype != torch.float64 for each in tensors)
    )


def promoted(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the widest of their dtypes, so that nothing is lost."""
    dtype = functools.reduce(torch.promote_types, (each.dtype for each in tensors))
    return [each.to(dtype) for each in tensors]


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Require ``value`` to be one of ``choices``."""
    if value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def can_look_at(tensor: Tensor) -> bool:
    """Whether values can be read at no cost: not on a GPU, which would make the host wait for it,
    not while compiling, and not under torch.func.
    """
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not is_functorch_wrapped(tensor)
    )


def _number(name: str, value: Tensor | float) -> float:
    value = value.item() if isinstance(value, Tensor) else value
    if not isinstance(value, (float, int, numbers.Real)):  # Real alone takes ten times as long
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


def check_positive(name: str, value: Tensor | float) -> None:
    """Require a finite number above zero."""
    value = _number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_not_negative(name: str, value: Tensor | float) -> None:
    """Require a finite number of at least zero."""
    value = _number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def check_finite(name: str, value: Tensor | float) -> None:
    """Require a finite number."""
    value = _number(name, value)
    if not abs(value) < math.inf:  # math.isfinite cannot be traced
        raise ValueError(f"{name} must be finite, got {value}")


def refuse_forward_ad(op: str, *tensors: Tensor) -> None:
    """Raise where a forward-mode tangent comes in: an op without such a rule would drop it."""
    if not in_forward_mode():
        return
    if any(torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(NO_FORWARD_MODE.format(op))
