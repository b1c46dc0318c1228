"""Derivatives of the contrastive op: each order is an op that the one before it calls.

docs/math.md, "Derivatives", has the formulas. A third derivative raises.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mim4dd import reference
from mim4dd._torch_private import below_autograd, keeps_graph
from mim4dd._transforms import is_batched
from mim4dd.reference import Critic, Reduce

NO_THIRD_DERIVATIVE = (
    "the contrastive kernels have two derivatives, and a third was asked for: "
    "pass backend='reference'"
)
NO_FORWARD_OVER_FORWARD = (
    "the contrastive kernels have no forward mode over forward mode: "
    "take forward over reverse, as torch.func.hessian does, or pass backend='reference'"
)

_NUM_PAIRS, _NUM_CRITIC = 7, 4  # arguments of the schemas: pairs, then critic, then the rest
_NUM_SHARED = 5  # of the pairs, what all layers share


class _Pairs(NamedTuple):
    """The arguments that all three ops begin with."""

    query: list[Tensor]
    key: list[Tensor]
    labels: Tensor
    key_labels: Tensor | None
    excluded: Tensor | None
    logit_scale: Tensor
    bias: Tensor | None


class _Gradients(NamedTuple):
    """By what they are gradients of; None where they are not wanted."""

    query: Sequence[Tensor | None]
    key: Sequence[Tensor | None]
    logit_scale: Tensor | None  # (L,)
    bias: Tensor | None  # (L,)


def register(lib: torch.library.Library) -> None:
    """Give the three ops their derivatives."""
    for name, backward, setup_context in (
        ("contrastive", _backward, _setup),
        ("contrastive_bwd", _backward_bwd, _setup_bwd),
        ("contrastive_bwd_bwd", _backward_bwd_bwd, None),
    ):
        torch.library.register_autograd(
            f"mim4dd::{name}", backward, setup_context=setup_context, lib=lib
        )


def _save(ctx: Any, inputs: Sequence[Any], rest: Sequence[Tensor | None]) -> None:
    query, key, *shared = inputs[:_NUM_PAIRS]
    ctx.num_layers, ctx.dtype = len(query), query[0].dtype
    ctx.critic = inputs[_NUM_PAIRS : _NUM_PAIRS + _NUM_CRITIC]
    ctx.save_for_backward(*query, *key, *shared, *rest)
    ctx.set_materialize_grads(False)


def _unpacked(ctx: Any, saved: tuple[Tensor, ...]) -> tuple[_Pairs, list[Any]]:
    tensors, layers = list(saved), ctx.num_layers
    end = 2 * layers + len(_Pairs._fields) - 2
    pairs = _Pairs(tensors[:layers], tensors[layers : 2 * layers], *tensors[2 * layers : end])
    return pairs, tensors[end:]


def _wanted(ctx: Any) -> list[bool]:
    query, key, _, _, _, logit_scale, bias = ctx.needs_input_grad[:_NUM_PAIRS]
    return [any(query), any(key), logit_scale, bias]


def _over_layers(gradients: _Gradients) -> list[Tensor | None]:
    """Of logit_scale and bias, which all layers share."""
    return [None if part is None else part.sum() for part in gradients[2:]]


def _unflatten(flat: Sequence[Tensor | None], wanted: list[bool], num_layers: int) -> _Gradients:
    end_of_query = num_layers * wanted[0]
    end_of_key = end_of_query + num_layers * wanted[1]
    none = [None] * num_layers
    return _Gradients(
        flat[:end_of_query] or none,
        flat[end_of_query:end_of_key] or none,
        flat[end_of_key] if wanted[2] else None,
        flat[-1] if wanted[3] else None,
    )


def _returned(gradients: _Gradients, *rest: Tensor | None) -> tuple[Any, ...]:
    """What a backward returns: by pairs, none of the critic, ``rest``."""
    none = (None,) * _NUM_CRITIC
    shared = _over_layers(gradients)
    return gradients.query, gradients.key, None, None, None, *shared, *none, *rest


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _, count, _, lse, positive_weight, unit_gradients = output
    _save(ctx, inputs, (count, lse, positive_weight, *unit_gradients))
    ctx.reduction, ctx.unit_wanted = inputs[-2:]
    ctx.mark_non_differentiable(count, positive_weight, *unit_gradients)


def _backward(
    ctx: Any,
    grad_reduced: Tensor | None,
    _: Any,
    grad_loss: Tensor | None,
    grad_lse: Tensor | None,
    *__: Any,
) -> tuple[Any, ...]:
    upstream, wanted = (grad_reduced, grad_loss, grad_lse), _wanted(ctx)
    tensors = ctx.saved_tensors  # read once, or a checkpoint raises
    covered = all(have or not want for have, want in zip(ctx.unit_wanted, wanted, strict=True))
    factor = _unit_factor(ctx, tensors, *upstream) if covered else None
    if factor is None:
        gradients = _by_kernel(ctx, tensors, wanted, *upstream)
    else:
        gradients = _scaled(ctx, tensors, factor, keep=True)
    return _returned(gradients, None, None)


def _unit_factor(
    ctx: Any,
    tensors: tuple[Tensor, ...],
    grad_reduced: Tensor | None,
    grad_loss: Tensor | None,
    grad_lse: Tensor | None,
) -> Tensor | None:
    """What makes the unit gradients those wanted, (L,); None if nothing does."""
    # With create_graph the result has to be differentiable, and the unit gradients are constants.
    if grad_lse is not None or torch.is_grad_enabled():
        return None
    if ctx.reduction != Reduce.NONE:
        return None if grad_loss is not None else _grad_of_each(ctx, tensors, grad_reduced)
    if grad_loss is None:
        return None
    uniform = grad_loss.shape[1] == 1 or grad_loss.stride(1) == 0  # no look at values: no GPU waits
    return grad_loss[:, 0] if uniform else None


def _grad_of_each(
    ctx: Any, tensors: tuple[Tensor, ...], grad_reduced: Tensor | None
) -> Tensor | None:
    """What the loss of every query of a layer receives through the reduced loss, (L,)."""
    if grad_reduced is None or ctx.reduction == Reduce.NONE:
        return None
    if ctx.reduction == Reduce.SUM:
        return grad_reduced
    count = tensors[2 * ctx.num_layers + _NUM_SHARED]
    return grad_reduced / count


def _scaled(ctx: Any, tensors: tuple[Tensor, ...], factor: Tensor, keep: bool) -> _Gradients:
    """The unit gradients times ``factor`` (L,); in their place, unless they are to be kept.

    They are wide: only their product is rounded to the features' dtype. A sum over queries may be
    beyond float16 where the mean is not.
    """
    sides, singles = sum(ctx.unit_wanted[:2]), sum(ctx.unit_wanted[2:])
    num_features = sides * ctx.num_layers
    unit_gradients = tensors[-num_features - singles :]
    features = list(unit_gradients[:num_features])
    if features and is_batched(factor):  # for these there is no product of lists
        features = [each * f for each, f in zip(features, [*factor.unbind()] * sides, strict=True)]
    elif features:
        multiply = torch._foreach_mul if keep else torch._foreach_mul_
        features = list(multiply(features, list(factor.unbind()) * sides) or features)
    if features and features[0].dtype != ctx.dtype:
        features = [part.to(ctx.dtype) for part in features]
    flat = [*features, *(part * factor for part in unit_gradients[num_features:])]
    return _unflatten(flat, ctx.unit_wanted, ctx.num_layers)


def _by_kernel(
    ctx: Any,
    tensors: tuple[Tensor, ...],
    wanted: list[bool],
    grad_reduced: Tensor | None,
    grad_loss: Tensor | None,
    grad_lse: Tensor | None,
) -> _Gradients:
    pairs, (_, lse, positive_weight, *_) = _unpacked(ctx, tensors)
    if grad_loss is None:
        grad_loss = torch.zeros_like(lse)
    if (of_each := _grad_of_each(ctx, tensors, grad_reduced)) is not None:
        grad_loss = grad_loss + of_each.unsqueeze(1)
    # lse only saves work: the derivative through it is part of the op's own.
    flat = torch.ops.mim4dd.contrastive_bwd(
        *pairs, *ctx.critic, lse.detach(), positive_weight, grad_loss, grad_lse, wanted
    )
    return _unflatten(flat, wanted, ctx.num_layers)


class ContrastiveFunction(torch.autograd.Function):
    """The same derivative without a transform or a compiler in sight.

    What torch.library registers takes lists of tensors apart in Python, 0.15 ms a call for four
    layers: as long as they take themselves where they are small. So this goes below it.
    """

    @staticmethod
    def forward(
        ctx: Any, critic: Critic, wanted: list[bool], reduction: int, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of labels, key_labels, excluded, logit_scale, bias, features: what the op returns."""
        shared, features = inputs[:_NUM_SHARED], inputs[_NUM_SHARED:]
        layers = len(features) // 2
        # As plain numbers: the dispatcher takes 4 µs for an enumerator.
        options = critic.kind.value, *critic[1:]
        pairs = list(features[:layers]), list(features[layers:]), *shared, *options
        with below_autograd():
            outputs = torch.ops.mim4dd.contrastive.default(*pairs, reduction, wanted)
        reduced, count, loss, lse, positive_weight, unit_gradients = outputs
        _save(ctx, pairs, (count, lse, positive_weight, *unit_gradients))
        ctx.reduction, ctx.unit_wanted = reduction, wanted
        ctx.mark_non_differentiable(count, positive_weight)
        return reduced, count, loss, lse, positive_weight

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Gradients of the inputs."""
        grad_reduced, _, grad_loss, grad_lse, _ = grad_outputs
        upstream = grad_reduced, grad_loss, grad_lse
        tensors = ctx.saved_tensors  # read once, or a checkpoint raises
        # Where unit gradients were formed, they are all that inputs need.
        factor = _unit_factor(ctx, tensors, *upstream) if any(ctx.unit_wanted) else None
        if factor is None:
            _, _, _, _, _, _, scale, bias, *features = ctx.needs_input_grad
            query, key = features[: ctx.num_layers], features[ctx.num_layers :]
            gradients = _by_kernel(ctx, tensors, [any(query), any(key), scale, bias], *upstream)
        else:
            keep = keeps_graph()
            gradients = _scaled(ctx, tensors, factor, keep)
        shared = _over_layers(gradients)
        return *(None,) * 6, *shared, *gradients.query, *gradients.key


def _setup_bwd(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _save(ctx, inputs, inputs[-5:-1])
    ctx.produced = inputs[-1]


def _backward_bwd(ctx: Any, flat_tangents: list[Tensor | None]) -> tuple[Any, ...]:
    pairs, (lse, positive_weight, grad_loss, grad_lse) = _unpacked(ctx, ctx.saved_tensors)
    tangents = _unflatten(flat_tangents, ctx.produced, ctx.num_layers)
    critic = Critic(*ctx.critic)
    derive = _derivative_through_unit_rows if critic.normalize else _second_derivative
    gradients, on_loss, on_lse = derive(
        pairs, critic, lse, positive_weight, grad_loss, grad_lse, tangents, _wanted(ctx)
    )
    return _returned(gradients, None, None, on_loss, on_lse, None)


def _second_derivative(
    pairs: _Pairs,
    critic: Critic,
    lse: Tensor,
    positive_weight: Tensor,
    grad_loss: Tensor,
    grad_lse: Tensor | None,
    tangents: _Gradients,
    wanted: list[bool],
) -> tuple[_Gradients, Tensor, Tensor | None]:
    """Of ⟨tangents, contrastive_bwd⟩ by pairs, grad_loss and grad_lse."""

    def filled(parts: Sequence[Tensor | None], like: list[Tensor]) -> list[Tensor]:
        return [
            torch.zeros_like(a) if part is None else part
            for part, a in zip(parts, like, strict=True)
        ]

    shared = [
        pairs.logit_scale.new_zeros(len(pairs.query)) if part is None else part
        for part in tangents[2:]
    ]
    on_loss, on_lse, flat = torch.ops.mim4dd.contrastive_bwd_bwd(
        *pairs,
        *critic,
        lse,
        positive_weight,
        grad_loss,
        grad_lse,
        filled(tangents.query, pairs.query),
        filled(tangents.key, pairs.key),
        *shared,
        wanted,
    )
    return (
        _unflatten(flat, wanted, len(pairs.query)),
        on_loss,
        None if grad_lse is None else on_lse,
    )


def _derivative_through_unit_rows(
    pairs: _Pairs,
    critic: Critic,
    lse: Tensor,
    positive_weight: Tensor,
    grad_loss: Tensor,
    grad_lse: Tensor | None,
    tangents: _Gradients,
    wanted: list[bool],
) -> tuple[_Gradients, Tensor | None, Tensor | None]:
    """The same where the op normalises: the chain rule around it, over O((N + M) D) numbers."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, so that a tensor given twice has the gradient of each of its places, and none is
        # reached through another: an upstream gradient may depend on the logit scale.
        query, key = ([rows.view_as(rows) for rows in side] for side in pairs[:2])
        logit_scale, bias, on_loss, on_lse = (
            None if each is None else each.view_as(each)
            for each in (pairs.logit_scale, pairs.bias, grad_loss, grad_lse)
        )
        layers = len(query)
        labels = [pairs.labels] * layers + [pairs.key_labels] * layers
        units, lengths = zip(
            *(
                reference.unit_rows(reference.taking_part(rows, of_rows))
                for rows, of_rows in zip((*query, *key), labels, strict=True)
            ),
            strict=True,
        )
        produced = [any(part is not None for part in side) for side in tangents[:2]]
        produced += [part is not None for part in tangents[2:]]
        flat = torch.ops.mim4dd.contrastive_bwd(
            units[:layers],
            units[layers:],
            pairs.labels,
            pairs.key_labels,
            pairs.excluded,
            logit_scale,
            bias,
            *critic._replace(normalize=False),
            lse,
            positive_weight,
            on_loss,
            on_lse,
            produced,
        )
        of_units = _unflatten(flat, produced, layers)
        outputs, cotangents = [], []
        rows_and_tangents = zip(
            (*of_units.query, *of_units.key),
            (*tangents.query, *tangents.key),
            units,
            lengths,
            strict=True,
        )
        for of_unit, tangent, unit, length in rows_and_tangents:
            if of_unit is not None and tangent is not None:
                outputs.append(reference.unit_rows_bwd(of_unit, unit, length))
                cotangents.append(tangent.to(unit.dtype))
        for part, tangent in zip(of_units[2:], tangents[2:], strict=True):
            if part is not None and tangent is not None:
                outputs.append(part)
                cotangents.append(tangent)
        inputs = [*query, *key, logit_scale, bias, on_loss, on_lse]
        needed = [i for i in inputs if i is not None and i.requires_grad]
        found = torch.autograd.grad(
            outputs, needed, cotangents, create_graph=create_graph, allow_unused=True
        )
    by_input = iter(found)
    ordered = [next(by_input) if i is not None and i.requires_grad else None for i in inputs]
    of_scale, of_bias, of_loss, of_lse = ordered[2 * layers :]
    gradients = _Gradients(ordered[:layers], ordered[layers : 2 * layers], of_scale, of_bias)
    return gradients, of_loss, of_lse


def _backward_bwd_bwd(ctx: Any, *_: Any) -> tuple[Any, ...]:
    raise RuntimeError(NO_THIRD_DERIVATIVE)
