"""PyTorch's transforms (torch.func, both kinds of vmap, forward mode) around ops and modules."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mim4dd import _torch_private as private
from mim4dd._library import LIB


def active() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is going on."""
    return private.in_forward_mode() or private.are_functorch_transforms_active()


def is_batched(tensor: Tensor) -> bool:
    """Whether it stands for many: under torch.vmap, or among gradients that come in batches."""
    return private.is_batched(tensor) or private.is_batched_by_older_vmap(tensor)


def without_saved_tensors_hooks() -> AbstractContextManager[None]:
    """What is saved within is saved as it is: for graphs that live and die inside of an op.

    A checkpoint around the op would otherwise recompute it for each of them.
    """
    if not private.has_saved_tensors_hooks():
        return nullcontext()
    # A node that held its own output, which holds the node, would never be freed.
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda tensor: tensor)


def current_autocast(device_type: str) -> torch.autocast:
    """Autocast as it is set now, to be entered again later."""
    return torch.autocast(
        device_type,
        dtype=torch.get_autocast_dtype(device_type),
        enabled=torch.is_autocast_enabled(device_type),
        cache_enabled=torch.is_autocast_cache_enabled(),
    )


def untraced(tensor: Tensor) -> Tensor | None:
    """The values of a tensor, to be kept when all transforms are over; None where it has none."""
    tensor = tensor.detach()
    if torch.compiler.is_compiling():  # what comes out of compiled code is a tensor as any
        return tensor
    while private.is_tracked(tensor):
        tensor = private.unwrapped(tensor)
    # A subclass may be a tensor without values, as while a graph is captured.
    return None if type(tensor) is not Tensor or is_batched(tensor) else tensor


def register_vmap(op: Any) -> None:
    """Give an op the rule for vmap to run once for every sample, in turn."""
    torch.library.register_vmap(op, functools.partial(one_by_one, op), lib=LIB)
    register_older_vmap(op)


def one_by_one(op: Callable[..., Any], info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
    """The rule for vmap to run an op once for every sample, in turn."""
    flat, structure = private.tree_flatten(inputs)
    dims = private.tree_flatten(in_dims, is_leaf=lambda node: node is None)[0]
    samples = (
        [
            value if dim is None else value.select(dim, sample)
            for value, dim in zip(flat, dims, strict=True)
        ]
        for sample in range(info.batch_size)
    )
    stacked = _stack(op(*private.tree_unflatten(each, structure)) for each in samples)
    return stacked, private.tree_map(lambda _: 0, stacked)


def register_older_vmap(op: Any) -> None:
    """The same for ``is_grads_batched`` and ``vectorize``, whose older vmap has no rules."""

    def rule(*inputs: Any) -> Any:
        flat, structure = private.tree_flatten(inputs)
        level = private.older_vmap_level()
        samples = _unbind(flat, level)
        while samples is None:  # what is batched is batched further out
            level -= 1
            samples = _unbind(flat, level)
        stacked = _stack(op(*private.tree_unflatten(each, structure)) for each in samples)
        return private.tree_map(lambda parts: private.add_batch_dim(parts, 0, level), stacked)

    LIB.impl(op, rule, "Batched")


def _unbind(flat: Sequence[Any], level: int) -> list[list[Any]] | None:
    """The inputs of every sample of a level; None if that has none."""
    if level < 0:
        raise AssertionError("an op was called for batched tensors, and none was found")
    # What is not batched at this level is expanded to the given size.
    opened = [
        private.remove_batch_dim(each, level, 0, 0) if isinstance(each, Tensor) else None
        for each in flat
    ]
    sizes = [len(each) for each in opened if each is not None and len(each)]
    if not sizes:
        return None
    return [
        [
            value if batch is None or not len(batch) else batch[sample]
            for value, batch in zip(flat, opened, strict=True)
        ]
        for sample in range(sizes[0])
    ]


def _stack(results: Any) -> Any:
    """Of every sample's results the same with a leading axis."""
    return private.tree_map(lambda *parts: torch.stack(parts), *results)
