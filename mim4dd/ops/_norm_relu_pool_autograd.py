"""Derivatives and vmap of norm_relu_pool: each derivative is an op that the one before it calls.

docs/math.md, "Norm, ReLU and pool", has the formulas. A third derivative raises.

All rules are there twice: registered for the ops, which is what torch.compile needs, and as
functions, since torch.func has no way into what torch.library registers.
"""

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from mim4dd._torch_private import are_functorch_transforms_active, below_autograd

_Gradients = tuple[Tensor | None, ...]
_Op = Callable[..., tuple[Tensor, ...]]


def register(lib: torch.library.Library) -> None:
    """Give the three ops their derivatives and their rules for vmap."""
    ops = torch.ops.mim4dd
    functions: tuple[tuple[str, Any, Any], ...] = (
        ("norm_relu_pool", NormReLUPool, ops.norm_relu_pool_bwd),
        ("norm_relu_pool_bwd", _Backward, ops.norm_relu_pool_bwd_bwd),
        ("norm_relu_pool_bwd_bwd", _BackwardBackward, None),
    )
    for name, function, following in functions:
        torch.library.register_autograd(
            f"mim4dd::{name}",
            functools.partial(function.derivative, following),
            setup_context=function.setup_context,
            lib=lib,
        )
        torch.library.register_vmap(
            f"mim4dd::{name}", functools.partial(function.over_axis, getattr(ops, name)), lib=lib
        )


def _below_autograd(name: str, *inputs: Any) -> tuple[Tensor, ...]:
    with below_autograd():
        return getattr(torch.ops.mim4dd, name).default(*inputs)


def call(function: Any, *inputs: Any) -> tuple[Tensor, ...]:
    """Apply one of the functions below in the way that costs least."""
    if are_functorch_transforms_active():
        return function.apply(*inputs)
    needs_graph = torch.is_grad_enabled() and any(
        isinstance(each, Tensor) and each.requires_grad for each in inputs
    )
    return (function.plain.apply if needs_graph else function.forward)(*inputs)


def _plainly(function: Any) -> Any:
    """Give a function ``plain``, which is the same but for transforms.

    Where there is a setup_context, PyTorch binds the arguments by the signature in each call: that
    takes as long as ten small ops.
    """

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
            output = function.forward(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Any) -> Any:
            return function.backward(ctx, *grad_outputs)

    Plain.__name__ = Plain.__qualname__ = function.__name__.strip("_")
    function.plain = Plain
    return function


def _refuse_forward_ad() -> NoReturn:
    raise RuntimeError(
        "norm_relu_pool has no forward-mode derivative; pass backend='reference' for torch.func.jvp"
    )


def _only(parts: tuple[Tensor | None, ...], flags: list[bool]) -> list[Tensor | None]:
    return [part if flag else None for part, flag in zip(parts, flags, strict=True)]


