"""The contrastive op under torch.func and forward-mode differentiation.

The autograd that torch.library registers has no rules for these: here they are, from the same
kernels.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from mim4dd import reference
from mim4dd.ops._contrastive_autograd import NO_FORWARD_OVER_FORWARD, NO_THIRD_DERIVATIVE
from mim4dd.reference import Contrast, Critic, Reduce

_NONE = [False] * 4


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


def _halves(both: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Inputs, and the tangents that follow them: of logit_scale, bias and features each."""
    return both[: len(both) // 2], both[len(both) // 2 :]


def _tangents(inputs: Sequence[Any], given: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Of logit_scale, bias and features, with zeros where there is none."""
    return [
        torch.zeros_like(value) if value is not None and tangent is None else tangent
        for value, tangent in zip(inputs, given, strict=True)
    ]


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
        saved = labels, key_labels, excluded, lse.detach(), positive_weight
        return *_Along.apply(ctx.fixed, *saved, *inputs, *_tangents(inputs, given[4:])), None


class _Along(torch.autograd.Function):
    """The directional derivatives of loss and lse, each (L, N)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        fixed: _Fixed,
        labels: Tensor,
        key_labels: Tensor | None,
        excluded: Tensor | None,
        lse: Tensor,
        positive_weight: Tensor,
        *inputs_and_tangents: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        saved = labels, key_labels, excluded, lse, positive_weight, torch.zeros_like(lse), None
        return _bwd_bwd(fixed.critic, *saved, *_halves(inputs_and_tangents), _NONE)[:2]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.fixed, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)  # jvp has no use for it, but vmap looks for it before

    @staticmethod
    def backward(ctx: Any, on_along_loss: Tensor, on_along_lse: Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        saved, (on_inputs, on_tangents) = tensors[:5], _halves(tensors[5:])
        upstream = ctx.fixed, *saved, on_along_loss, on_along_lse, *on_inputs
        _, _, *of_inputs = _ContrastBwdBwd.apply(*upstream, *on_tangents)
        return *(None,) * 6, *of_inputs, *_ContrastBwd.apply(*upstream)

    @staticmethod
    def jvp(_: Any, *__: Any) -> NoReturn:
        raise RuntimeError(NO_FORWARD_OVER_FORWARD)


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
        gradients = _ContrastBwdBwd.apply(ctx.fixed, *saved, *inputs, *_tangents(inputs, given))
        return *(None,) * 6, *gradients

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
        curved = _ContrastBwdBwd.apply(
            *(ctx.fixed, *saved, grad_loss, grad_lse), *(*inputs, *tangents)
        )[2:]
        return tuple(None if a is None else a + b for a, b in zip(linear, curved, strict=True))


class _ContrastBwdBwd(torch.autograd.Function):
    """The derivatives of ⟨tangents, _ContrastBwd⟩ by upstream gradients, then as those are."""

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
        *inputs_and_tangents: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        saved = labels, key_labels, excluded, lse, positive_weight, grad_loss, grad_lse
        inputs, tangents = _halves(inputs_and_tangents)
        wanted = _all(inputs[1])
        on_loss, on_lse, flat = _bwd_bwd(fixed.critic, *saved, inputs, tangents, wanted)
        return on_loss, on_lse, *_ordered(flat, inputs[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept: there is no further derivative."""

    @staticmethod
    def backward(_: Any, *__: Any) -> NoReturn:
        raise RuntimeError(NO_THIRD_DERIVATIVE)

    @staticmethod
    def jvp(_: Any, *__: Any) -> NoReturn:
        raise RuntimeError(NO_THIRD_DERIVATIVE)


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
    tangents: Sequence[Any],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    logit_scale, bias, *features = inputs
    of_scale, of_bias, *of_features = tangents
    num_layers = len(features) // 2
    of_shared = (
        (torch.zeros_like(logit_scale) if tangent is None else tangent).expand(num_layers)
        for tangent in (of_scale, of_bias)
    )
    return torch.ops.mim4dd.contrastive_bwd_bwd(
        *(*_split(features), labels, key_labels, excluded, logit_scale, bias, *critic),
        *(lse, positive_weight, grad_loss, grad_lse),
        *(*_split(of_features), *of_shared, wanted),
    )
