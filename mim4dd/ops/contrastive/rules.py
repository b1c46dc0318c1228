"""Derivatives of the contrastive op: each order is an op that the one before it calls.

docs/math.md, "Derivatives", has the formulas. A third derivative raises.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

import mim4dd.ops.contrastive.op  # noqa: F401  defines what is declared here
from mim4dd import reference
from mim4dd._checks import can_look_at
from mim4dd._torch_private import keeps_graph
from mim4dd._transforms import is_batched, one_by_one
from mim4dd.ops._rules import declare, is_plain, save
from mim4dd.reference import Critic, Reduce

NO_THIRD_DERIVATIVE = (
    "the contrastive kernels have two derivatives, and a third was asked for: "
    "pass backend='reference'"
)
NO_FORWARD_OVER_FORWARD = (
    "the contrastive kernels have no forward mode over forward mode: "
    "take forward over reverse, as torch.func.hessian does, or pass backend='reference'"
)

NONE_WANTED = [False] * 4
_NUM_PAIRS, _NUM_CRITIC = 7, 4  # arguments of the schemas: pairs, then critic, then the rest
_NUM_SHARED = 5  # of the pairs, what all layers share

Some = Sequence[Tensor | None]


class _Pairs(NamedTuple):
    """The arguments that all three ops begin with."""

    query: list[Tensor]
    key: list[Tensor]
    labels: Tensor
    key_labels: Tensor | None
    excluded: Tensor | None
    logit_scale: Tensor
    bias: Tensor | None


class _Parts(NamedTuple):
    """Gradients of pairs, or tangents; None where there is none or none is wanted."""

    query: Some
    key: Some
    logit_scale: Tensor | None  # (L,)
    bias: Tensor | None  # (L,)

    def returned(self, *rest: Some | Tensor | None) -> tuple[Any, ...]:
        """What a backward returns: by pairs, none of the critic, ``rest``."""
        scale, bias = (None if part is None else part.sum() for part in self[2:])
        return self.query, self.key, None, None, None, scale, bias, *(None,) * _NUM_CRITIC, *rest

    def filled(self, pairs: _Pairs) -> list[Any]:
        """With zeros where there is none."""
        features = [
            [torch.zeros_like(x) if part is None else part for part, x in zip(*side, strict=True)]
            for side in zip(self[:2], pairs[:2], strict=True)
        ]
        numbers = [
            pairs.logit_scale.new_zeros(len(pairs.query)) if part is None else part
            for part in self[2:]
        ]
        return [*features, *numbers]


def _parts(flat: Sequence[Any], wanted: Sequence[bool], num_layers: int) -> _Parts:
    """Of the list that an op returns."""
    end_of_query = num_layers * wanted[0]
    end_of_key = end_of_query + num_layers * wanted[1]
    none = [None] * num_layers
    return _Parts(
        list(flat[:end_of_query]) or none,
        list(flat[end_of_query:end_of_key]) or none,
        flat[end_of_key] if wanted[2] else None,
        flat[-1] if wanted[3] else None,
    )


def _tangents(given: Sequence[Any], num_layers: int) -> _Parts:
    """Of pairs, as forward mode gives them."""
    query, key, _, _, _, *numbers = given[:_NUM_PAIRS]
    scale, bias = (None if number is None else number.expand(num_layers) for number in numbers)
    return _Parts(query, key, scale, bias)


def _keep(ctx: Any, inputs: Sequence[Any], rest: Some) -> None:
    query, key, *shared = inputs[:_NUM_PAIRS]
    ctx.num_layers, ctx.dtype = len(query), query[0].dtype
    ctx.critic = inputs[_NUM_PAIRS : _NUM_PAIRS + _NUM_CRITIC]
    save(ctx, *query, *key, *shared, *rest)
    ctx.set_materialize_grads(False)


def _kept(ctx: Any, tensors: Sequence[Any]) -> tuple[_Pairs, Sequence[Any]]:
    layers, end = ctx.num_layers, 2 * ctx.num_layers + _NUM_SHARED
    query, key = list(tensors[:layers]), list(tensors[layers : 2 * layers])
    return _Pairs(query, key, *tensors[2 * layers : end]), tensors[end:]


def _wanted(needs_input_grad: Sequence[Any]) -> list[bool]:
    query, key, _, _, _, logit_scale, bias = needs_input_grad[:_NUM_PAIRS]
    return [True in query, True in key, logit_scale, bias]


def _setup(ctx: Any, inputs: Sequence[Any], output: Sequence[Any]) -> None:
    reduced, count, _, lse, positive_weight, *hidden = output
    unit_gradients = hidden[0] if hidden else []
    _keep(ctx, inputs, (count, lse, positive_weight, *unit_gradients))
    ctx.reduction = inputs[-2]
    ctx.unit_wanted = inputs[-1] if hidden else NONE_WANTED
    constants = count, positive_weight, *unit_gradients
    if ctx.reduction == Reduce.NONE:  # `reduced` is empty
        ctx.mark_non_differentiable(reduced, *constants)
    else:
        ctx.mark_non_differentiable(*constants)


def _backward(
    ctx: Any,
    grad_reduced: Tensor | None,
    _: Any,
    grad_loss: Tensor | None,
    grad_lse: Tensor | None,
    __: Any,
) -> tuple[Any, ...]:
    upstream, wanted = (grad_reduced, grad_loss, grad_lse), _wanted(ctx.needs_input_grad)
    tensors = ctx.saved_tensors  # read once, or a checkpoint raises
    factor = _unit_factor(ctx, *upstream) if _are_formed(ctx, wanted) else None
    if factor is None:
        gradients = _by_kernel(ctx, tensors, wanted, *upstream)
    else:
        gradients = _scaled(ctx, tensors, factor)
    return gradients.returned(None, None)


def _are_formed(ctx: Any, wanted: list[bool]) -> bool:
    """Whether all gradients were formed along with the losses."""
    return True in ctx.unit_wanted and all(map(bool.__ge__, ctx.unit_wanted, wanted))


def _unit_factor(
    ctx: Any, grad_reduced: Tensor | None, grad_loss: Tensor | None, grad_lse: Tensor | None
) -> Tensor | None:
    """What makes the unit gradients those wanted, (L,); None if nothing does."""
    # With create_graph the result has to be differentiable, and the unit gradients are constants.
    if grad_lse is not None or torch.is_grad_enabled():
        return None
    if ctx.reduction != Reduce.NONE:
        return grad_reduced if grad_loss is None else None
    if grad_loss is None:
        return None
    uniform = grad_loss.shape[1] == 1 or grad_loss.stride(1) == 0  # no look at values: no GPU waits
    return grad_loss[:, 0] if uniform else None


def _is_one(factor: Tensor) -> bool:
    """Whether it is seen to change nothing, as of a loss that backward is called on itself."""
    return can_look_at(factor) and type(factor) is Tensor and set(factor.tolist()) == {1.0}


def _scaled(ctx: Any, tensors: Sequence[Any], factor: Tensor) -> _Parts:
    """The unit gradients times ``factor`` (L,); in their place, where nothing else has them.

    They are wide: only their product is rounded to the features' dtype. A sum over queries may be
    beyond float16 where the mean is not.
    """
    sides, singles = sum(ctx.unit_wanted[:2]), sum(ctx.unit_wanted[2:])
    num_features = sides * ctx.num_layers
    unit_gradients = tensors[-num_features - singles :]
    features, numbers = list(unit_gradients[:num_features]), unit_gradients[num_features:]
    in_place = is_plain(ctx) and not keeps_graph()
    if is_batched(factor):  # for these there is no product of lists
        by = [*factor.unbind()] * sides
        features = [each * f for each, f in zip(features, by, strict=True)]
        numbers = [part * factor for part in numbers]
    elif not (in_place and _is_one(factor)):
        if features:
            multiply = torch._foreach_mul_ if in_place else torch._foreach_mul
            features = list(multiply(features, list(factor.unbind()) * sides) or features)
        numbers = [part * factor for part in numbers]
    if features and features[0].dtype != ctx.dtype:
        features = [part.to(ctx.dtype) for part in features]
    return _parts([*features, *numbers], ctx.unit_wanted, ctx.num_layers)


def _by_kernel(
    ctx: Any,
    tensors: Sequence[Any],
    wanted: list[bool],
    grad_reduced: Tensor | None,
    grad_loss: Tensor | None,
    grad_lse: Tensor | None,
) -> _Parts:
    pairs, (count, lse, positive_weight, *_) = _kept(ctx, tensors)
    if grad_loss is None:
        grad_loss = torch.zeros_like(lse)
    if grad_reduced is not None and ctx.reduction != Reduce.NONE:
        of_each = grad_reduced / count if ctx.reduction == Reduce.MEAN else grad_reduced
        grad_loss = grad_loss + of_each.unsqueeze(1)
    # lse only saves work: the derivative through it is part of the op's own.
    flat = contrastive_bwd(
        *pairs, *ctx.critic, lse.detach(), positive_weight, grad_loss, grad_lse, wanted
    )
    return _parts(flat, wanted, ctx.num_layers)


def _jvp(ctx: Any, *given: Any) -> tuple[Any, ...]:
    pairs, (count, lse, positive_weight, *_) = _kept(ctx, ctx.saved_tensors)
    tangents = _tangents(given, ctx.num_layers).filled(pairs)
    saved = lse.detach(), positive_weight, torch.zeros_like(lse), None
    along_loss, along_lse = contrastive_bwd_bwd(*pairs, *ctx.critic, *saved, *tangents, NONE_WANTED)
    how = Reduce(ctx.reduction)
    reduced = None if how == Reduce.NONE else reference.reduce_queries(along_loss, count, how)
    return reduced, None, along_loss, along_lse, None


def _setup_bwd(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    _keep(ctx, inputs, inputs[-5:-1])
    ctx.produced = inputs[-1]


def _backward_bwd(ctx: Any, *along: Tensor | None) -> tuple[Any, ...]:
    pairs, (lse, positive_weight, grad_loss, grad_lse) = _kept(ctx, ctx.saved_tensors)
    tangents = _parts(along, ctx.produced, ctx.num_layers)
    critic = Critic(*ctx.critic)
    saved = lse, positive_weight, grad_loss, grad_lse
    if critic.normalize:
        gradients, on_loss, on_lse = _through_unit_rows(pairs, critic, saved, tangents)
    else:
        wanted = _wanted(ctx.needs_input_grad)
        on_loss, on_lse, *flat = contrastive_bwd_bwd(
            *pairs, *critic, *saved, *tangents.filled(pairs), wanted
        )
        gradients = _parts(flat, wanted, ctx.num_layers)
    return gradients.returned(None, None, on_loss, None if grad_lse is None else on_lse, None)


def _through_unit_rows(
    pairs: _Pairs, critic: Critic, saved: Sequence[Any], tangents: _Parts
) -> tuple[_Parts, Tensor | None, Tensor | None]:
    """The same where the op normalises: the chain rule around it, over O((N + M) D) numbers."""
    create_graph, layers = torch.is_grad_enabled(), len(pairs.query)
    lse, positive_weight, grad_loss, grad_lse = saved
    with torch.enable_grad():
        # Aliases, so that a tensor given twice has the gradient of each of its places, and none is
        # reached through another: an upstream gradient may depend on the logit scale.
        query, key = ([rows.view_as(rows) for rows in side] for side in pairs[:2])
        logit_scale, bias, on_loss, on_lse = (
            None if each is None else each.view_as(each)
            for each in (pairs.logit_scale, pairs.bias, grad_loss, grad_lse)
        )
        labels = [pairs.labels] * layers + [pairs.key_labels] * layers
        units, lengths = zip(
            *(
                reference.unit_rows(reference.taking_part(rows, of_rows))
                for rows, of_rows in zip((*query, *key), labels, strict=True)
            ),
            strict=True,
        )
        of_units = _parts(
            contrastive_bwd(
                *(list(units[:layers]), list(units[layers:]), *pairs[2:5], logit_scale, bias),
                *critic._replace(normalize=False),
                *(lse, positive_weight, on_loss, on_lse),
                produced := [
                    *(any(part is not None for part in side) for side in tangents[:2]),
                    *(part is not None for part in tangents[2:]),
                ],
            ),
            produced,
            layers,
        )
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
    gradients = _Parts(ordered[:layers], ordered[layers : 2 * layers], of_scale, of_bias)
    return gradients, of_loss, of_lse


def _jvp_bwd(ctx: Any, *given: Any) -> tuple[Any, ...]:
    """Linear in the upstream gradients, and the Hessian in the inputs is symmetric."""
    pairs, (lse, positive_weight, grad_loss, grad_lse) = _kept(ctx, ctx.saved_tensors)
    inputs, produced = (*pairs, *ctx.critic, lse, positive_weight), ctx.produced
    tangents = _tangents(given, ctx.num_layers).filled(pairs)
    _, _, *flat = contrastive_bwd_bwd(*inputs, grad_loss, grad_lse, *tangents, produced)
    along_loss, along_lse = given[-3:-1]
    if along_loss is None and along_lse is None:
        return tuple(flat)
    along_loss = torch.zeros_like(lse) if along_loss is None else along_loss
    linear = contrastive_bwd(*inputs, along_loss, along_lse, produced)
    return tuple(a + b for a, b in zip(linear, flat, strict=True))


def _setup_bwd_bwd(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    *_, lse, positive_weight, _, _, tangent_query, tangent_key, scale, bias, produced = inputs
    _keep(ctx, inputs, (lse, positive_weight, *tangent_query, *tangent_key, scale, bias))
    ctx.produced = produced


def _backward_bwd_bwd(
    ctx: Any, on_along_loss: Tensor | None, on_along_lse: Tensor | None, *third: Tensor | None
) -> tuple[Any, ...]:
    """Of the losses' derivatives along tangents, which forward mode asks for.

    These outputs do not depend on the upstream gradients.
    """
    if any(part is not None for part in third):
        raise RuntimeError(NO_THIRD_DERIVATIVE)
    pairs, (lse, positive_weight, *tangents) = _kept(ctx, ctx.saved_tensors)
    layers = ctx.num_layers
    on_along_loss = torch.zeros_like(lse) if on_along_loss is None else on_along_loss
    inputs = *pairs, *ctx.critic, lse, positive_weight, on_along_loss, on_along_lse
    of_query, of_key, of_scale, of_bias = ctx.needs_input_grad[-5:-1]
    wanted = _wanted(ctx.needs_input_grad)
    sides = tangents[:layers], tangents[layers : 2 * layers]
    _, _, *flat = contrastive_bwd_bwd(*inputs, *sides, *tangents[2 * layers :], wanted)
    of_tangents = [True in of_query, True in of_key, of_scale, of_bias and pairs.bias is not None]
    by_tangents = _parts(contrastive_bwd(*inputs, of_tangents), of_tangents, layers)
    return _parts(flat, wanted, layers).returned(*(None,) * 4, *by_tangents, None)


def _refuse_forward(ctx: Any, *_: Any) -> NoReturn:
    raise RuntimeError(NO_THIRD_DERIVATIVE if True in ctx.produced else NO_FORWARD_OVER_FORWARD)


contrastive = declare(
    "contrastive", _setup, _backward, vmap=one_by_one, jvp=_jvp, lists=(0, 1), outputs=5
)
contrastive_bwd = declare(
    "contrastive_bwd", _setup_bwd, _backward_bwd, vmap=one_by_one, jvp=_jvp_bwd, lists=(0, 1)
)
contrastive_bwd_bwd = declare(
    "contrastive_bwd_bwd",
    _setup_bwd_bwd,
    _backward_bwd_bwd,
    vmap=one_by_one,
    jvp=_refuse_forward,
    lists=(0, 1, 15, 16),
)