@_plainly
class NormReLUPool(torch.autograd.Function):
    """The op: output, mean and rstd, of which the first has derivatives."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        """Of the op's arguments."""
        return _below_autograd("norm_relu_pool", *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the derivative needs."""
        input, weight, bias, ctx.num_groups, ctx.pool, _ = inputs
        _, mean, rstd = output
        ctx.save_for_backward(input, weight, bias, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)

    @staticmethod
    def derivative(op: _Op, ctx: Any, grad_out: Tensor | None, *_: Any) -> _Gradients:
        """By the op that is the derivative of this one."""
        if grad_out is None:
            return (None,) * 6
        input, weight, bias, mean, rstd = ctx.saved_tensors
        flags = list(ctx.needs_input_grad[:3])
        # mean and rstd only save work: the derivative through them is part of the op's own.
        saved = (input, weight, bias, mean.detach(), rstd.detach(), ctx.num_groups, ctx.pool)
        return *_only(op(grad_out, *saved, *flags), flags), None, None, None

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Gradients of the inputs."""
        return NormReLUPool.derivative(functools.partial(call, _Backward), ctx, *grad_outputs)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        """Refuse."""
        _refuse_forward_ad()

    @staticmethod
    def over_axis(op: _Op, info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """One call of the op with the new axis in its channels."""
        input, weight, bias, num_groups, pool, eps = inputs
        size = info.batch_size
        results = op(
            _fold_channels(input, in_dims[0], size),
            _fold_numbers(weight, in_dims[1], size),
            _fold_numbers(bias, in_dims[2], size),
            size * num_groups,
            pool,
            eps,
        )
        return _unfold(results, [1, 1, 1], [True] * 3, size)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """Its rule under torch.func."""
        return NormReLUPool.over_axis(functools.partial(call, NormReLUPool), info, in_dims, *inputs)


@_plainly
class _Backward(torch.autograd.Function):
    """Its derivative: gradients of input, weight and bias."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        """Of the op's arguments."""
        return _below_autograd("norm_relu_pool_bwd", *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the derivative needs."""
        *tensors, ctx.num_groups, ctx.pool, of_input, of_weight, of_bias = inputs
        ctx.produced = [of_input, of_weight, of_bias]
        ctx.save_for_backward(*tensors)
        empty = [part for part, flag in zip(output, ctx.produced, strict=True) if not flag]
        ctx.mark_non_differentiable(*empty)
        ctx.set_materialize_grads(False)

    @staticmethod
    def derivative(op: _Op, ctx: Any, *given: Tensor | None) -> _Gradients:
        """By the op that is the derivative of this one."""
        nothing = (None,) * 11
        tangents = _only(given, ctx.produced)
        if all(tangent is None for tangent in tangents):
            return nothing
        flags = list(ctx.needs_input_grad[:3])
        saved = ctx.saved_tensors  # read once, or a checkpoint raises
        results = op(*tangents, *saved, ctx.num_groups, ctx.pool, *flags)
        # The ReLU's mask is all that depends on the bias, and that is constant almost everywhere:
        # the derivative is there, and zero, as PyTorch has it.
        of_bias = torch.zeros_like(saved[3]) if ctx.needs_input_grad[3] else None
        return *_only(results, flags), of_bias, *nothing[4:]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Gradients of grad_out, input, weight and bias."""
        return _Backward.derivative(functools.partial(call, _BackwardBackward), ctx, *grad_outputs)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        """Refuse."""
        _refuse_forward_ad()

    @staticmethod
    def over_axis(op: _Op, info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """One call of the op with the new axis in its channels."""
        *saved, num_groups, pool, of_input, of_weight, of_bias = inputs
        size, flags = info.batch_size, [of_input, of_weight, of_bias]
        folded = _fold_saved(size, in_dims[:6], saved)
        return _unfold(op(*folded, size * num_groups, pool, *flags), [1, 0, 0], flags, size)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """Its rule under torch.func."""
        return _Backward.over_axis(functools.partial(call, _Backward), info, in_dims, *inputs)


@_plainly
class _BackwardBackward(torch.autograd.Function):
    """The second derivative: of ⟨tangents, first⟩ by grad_out, input and weight."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        """Of the op's arguments."""
        return _below_autograd("norm_relu_pool_bwd_bwd", *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept: there is no further derivative."""

    @staticmethod
    def derivative(op: None, ctx: Any, *_: Any) -> NoReturn:
        """Refuse."""
        raise RuntimeError(
            "norm_relu_pool has two derivatives, and a third was asked for: "
            "pass backend='reference'"
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Refuse."""
        _BackwardBackward.derivative(None, ctx)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        """Refuse."""
        _refuse_forward_ad()

    @staticmethod
    def over_axis(op: _Op, info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """One call of the op with the new axis in its channels."""
        *tensors, num_groups, pool, of_grad_out, of_input, of_weight = inputs
        size, flags = info.batch_size, [of_grad_out, of_input, of_weight]
        folds = (_fold_channels, _fold_numbers, _fold_numbers)
        tangents = [
            fold(tensor, dim, size)
            for fold, tensor, dim in zip(folds, tensors[:3], in_dims[:3], strict=True)
        ]
        folded = _fold_saved(size, in_dims[3:9], tensors[3:])
        results = op(*tangents, *folded, size * num_groups, pool, *flags)
        return _unfold(results, [1, 1, 0], flags, size)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """Its rule under torch.func."""
        return _BackwardBackward.over_axis(
            functools.partial(call, _BackwardBackward), info, in_dims, *inputs
        )


# vmap: the new axis K becomes part of the channels, as where a convolution makes it one of its
# groups. So maps that such a convolution made are not copied.


def _fold_channels(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """(B, C, …) with K at ``dim`` to (B, K·C, …)."""
    if tensor is None:
        return None
    tensor = tensor.unsqueeze(1) if dim is None else tensor.movedim(dim, 1)
    return tensor.expand(-1, size, *tensor.shape[2:]).flatten(1, 2)


def _fold_numbers(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """(C,) with K at ``dim`` to (K·C,)."""
    if tensor is None:
        return None
    tensor = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
    return tensor.expand(size, -1).flatten()


def _fold_saved(size: int, in_dims: tuple[Any, ...], saved: list[Any]) -> list[Any]:
    """grad_out, input, weight, bias, mean, rstd."""
    images, numbers = [_fold_channels] * 2, [_fold_numbers] * 2
    folds = [*images, *numbers, *images]
    return [
        fold(tensor, dim, size) for fold, tensor, dim in zip(folds, saved, in_dims, strict=True)
    ]


def _unfold(
    results: tuple[Tensor, ...], axes: list[int], flags: list[bool], size: int
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """K out of its axis again; what was not wanted has none."""
    parts = [
        result.unflatten(axis, (size, -1)) if flag else result
        for result, axis, flag in zip(results, axes, flags, strict=True)
    ]
    dims = [axis if flag else None for axis, flag in zip(axes, flags, strict=True)]
    return tuple(parts), tuple(dims)
