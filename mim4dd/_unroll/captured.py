"""Tensors with a gradient that reach a step from elsewhere than the inputs of the unroll."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


def refuse_captured(
    output: Tensor, inputs: Sequence[Tensor], place: str, model: nn.Module | None = None
) -> None:
    """Require that nothing but ``inputs`` gets a gradient through ``output``.

    The steps are taken apart at their inputs: whatever else they read is a constant to the unroll,
    and would be left without its gradient in silence.

    Args:
        output: What a step made.
        inputs: The leaves that it may depend on.
        place: What made it, for the message.
        model: Whose parameters and buffers are called by their names.

    Raises:
        ValueError: If another leaf requires a gradient.
    """
    known = {id(tensor) for tensor in inputs}
    strangers = [leaf for leaf in leaves_of(output) if id(leaf) not in known]
    if not strangers:
        return
    found = ", ".join(dict.fromkeys(_described(leaf, model) for leaf in strangers))
    raise ValueError(
        f"{place} must use no tensor that requires a gradient and is no input of the unroll, got "
        f"{found}: it would get no gradient. Detach it, or pass it as an input: theta_0, "
        f"image_syn, label_syn and lr get gradients"
    )


def leaves_of(output: Tensor) -> list[Tensor]:
    """The leaves that get a gradient by ``output``, in the order in which they are met."""
    if not output.requires_grad:
        return []
    if output.grad_fn is None:
        return [output]
    found: list[Tensor] = []
    waiting: list[Any] = [output.grad_fn]
    seen = {output.grad_fn}
    while waiting:
        node = waiting.pop()
        if type(node).__name__ == "AccumulateGrad":
            found.append(node.variable)
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return found


def _described(leaf: Tensor, model: nn.Module | None) -> str:
    shape = f"a tensor of shape {tuple(leaf.shape)}"
    if model is None:
        return shape
    named: list[Callable[[], Any]] = [model.named_parameters, model.named_buffers]
    names = [name for tensors in named for name, tensor in tensors() if tensor is leaf]
    return f"{shape}, which is {names[0]!r} of model" if names else shape
