"""The symmetric loss of CLIP: public function, checks and operator registration."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mim4dd import reference
from mim4dd._checks import Backend, Reduction, check_choice
from mim4dd._library import LIB, expect_compiled, use_triton
from mim4dd._transforms import one_by_one
from mim4dd.ops._rules import declare, only
from mim4dd.ops.contrastive import evaluate, reduce_all
from mim4dd.ops.contrastive.inputs import Sides, as_logit_scale, as_sides, positives_of
from mim4dd.ops.contrastive.ranks import Group
from mim4dd.ops.contrastive.rules import contrastive_bwd_bwd
from mim4dd.reference import Critic

__all__ = ["clip_loss"]


def clip_loss(
    query: Tensor,  # (N, D)
    key: Tensor,  # (N, D)
    *,
    labels: Tensor | None = None,  # (N,)
    temperature: Tensor | float = 0.1,
    logit_scale: Tensor | float | None = None,
    reduction: Reduction = "mean",
    normalize: bool = False,
    group: Group | None = None,
    backend: Backend = None,
) -> Tensor:
    r"""InfoNCE of pairs in both directions: query against keys and key against queries.

    .. math::
        \ell_i = \tfrac12 \Big(\log \sum_j e^{s_{ij}} + \log \sum_j e^{s_{ji}}\Big) - s_{ii},
        \qquad s_{ij} = q_i^\top k_j / \tau

    Both log-sum-exps come from one pass over the logits, of which some are held at a time, and the
    gradients of both directions from another: four matrix products, where two calls of
    :func:`mim4dd.info_nce` need at least six. With ``labels`` it is those two calls.

    Args:
        query: One side of the pairs, such as images. (N, D), floating point
        key: The other side, such as texts, in dtype and on device of ``query``. (N, D)
        labels: Pairs with the same label are each other's positives; -1 to ignore a pair. (N,)
        temperature: Softmax temperature τ > 0; a tensor, () or (1,), receives a gradient.
        logit_scale: 1/τ in place of ``temperature``, as CLIP learns it; likewise.
        reduction: ``"mean"`` or ``"sum"`` over the pairs, or ``"none"``.
        normalize: Scale every row of both sides to unit length first.
        group: Processes whose pairs count too: a process group, or :class:`mim4dd.Ranks`. Then each
            direction is a call of :func:`mim4dd.info_nce`; see there.
        backend: None, or ``"reference"`` for the plain PyTorch definition.

    Returns:
        Loss in nats, float32 or wider: a scalar, or (N,) for ``reduction="none"``. NaN, never a
        finite number, if a feature that takes part is NaN or infinite.

    Raises:
        ValueError: On a shape, device or value that the formula does not cover.
        TypeError: On a dtype that it does not cover.

    Example:
        >>> import torch, mim4dd
        >>> mim4dd.clip_loss(torch.eye(3), torch.eye(3), logit_scale=1.0)
        tensor(0.5514)

    References:
        Radford et al. Learning Transferable Visual Models From Natural Language Supervision.
        arXiv:2103.00020, figure 3.
    """
    sides = as_sides(query, key, group)
    if not sides.single or sides.num_queries != sides.num_keys:
        raise ValueError(
            "query and key must both be (N, D), one key for each query, "
            f"got {sides.num_queries} queries and {sides.num_keys} keys"
        )
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    scale = as_logit_scale(sides, temperature, logit_scale)
    if labels is None and backend is None and sides.across is None:
        of_query, of_key, *_ = _loss(sides.query[0], sides.key[0], scale, normalize)
        return reduce_all((of_query + of_key) / 2, reduction)
    of_query, of_key = _by_direction(sides, labels, scale, reduction, normalize, backend)
    return (of_query + of_key) / 2


def _by_direction(
    sides: Sides,
    labels: Tensor | None,
    scale: Tensor,
    reduction: Reduction,
    normalize: bool,
    backend: Backend,
) -> list[Tensor]:
    """Both directions, each on its own."""
    critic = Critic(normalize=normalize)
    losses = []
    for pair in (sides, Sides.of(sides.key, sides.query, True, sides.across)):
        positives = positives_of(pair, None, labels, labels)
        loss, _ = evaluate(pair, positives, scale, None, critic, reduction, backend)
        losses.append(pair.shaped(loss))
    return losses


# Beside the losses the shift of each softmax and its sum of exp(logit − shift).
_OUTPUTS = (
    "Tensor query_loss, Tensor key_loss, Tensor query_shift, Tensor key_shift, Tensor query_sum, "
    "Tensor key_sum"
)
LIB.define(
    f"clip_loss(Tensor query, Tensor key, Tensor logit_scale, bool normalize) -> ({_OUTPUTS})"
)
LIB.define(
    f"clip_loss_bwd(Tensor query, Tensor key, Tensor logit_scale, bool normalize, {_OUTPUTS},"
    " Tensor grad_query_loss, Tensor grad_key_loss)"
    " -> (Tensor grad_query, Tensor grad_key, Tensor grad_logit_scale)"
)
for _name in ("clip_loss", "clip_loss_bwd"):
    expect_compiled(_name, "CPU")
    use_triton(_name, "clip_loss")


@torch.library.register_fake("mim4dd::clip_loss", lib=LIB)
def _fake(query: Tensor, key: Tensor, logit_scale: Tensor, normalize: bool) -> tuple[Tensor, ...]:
    return tuple(logit_scale.new_empty(query.shape[0]) for _ in range(6))


@torch.library.register_fake("mim4dd::clip_loss_bwd", lib=LIB)
def _fake_bwd(query: Tensor, key: Tensor, logit_scale: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return query.new_empty(query.shape), key.new_empty(key.shape), torch.empty_like(logit_scale)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.normalize = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[2:])


def _backward(ctx: Any, on_query: Tensor, on_key: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    query, key, logit_scale, *outputs = ctx.saved_tensors
    # The outputs only save work: the derivative through them is part of the op's own.
    saved = [output.detach() for output in outputs]
    gradients = _loss_bwd(query, key, logit_scale, ctx.normalize, *saved, on_query, on_key)
    return *only(ctx.needs_input_grad[:3], gradients), None


def _setup_bwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, logit_scale, ctx.normalize, *rest = inputs
    ctx.save_for_backward(query, key, logit_scale, *rest)


def _backward_bwd(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
    derive = _derivative_through_unit_rows if ctx.normalize else _second_derivative
    *on_pairs, on_on_query, on_on_key = derive(ctx.saved_tensors, tangents)
    return *on_pairs, *(None,) * 7, on_on_query, on_on_key


def _second_derivative(
    saved: Sequence[Tensor], tangents: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Of ⟨tangents, clip_loss_bwd⟩ by query, key, logit_scale and the upstream gradients.

    Each direction by the op of :func:`mim4dd.info_nce`.
    """
    query, key, scale, _, _, *softmax, on_query, on_key = saved
    query_lse, key_lse = (
        shift + total.log() for shift, total in zip(softmax[:2], softmax[2:], strict=True)
    )
    tangent_query, tangent_key, tangent_scale = tangents
    positives = torch.arange(query.shape[0], device=query.device)
    weight = torch.ones_like(query_lse)

    def direction(
        rows: Tensor, columns: Tensor, lse: Tensor, upstream: Tensor, a: Tensor, b: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        shared = scale.new_zeros(1)
        on_upstream, _, *gradients = contrastive_bwd_bwd(
            *([rows], [columns], positives, None, None, scale, None, *Critic()),
            *(lse[None], weight, upstream[None], None, [a], [b], tangent_scale[None], shared),
            [True, True, True, False],
        )
        return on_upstream[0], gradients

    on_on_query, by_query = direction(query, key, query_lse, on_query, tangent_query, tangent_key)
    on_on_key, by_key = direction(key, query, key_lse, on_key, tangent_key, tangent_query)
    by_scale = (by_query[2] + by_key[2])[0]
    return by_query[0] + by_key[1], by_query[1] + by_key[0], by_scale, on_on_query, on_on_key


def _derivative_through_unit_rows(
    saved: Sequence[Tensor], tangents: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The same where the op normalises: the chain rule around it, over O(N D) numbers."""
    query, key, scale, *outputs, on_query, on_key = saved
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, so that none is reached through another that depends on it.
        inputs = [each.view_as(each) for each in (query, key, scale, on_query, on_key)]
        (query_unit, query_length), (key_unit, key_length) = map(reference.unit_rows, inputs[:2])
        of_query, of_key, of_scale = _loss_bwd(
            query_unit, key_unit, inputs[2], False, *outputs, *inputs[3:]
        )
        gradients = (
            reference.unit_rows_bwd(of_query, query_unit, query_length),
            reference.unit_rows_bwd(of_key, key_unit, key_length),
            of_scale,
        )
        cotangents = [
            tangent.to(gradient.dtype)
            for tangent, gradient in zip(tangents, gradients, strict=True)
        ]
        needed = [each for each in inputs if each.requires_grad]
        found = iter(torch.autograd.grad(gradients, needed, cotangents, create_graph=create_graph))
    return tuple(next(found) if each.requires_grad else None for each in inputs)


def _formula(query: Tensor, key: Tensor, logit_scale: Tensor, normalize: bool) -> list[Tensor]:
    """By the op of :func:`mim4dd.info_nce`, which has a rule for every transform."""
    sides = Sides.of([query], [key], single=True)
    labels = torch.arange(sides.num_queries, device=sides.device)
    return _by_direction(sides, labels, logit_scale, "none", normalize, None)


_loss = declare("clip_loss", _setup, _backward, vmap=one_by_one, formula=_formula)
_loss_bwd = declare("clip_loss_bwd", _setup_bwd, _backward_bwd, vmap=one_by_one)
