"""The contrastive op under torch.func and forward-mode differentiation.

The autograd that torch.library registers has no rules for these: here they are, from the same
kernels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mim4dd import reference
from mim4dd.ops._reduction import Reduce
from mim4dd.reference import Contrast, Critic

_NONE = [False] * 4


def active() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is going on."""
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return forward_mode or torch._C._are_functorch_transforms_active()


def contrast(
    query: Sequence[Tensor],
    key: Sequence[Tensor],
    labels: Tensor,
    key_labels: Tensor | None,
    excluded: Tensor | None,
    logit_scale: Tensor,
    bias: Tensor | None,
    critic: Critic,
) -> Contrast:
    """:func:`mim4dd.ops.contrastive.contrastive` with rules for every transform."""
    features = [*query, *key]
    if critic.normalize:
        sides = [labels] * len(query) + [key_labels] * len(key)
        features = [
            reference.unit_rows(reference.taking_part(rows, of_rows))[0]
            for rows, of_rows in zip(features, sides, strict=True)
        ]
    fixed = _Fixed(critic._replace(normalize=False))
    shared = labels, key_labels, excluded, logit_scale, bias
    return Contrast(*_Contrast.apply(fixed, *shared, *features))


class _Fixed:
    """A critic that no transform looks into, as it would into a tuple."""

    def __init__(self, critic: Critic) -> None:
        self.critic = critic


