"""The op behind every contrastive loss, and as ops its two derivatives: schemas and kernels.

Lists hold one tensor per layer: all layers share the number of queries and keys and the labels,
each has a feature size of its own.
Options are numbers, for every string that an op takes through LibTorch's stable ABI is leaked.
"""

from typing import Any

import torch
from torch import Tensor

from mim4dd._library import LIB, expect_compiled, use_triton
from mim4dd.reference import Reduce

_PAIRS = (
    "Tensor[] query, Tensor[] key, Tensor labels, Tensor? key_labels, Tensor? excluded, "
    "Tensor logit_scale, Tensor? bias"
)
_CRITIC = "int kind, bool decoupled, float hardness, bool normalize"
_UPSTREAM = "Tensor lse, Tensor positive_weight, Tensor grad_loss, Tensor? grad_lse"

# A bias is one number, or one for each query, which then has no gradient.
# `gradients` says which are wanted: of query, key, logit_scale, bias. They come in that order, the
# last two as one number per layer, (L,). The unit gradients are those of the reduced losses, for
# NONE of the summed ones, in the dtype of the losses: they are to be multiplied before they are
# rounded to that of the features.
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
for _name in ("contrastive", "contrastive_bwd", "contrastive_bwd_bwd"):
    expect_compiled(_name, "CPU")
    use_triton(_name, "contrastive")


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
