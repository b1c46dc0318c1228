"""The op of norm_relu_pool, and as ops its two derivatives: schemas, kernels, rules.

docs/math.md, "Norm, ReLU and pool", has the formulas. A third derivative raises.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from mim4dd._library import LIB, expect_compiled, use_triton
from mim4dd.ops._rules import declare, only

_AFFINE_ARGS = "Tensor? weight, Tensor? bias"
_SAVED_ARGS = f"Tensor grad_out, Tensor input, {_AFFINE_ARGS}, Tensor mean, Tensor rstd"

# A result that is not wanted, by the of_… flags, is empty: (0,).
LIB.define(
    f"norm_relu_pool(Tensor input, {_AFFINE_ARGS}, int num_groups, int pool, float eps)"
    " -> (Tensor out, Tensor mean, Tensor rstd)"
)
LIB.define(
    f"norm_relu_pool_bwd({_SAVED_ARGS}, int num_groups, int pool,"
    " bool of_input, bool of_weight, bool of_bias)"
    " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)"
)
LIB.define(
    "norm_relu_pool_bwd_bwd(Tensor? tangent_input, Tensor? tangent_weight, Tensor? tangent_bias,"
    f" {_SAVED_ARGS}, int num_groups, int pool, bool of_grad_out, bool of_input, bool of_weight)"
    " -> (Tensor grad_grad_out, Tensor grad_input, Tensor grad_weight)"
)


def wide(input: Tensor) -> torch.dtype:
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
    dtype = wide(input) if like is None else like.dtype
    return input.new_empty(input.shape[1] if wanted else 0, dtype=dtype)


@torch.library.register_fake("mim4dd::norm_relu_pool", lib=LIB)
def _fake(
    input: Tensor, weight: Any, bias: Any, num_groups: int, pool: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = input.shape
    mean = input.new_empty(batch, num_groups, dtype=wide(input))
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

_Gradients = tuple[Tensor | None, ...]


def _setup(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    input, weight, bias, num_groups, pool, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(input, weight, bias, mean, rstd)
    ctx.options = num_groups, pool
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> _Gradients:
    if grad_out is None:
        return (None,) * 6
    input, weight, bias, mean, rstd = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    # mean and rstd only save work: the derivative through them is part of the op's own.
    saved = input, weight, bias, mean.detach(), rstd.detach(), *ctx.options
    return *only(wanted, norm_relu_pool_bwd(grad_out, *saved, *wanted)), None, None, None


def _setup_bwd(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options, ctx.produced = inputs[6:8], inputs[8:]
    ctx.set_materialize_grads(False)


def _backward_bwd(ctx: Any, *given: Tensor | None) -> _Gradients:
    tangents = only(ctx.produced, given)
    if all(tangent is None for tangent in tangents):
        return (None,) * 11
    wanted = ctx.needs_input_grad[:3]
    saved = ctx.saved_tensors  # read once, or a checkpoint raises
    gradients = norm_relu_pool_bwd_bwd(*tangents, *saved, *ctx.options, *wanted)
    # The ReLU's mask is all that depends on the bias, and that is constant almost everywhere: the
    # derivative is there, and zero, as PyTorch has it.
    of_bias = torch.zeros_like(saved[3]) if ctx.needs_input_grad[3] else None
    return *only(wanted, gradients), of_bias, *(None,) * 7


def _refuse_third(*_: Any) -> NoReturn:
    raise RuntimeError(
        "norm_relu_pool has two derivatives, and a third was asked for: pass backend='reference'"
    )


def _over_channels(
    in_axes: Sequence[int],
    out_axes: Sequence[int],
    op: Callable[..., Sequence[Tensor]],
    info: Any,
    in_dims: Sequence[int | None],
    *inputs: Any,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """One call of an op whose tensors have their channels, or groups, at the given axes.

    The new axis K becomes part of them, as where a convolution makes it one of its groups. So maps
    that such a convolution made are not copied.
    """
    count, size = len(in_axes), info.batch_size
    tensors = [
        _fold(tensor, dim, axis, size)
        for tensor, dim, axis in zip(inputs[:count], in_dims[:count], in_axes, strict=True)
    ]
    num_groups, pool, *rest = inputs[count:]  # eps, or which results are wanted
    outputs = op(*tensors, size * num_groups, pool, *rest)
    wanted = rest if len(rest) == len(out_axes) else [True] * len(out_axes)
    parts = [
        output.unflatten(axis, (size, -1)) if want else output
        for output, axis, want in zip(outputs, out_axes, wanted, strict=True)
    ]
    dims = [axis if want else None for axis, want in zip(out_axes, wanted, strict=True)]
    return tuple(parts), tuple(dims)


def _fold(tensor: Tensor | None, dim: int | None, axis: int, size: int) -> Tensor | None:
    """(…, C, …) with K at ``dim`` to (…, K·C, …)."""
    if tensor is None:
        return None
    tensor = tensor.unsqueeze(axis) if dim is None else tensor.movedim(dim, axis)
    shape = list(tensor.shape)
    shape[axis] = size
    return tensor.expand(shape).flatten(axis, axis + 1)


_AFFINE = (1, 0, 0)  # input, weight, bias
_SAVED = (1, *_AFFINE, 1, 1)  # grad_out, those, mean, rstd

norm_relu_pool = declare(
    "norm_relu_pool", _setup, _backward, vmap=partial(_over_channels, _AFFINE, (1, 1, 1))
)
norm_relu_pool_bwd = declare(
    "norm_relu_pool_bwd", _setup_bwd, _backward_bwd, vmap=partial(_over_channels, _SAVED, _AFFINE)
)
norm_relu_pool_bwd_bwd = declare(
    "norm_relu_pool_bwd_bwd",
    None,
    _refuse_third,
    vmap=partial(_over_channels, (*_AFFINE, *_SAVED), (1, 1, 0)),
)