def _split(features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    layers = len(features) // 2
    return list(features[:layers]), list(features[layers:])


def _tangents(inputs: Sequence[Any], given: Sequence[Tensor | None]) -> list[Tensor]:
    """Of logit_scale, bias and features, with zeros where there is none."""
    logit_scale, bias, *features = inputs
    layers = len(features) // 2

    def shared(value: Tensor | None, tangent: Tensor | None) -> Tensor:
        if value is None or tangent is None:
            return torch.zeros_like(logit_scale).expand(layers)
        return tangent.expand(layers)

    of_features = [
        torch.zeros_like(rows) if tangent is None else tangent
        for rows, tangent in zip(features, given[2:], strict=True)
    ]
    return [shared(logit_scale, given[0]), shared(bias, given[1]), *of_features]


class _Contrast(torch.autograd.Function):
    """Loss, lse (L, N) and positive_weight (N,)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        fixed: _Fixed,
        labels: Tensor,
        key_labels: Tensor | None,
        excluded: Tensor | None,
        logit_scale: Tensor,
        bias: Tensor | None,
        *features: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shared = labels, key_labels, excluded, logit_scale, bias
        _, _, *of_queries, _ = torch.ops.mim4dd.contrastive(
            *_split(features), *shared, *fixed.critic, Reduce.NONE, _NONE
        )
        return tuple(of_queries)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.fixed, *tensors = inputs
        _, lse, positive_weight = output
        ctx.mark_non_differentiable(positive_weight)
        ctx.save_for_backward(lse, positive_weight, *tensors)
        ctx.save_for_forward(lse, positive_weight, *tensors)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, grad_lse: Tensor, _: Any) -> tuple[Any, ...]:
        lse, positive_weight, labels, key_labels, excluded, *inputs = ctx.saved_tensors
        saved = labels, key_labels, excluded, lse.detach(), positive_weight
        gradients = _ContrastBwd.apply(ctx.fixed, *saved, grad_loss, grad_lse, *inputs)
        return None, None, None, None, *gradients

    @staticmethod
    def jvp(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        lse, positive_weight, labels, key_labels, excluded, *inputs = ctx.saved_tensors
        saved = labels, key_labels, excluded, lse, positive_weight, torch.zeros_like(lse), None
        tangents = _tangents(inputs, given[4:])
        along_loss, along_lse, _ = _bwd_bwd(ctx.fixed.critic, *saved, inputs, tangents, _NONE)
        return along_loss, along_lse, None


class _ContrastBwd(torch.autograd.Function):
    """Gradients of logit_scale, bias and features."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        fixed: _Fixed,
        labels: Tensor,
        key_labels: Tensor | None,
        excluded: Tensor | None,
        lse: Tensor,
        positive_weight: Tensor,
        grad_loss: Tensor,
        grad_lse: Tensor,
        logit_scale: Tensor,
        bias: Tensor | None,
        *features: Tensor,
    ) -> tuple[Tensor | None, ...]:
        flat = torch.ops.mim4dd.contrastive_bwd(
            *(*_split(features), labels, key_labels, excluded, logit_scale, bias, *fixed.critic),
            *(lse, positive_weight, grad_loss, grad_lse, _all(bias)),
        )
        return _ordered(flat, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.fixed, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        labels, key_labels, excluded, lse, weight, grad_loss, grad_lse, *inputs = ctx.saved_tensors
        saved = labels, key_labels, excluded, lse, weight, grad_loss, grad_lse
        tangents = _tangents(inputs, given)
        on_loss, on_lse, flat = _bwd_bwd(
            ctx.fixed.critic, *saved, inputs, tangents, _all(inputs[1])
        )
        return *(None,) * 6, on_loss, on_lse, *_ordered(flat, inputs[1])

    @staticmethod
    def jvp(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        labels, key_labels, excluded, lse, weight, grad_loss, grad_lse, *inputs = ctx.saved_tensors
        saved = labels, key_labels, excluded, lse, weight
        # Linear in the upstream gradients, and the Hessian in the inputs is symmetric.
        along_loss, along_lse = (
            torch.zeros_like(lse) if tangent is None else tangent for tangent in given[6:8]
        )
        linear = _ContrastBwd.apply(ctx.fixed, *saved, along_loss, along_lse, *inputs)
        tangents = _tangents(inputs, given[8:])
        _, _, flat = _bwd_bwd(
            ctx.fixed.critic, *saved, grad_loss, grad_lse, inputs, tangents, _all(inputs[1])
        )
        return tuple(
            None if a is None else a + b
            for a, b in zip(linear, _ordered(flat, inputs[1]), strict=True)
        )


def _all(bias: Tensor | None) -> list[bool]:
    return [True, True, True, bias is not None]


def _ordered(flat: Sequence[Tensor], bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """By logit_scale, bias, features."""
    *features, of_scale = flat if bias is None else flat[:-1]
    return of_scale.sum(), None if bias is None else flat[-1].sum(), *features


def _bwd_bwd(
    critic: Critic,
    labels: Tensor,
    key_labels: Tensor | None,
    excluded: Tensor | None,
    lse: Tensor,
    positive_weight: Tensor,
    grad_loss: Tensor,
    grad_lse: Tensor | None,
    inputs: Sequence[Any],
    tangents: Sequence[Tensor],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    logit_scale, bias, *features = inputs
    of_scale, of_bias, *of_features = tangents
    return torch.ops.mim4dd.contrastive_bwd_bwd(
        *(*_split(features), labels, key_labels, excluded, logit_scale, bias, *critic),
        *(lse, positive_weight, grad_loss, grad_lse),
        *(*_split(of_features), of_scale, of_bias, wanted),
    )


def one_by_one(op: Callable[..., Any]) -> Callable[..., Any]:
    """A rule for vmap: the op of every sample in turn."""

    def rule(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        flat, structure = pytree.tree_flatten(inputs)
        dims = pytree.tree_flatten(in_dims, is_leaf=lambda node: node is None)[0]
        of_samples = []
        for sample in range(info.batch_size):
            selected = [
                value if dim is None else value.select(dim, sample)
                for value, dim in zip(flat, dims, strict=True)
            ]
            of_samples.append(op(*pytree.tree_unflatten(selected, structure)))
        stacked = pytree.tree_map(lambda *parts: torch.stack(parts), *of_samples)
        return stacked, pytree.tree_map(lambda _: 0, stacked)

    return rule
