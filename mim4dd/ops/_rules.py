"""How ops are differentiated: each declares once what its derivative keeps and calls.

Of one declaration there are three forms, as PyTorch has no one that serves all:

- called plainly, :class:`Mim4ddOp`, the autograd function that costs least;
- under torch.func and forward mode :class:`Mim4ddOpUnderTransforms`, which transforms can look into
  (PyTorch binds its arguments by signature in each call: that takes as long as ten small ops) or,
  where one is given, a formula of other ops;
- under torch.compile and called as ``torch.ops.mim4dd.<op>``, what is registered for the op.

A derivative says by booleans which gradients it wants of an op, and returns None for the others.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from mim4dd._checks import NO_FORWARD_MODE, refuse_forward_ad
from mim4dd._library import LIB
from mim4dd._torch_private import are_functorch_transforms_active, below_autograd, in_forward_mode
from mim4dd._transforms import register_older_vmap


@dataclass(frozen=True, eq=False)  # no tuple: transforms look into those
class Rule:
    """An op and its derivative, in the terms of :class:`torch.autograd.Function`.

    To call it is to call the op.
    """

    op: Any
    function: str  # of the package, that users call
    setup_context: Callable[..., None] | None
    backward: Callable[..., tuple[Any, ...]]
    vmap: Callable[..., tuple[Any, Any]] | None = None
    formula: Callable[..., Any] | None = None

    def __call__(self, *inputs: Any) -> Any:
        """The op's outputs, differentiable by whatever is going on."""
        if torch.compiler.is_compiling():
            if in_forward_mode():
                self._refuse_tangents("the compiled " if self.formula else "", inputs)
            return self.op(*inputs)
        forward_mode, transformed = in_forward_mode(), are_functorch_transforms_active()
        if self.formula is not None and (forward_mode or transformed):
            return self.formula(*inputs)
        if forward_mode:
            self._refuse_tangents("", inputs)
        if transformed:
            return Mim4ddOpUnderTransforms.apply(*inputs, self)
        if torch.is_grad_enabled() and any(
            isinstance(each, Tensor) and each.requires_grad for each in inputs
        ):
            return Mim4ddOp.apply(*inputs, self)
        return self.kernel(*inputs)

    def kernel(self, *inputs: Any) -> Any:
        """The op's outputs, without a graph."""
        with below_autograd():
            return self.op(*inputs)

    def keep(self, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        """What the derivative needs."""
        if self.setup_context is not None:
            self.setup_context(ctx, inputs, output)

    def _refuse_tangents(self, which: str, inputs: Sequence[Any]) -> None:
        refuse_forward_ad(which + self.function, *(x for x in inputs if isinstance(x, Tensor)))


class Mim4ddOp(torch.autograd.Function):
    """Of an op's inputs and its rule, the op's outputs, where no transform is going on."""

    @staticmethod
    def forward(ctx: Any, *inputs_and_rule: Any) -> Any:
        *inputs, ctx.rule = inputs_and_rule
        output = ctx.rule.kernel(*inputs)
        ctx.rule.keep(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        return *ctx.rule.backward(ctx, *grad_outputs), None


class Mim4ddOpUnderTransforms(torch.autograd.Function):
    """The same where transforms may look in."""

    @staticmethod
    def forward(*inputs_and_rule: Any) -> Any:
        *inputs, rule = inputs_and_rule
        return rule.kernel(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs_and_rule: Sequence[Any], output: Any) -> None:
        *inputs, ctx.rule = inputs_and_rule
        ctx.rule.keep(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        return *ctx.rule.backward(ctx, *grad_outputs), None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], *inputs_and_rule: Any) -> tuple[Any, Any]:
        *inputs, rule = inputs_and_rule
        return rule.vmap(rule, info, in_dims[:-1], *inputs)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        raise RuntimeError(NO_FORWARD_MODE.format(ctx.rule.function))


def declare(
    name: str,
    setup_context: Callable[..., None] | None,
    backward: Callable[..., tuple[Any, ...]],
    *,
    vmap: Callable[..., tuple[Any, Any]] | None = None,
    formula: Callable[..., Any] | None = None,
) -> Rule:
    """Register the derivative of ``mim4dd::<name>`` and return what calls the op with it.

    Args:
        name: Of an op that is defined.
        setup_context: Keeps for ``backward`` what it needs of ``inputs`` and ``output``.
        backward: Gradients of the inputs, None where ``ctx.needs_input_grad`` wants none.
        vmap: Calls its first argument, the rule or the bare op, over one more axis: after that as
            in :class:`torch.autograd.Function`.
        formula: What transforms see in place of the op, where no compiler is in between.
    """
    op = getattr(torch.ops.mim4dd, name).default
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=LIB)
    function = name.split("_bwd")[0]  # derivatives are named so
    rule = Rule(op, function, setup_context, backward, vmap, formula)
    if vmap is not None:
        torch.library.register_vmap(op, functools.partial(vmap, op), lib=LIB)
        register_older_vmap(op)
    return rule


def refuse(name: str, what_to_do: str | None = None) -> None:
    """Make a derivative through ``mim4dd::<name>`` raise: without a rule it would be a silent 0."""
    message = f"mim4dd::{name} is not differentiable" + (f": {what_to_do}" if what_to_do else "")

    def backward(_ctx: Any, *_grads: Tensor) -> NoReturn:
        raise RuntimeError(message)

    torch.library.register_autograd(f"mim4dd::{name}", backward, lib=LIB)


def only(wanted: Sequence[bool], parts: Sequence[Tensor | None]) -> list[Tensor | None]:
    """None in place of the parts that are not wanted, as which ops return empty tensors."""
    return [part if want else None for part, want in zip(parts, wanted, strict=True)]
