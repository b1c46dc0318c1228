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

    To call it is to call the op, with lists of outputs spread out among the others.
    """

    op: Any
    function: str  # of the package, that users call
    setup_context: Callable[..., None] | None
    backward: Callable[..., tuple[Any, ...]]
    vmap: Callable[..., tuple[Any, Any]] | None = None
    jvp: Callable[..., tuple[Any, ...]] | None = None
    formula: Callable[..., Any] | None = None
    lists: tuple[int, ...] = ()
    outputs: int | None = None

    def __call__(self, *inputs: Any) -> Any:
        """The op's outputs, differentiable by whatever is going on."""
        if torch.compiler.is_compiling():
            if in_forward_mode():
                has_others = self.formula is not None or self.jvp is not None
                self._refuse_tangents("the compiled " if has_others else "", inputs)
            return self.shown(self.op(*inputs))
        forward_mode, transformed = in_forward_mode(), are_functorch_transforms_active()
        if self.formula is not None and (forward_mode or transformed):
            return self.formula(*inputs)
        if forward_mode and self.jvp is None:
            self._refuse_tangents("", inputs)
            forward_mode = False
        if forward_mode or transformed:
            call = _Call(self, tuple(len(inputs[place]) for place in self.lists))
            return Mim4ddOpUnderTransforms.apply(*self.flat(inputs), call)
        if torch.is_grad_enabled():
            leaves: list[Tensor] = []
            needs = [_needs_grad(each, leaves) for each in inputs]
            if leaves:
                return Mim4ddOp.apply(self, inputs, needs, *leaves)
        return self.shown(self.kernel(inputs))

    def kernel(self, inputs: Sequence[Any]) -> Any:
        """What the op returns, without a graph."""
        with below_autograd():
            return self.op(*inputs)

    def shown(self, outputs: Any) -> Any:
        """What callers see of the op's outputs, or of their gradients."""
        if not self.lists:
            return outputs
        if self.outputs is not None:
            return outputs[: self.outputs]
        flat: list[Any] = []
        for part in outputs:
            flat += part if isinstance(part, (list, tuple)) else (part,)
        return tuple(flat)

    def flat(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Inputs, or what there is for each, with the tensors of lists among the others."""
        if not self.lists:
            return inputs
        flat: list[Any] = []
        begin = 0
        for place in self.lists:
            flat += (*inputs[begin:place], *inputs[place])
            begin = place + 1
        flat += inputs[begin:]
        return flat

    def keep(self, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        """What the derivative needs."""
        if self.setup_context is not None:
            self.setup_context(ctx, inputs, output)

    def _refuse_tangents(self, which: str, inputs: Sequence[Any]) -> None:
        tensors = (x for x in self.flat(inputs) if isinstance(x, Tensor))
        refuse_forward_ad(which + self.function, *tensors)


def _needs_grad(each: Any, leaves: list[Tensor]) -> Any:
    """Whether an input of an op requires a gradient, by list; what does is added to ``leaves``."""
    if isinstance(each, Tensor):
        if each.requires_grad:
            leaves.append(each)
        return each.requires_grad
    if isinstance(each, list) and each and isinstance(each[0], Tensor):
        leaves += [x for x in each if x.requires_grad]
        return [x.requires_grad for x in each]
    return False


def _of_leaves(gradients: Sequence[Any], needs: Sequence[Any]) -> list[Any]:
    """The gradients of those that :func:`_needs_grad` adds."""
    chosen: list[Any] = []
    for gradient, need in zip(gradients, needs, strict=True):
        if need is True:
            chosen.append(gradient)
        elif need and True in need:
            chosen += [x for x, x_needs in zip(gradient, need, strict=True) if x_needs]
    return chosen


class Mim4ddOp(torch.autograd.Function):
    """What callers see of an op's outputs, where no transform is going on.

    Of a rule, the op's inputs, which of them need gradients, and those: each argument costs time.
    """

    @staticmethod
    def forward(ctx: Any, rule: Rule, inputs: Sequence[Any], needs: list[Any], *_: Tensor) -> Any:
        ctx.rule, ctx.plain, ctx.needs_input_grad = rule, True, needs
        output = rule.kernel(inputs)
        rule.keep(ctx, inputs, output)
        return rule.shown(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        gradients = ctx.rule.backward(ctx, *grad_outputs)
        return None, None, None, *_of_leaves(gradients, ctx.needs_input_grad)


@dataclass(frozen=True, eq=False)
class _Call:
    """A rule, and how long the lists are that it is called with."""

    rule: Rule
    sizes: tuple[int, ...]

    def nested(self, flat: Sequence[Any]) -> list[Any]:
        """What :meth:`Rule.flat` made flat."""
        nested: list[Any] = []
        at = 0
        for place, size in zip(self.rule.lists, self.sizes, strict=True):
            begin = at + place - len(nested)
            nested += (*flat[at:begin], list(flat[begin : begin + size]))
            at = begin + size
        nested += flat[at:]
        return nested


class Mim4ddOpUnderTransforms(torch.autograd.Function):
    """The same where transforms may look in: they see no tensor but those in its arguments."""

    @staticmethod
    def forward(*flat_and_call: Any) -> Any:
        *flat, call = flat_and_call
        return call.rule.shown(call.rule.kernel(call.nested(flat)))

    @staticmethod
    def setup_context(ctx: Any, flat_and_call: Sequence[Any], output: Any) -> None:
        *flat, call = flat_and_call
        ctx.call, ctx.needs_input_grad = call, call.nested(ctx.needs_input_grad[:-1])
        call.rule.keep(ctx, call.nested(flat), output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        rule = ctx.call.rule
        return *rule.flat(rule.backward(ctx, *grad_outputs)), None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], *flat_and_call: Any) -> tuple[Any, Any]:
        *flat, call = flat_and_call
        return call.rule.vmap(call.rule, info, call.nested(in_dims[:-1]), *call.nested(flat))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        call = ctx.call
        if call.rule.jvp is None:
            raise RuntimeError(NO_FORWARD_MODE.format(call.rule.function))
        return call.rule.jvp(ctx, *call.nested(tangents[:-1]))


def declare(
    name: str,
    setup_context: Callable[..., None] | None,
    backward: Callable[..., tuple[Any, ...]],
    *,
    vmap: Callable[..., tuple[Any, Any]] | None = None,
    jvp: Callable[..., tuple[Any, ...]] | None = None,
    formula: Callable[..., Any] | None = None,
    lists: tuple[int, ...] = (),
    outputs: int | None = None,
) -> Rule:
    """Register the derivative of ``mim4dd::<name>`` and return what calls the op with it.

    Args:
        name: Of an op that is defined.
        setup_context: Keeps for ``backward`` what it needs of ``inputs`` and ``output``.
        backward: Gradients of the inputs, None where ``ctx.needs_input_grad`` wants none.
        vmap: Calls its first argument, the rule or the bare op, over one more axis: after that as
            in :class:`torch.autograd.Function`.
        jvp: Tangents of what callers see from those of the inputs; what ``setup_context`` keeps for
            it goes through :func:`save`.
        formula: What transforms see in place of the op, where no compiler is in between.
        lists: Places of the inputs that are lists of tensors.
        outputs: How many callers see; the derivative alone has the others, in a plain call.
    """
    op = getattr(torch.ops.mim4dd, name).default
    function = name.split("_bwd")[0]  # derivatives are named so
    rule = Rule(op, function, setup_context, backward, vmap, jvp, formula, lists, outputs)

    def spread(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return backward(ctx, *rule.shown(grads))

    torch.library.register_autograd(op, spread, setup_context=setup_context, lib=LIB)
    if vmap is not None:
        torch.library.register_vmap(op, functools.partial(vmap, op), lib=LIB)
        register_older_vmap(op)
    return rule


def is_plain(ctx: Any) -> bool:
    """Whether it is of a plain call, so that what callers do not see of its outputs is its own."""
    return getattr(ctx, "plain", False)


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Keep tensors for ``backward``, and for ``jvp``."""
    ctx.save_for_backward(*tensors)
    if in_forward_mode():
        ctx.save_for_forward(*tensors)


def refuse(name: str, what_to_do: str | None = None) -> None:
    """Make a derivative through ``mim4dd::<name>`` raise: without a rule it would be a silent 0."""
    message = f"mim4dd::{name} is not differentiable" + (f": {what_to_do}" if what_to_do else "")

    def backward(_ctx: Any, *_grads: Tensor) -> NoReturn:
        raise RuntimeError(message)

    torch.library.register_autograd(f"mim4dd::{name}", backward, lib=LIB)


def only(wanted: Sequence[bool], parts: Sequence[Tensor | None]) -> list[Tensor | None]:
    """None in place of the parts that are not wanted, as which ops return empty tensors."""
    return [part if want else None for part, want in zip(parts, wanted, strict=True)]
