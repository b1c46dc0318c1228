"""The op behind every contrastive loss: schemas, kernels and what they return.

Lists hold one tensor per layer: all layers share the number of queries and keys and the labels,
each has a feature size of its own. The first derivative is an op too, and so is the second.
Options are numbers, for every string that an op takes through LibTorch's stable ABI is leaked.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mim4dd._checks import Reduction, refuse_forward_ad
from mim4dd._library import LIB, expect_compiled, use_triton
from mim4dd._transforms import active, register_vmap
from mim4dd.ops import _contrastive_autograd as autograd
from mim4dd.ops import _contrastive_transforms as transforms
from mim4dd.ops._reduction import check_count, reduced_loss
from mim4dd.reference import Contrast, Critic, Reduce

_PAIRS = (
    "Tensor[] query, Tensor[] key, Tensor labels, Tensor? key_labels, Tensor? excluded, "
    "Tensor logit_scale, Tensor? bias"
)
_CRITIC = "int kind, bool decoupled, float hardness, bool normalize"
_UPSTREAM = "Tensor lse, Tensor positive_weight, Tensor grad_loss, Tensor? grad_lse"

# `gradients` says which are wanted: of query, key, logit_scale, bias. They come in that order, the
# last two as one number per layer, (L,). The unit gradients are those of the summed losses, in the
# dtype of the losses: they are to be multiplied before they are rounded to that of the features.
# `reduced`, (L,) and empty for NONE, is formed by the op, as a call of PyTorch's takes as long as
# a small product; `count`, (), is the number of queries that have a positive, in the loss' dtype.
LIB.define(
    f"contrastive({_PAIRS}, {_CRITIC}, int reduction, bool[] gradients)"
    " -> (Tensor reduced, Tensor count, Tensor loss, Tensor lse, Tensor positive_weight,"
    " Tensor[] unit_gradients)"
)
LIB.define(f"contrastive_bwd({_PAIRS}, {_CRITIC}, {_UPSTREAM}, bool[] gradients) -> Tensor[]")
LIB.define(
    f"contrastive_bwd_bwd({_PAIRS}, {_CRITIC}, {_UPSTREAM}, Tensor[] tangent_query,"
    " Tensor[] tangent_key, Tensor tangent_logit_scale, Tensor tangent_bias, bool[] gradients)"
    " -> (Tensor grad_grad_loss, Tensor grad_grad_lse, Tensor[] gradients)"
)


def contrastive(
    query: Sequence[Tensor],  # L of (N, D)
    key: Sequence[Tensor],  # L of (M, D)
    labels: Tensor,  # (N,) int64
    key_labels: Tensor | None,  # (M,) int64
    excluded: Tensor | None,  # (N, K) int64
    logit_scale: Tensor,  # ()
    bias: Tensor | None,  # ()
    critic: Critic,
    *,
    uniform: bool,
) -> Contrast:
    """:func:`mim4dd.reference.contrastive` of every layer, by kernels: loss and lse (L, N).

    ``uniform`` announces that all queries of a layer will have the same upstream gradient, as after
    a sum or a mean: then gradients are formed along with the losses, by three matrix products
    instead of four. Where it turns out wrong that costs time, never the result.
    """
    shared = labels, key_labels, excluded, logit_scale, bias
    return _evaluate(query, key, *shared, critic, "none", uniform)[1]


def reduced_contrastive(
    query: Sequence[Tensor],  # L of (N, D)
    key: Sequence[Tensor],  # L of (M, D)
    labels: Tensor,  # (N,) int64
    key_labels: Tensor | None,  # (M,) int64
    excluded: Tensor | None,  # (N, K) int64
    logit_scale: Tensor,  # ()
    bias: Tensor | None,  # ()
    critic: Critic,
    reduction: Reduction,
) -> tuple[Tensor, Contrast]:
    """The reduced loss of every layer, (L,) or (L, N), and what it was reduced from."""
    shared = labels, key_labels, excluded, logit_scale, bias
    return _evaluate(query, key, *shared, critic, reduction, reduction != "none")


def _evaluate(
    query: Sequence[Tensor],
    key: Sequence[Tensor],
    labels: Tensor,
    key_labels: Tensor | None,
    excluded: Tensor | None,
    logit_scale: Tensor,
    bias: Tensor | None,
    critic: Critic,
    reduction: Reduction,
    uniform: bool,
) -> tuple[Tensor, Contrast]:
    shared = labels, key_labels, excluded, logit_scale, bias
    compiling = torch.compiler.is_compiling()
    if compiling:
        scalars = (logit_scale,) if bias is None else (logit_scale, bias)
        refuse_forward_ad("the compiled contrastive kernel", *query, *key, *scalars)
    elif active():
        contrast = transforms.contrast(query, key, *shared, critic)
        return reduced_loss(contrast, reduction), contrast
    wanted = _wanted(query, key, logit_scale, bias, uniform)
    if compiling:  # it has no rules for ContrastiveFunction
        outputs = torch.ops.mim4dd.contrastive(
            list(query), list(key), *shared, *critic, Reduce[reduction.upper()], wanted
        )
    else:
        outputs = autograd.ContrastiveFunction.apply(
            critic, wanted, Reduce[reduction.upper()].value, *shared, *query, *key
        )
    reduced, count, *of_queries = outputs[:5]
    contrast = Contrast(*of_queries)
    if reduction == "none":
        return contrast.loss, contrast
    check_count(count, len(labels))
    return reduced, contrast


def _wanted(
    query: Sequence[Tensor],
    key: Sequence[Tensor],
    logit_scale: Tensor,
    bias: Tensor | None,
    uniform: bool,
) -> list[bool]:
    """Which gradients to form along with the losses."""
    if not uniform or not torch.is_grad_enabled():
        return [False] * 4
    of_bias = bias is not None and bias.requires_grad
    return [*map(_any_requires_grad, (query, key)), logit_scale.requires_grad, of_bias]


def _any_requires_grad(features: Sequence[Tensor]) -> bool:
    return any(layer.requires_grad for layer in features)


for _name in ("contrastive", "contrastive_bwd", "contrastive_bwd_bwd"):
    expect_compiled(_name, "CPU")
    use_triton(_name, "contrastive")
    register_vmap(getattr(torch.ops.mim4dd, _name).default)


def _empty_gradients(
    query: list[Tensor],
    key: list[Tensor],
    logit_scale: Tensor,
    wanted: list[bool],
    dtype: torch.dtype,
) -> list[Tensor]:
    sides = [side for side, is_wanted in zip((query, key), wanted[:2], strict=True) if is_wanted]
    of_features = [
        features.new_empty(features.shape, dtype=dtype) for side in sides for features in side
    ]
    return of_features + [logit_scale.new_empty(len(query)) for _ in range(sum(wanted[2:]))]


@torch.library.register_fake("mim4dd::contrastive", lib=LIB)
def _fake(
    query: list[Tensor], key: list[Tensor], labels: Tensor, _: Any, __: Any, logit_scale: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    *_, reduction, gradients = rest
    reduced = logit_scale.new_empty(0 if reduction == Reduce.NONE else len(query))
    loss = logit_scale.new_empty(len(query), labels.shape[0])
    of_queries = loss, torch.empty_like(loss), logit_scale.new_empty(labels.shape)
    unit_gradients = _empty_gradients(query, key, logit_scale, gradients, logit_scale.dtype)
    return reduced, logit_scale.new_empty(()), *of_queries, unit_gradients


@torch.library.register_fake("mim4dd::contrastive_bwd", lib=LIB)
def _fake_bwd(
    query: list[Tensor], key: list[Tensor], _: Any, __: Any, ___: Any, logit_scale: Tensor,
    *rest: Any,
) -> list[Tensor]:  # fmt: skip
    return _empty_gradients(query, key, logit_scale, rest[-1], query[0].dtype)


@torch.library.register_fake("mim4dd::contrastive_bwd_bwd", lib=LIB)
def _fake_bwd_bwd(
    query: list[Tensor], key: list[Tensor], labels: Tensor, _: Any, __: Any, logit_scale: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    first = logit_scale.new_empty(len(query), labels.shape[0])
    return (
        first,
        torch.empty_like(first),
        _empty_gradients(query, key, logit_scale, rest[-1], query[0].dtype),
    )


autograd.register(LIB)
