"""InfoNCE against negatives that are named, where the positives are no keys of other queries."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mim4dd import reference
from mim4dd._checks import (
    Backend,
    Reduction,
    check_choice,
    check_floating,
    check_matching,
    check_same_device,
    check_tensor,
    mix_under_autocast,
    promoted,
)
from mim4dd.ops._contrastive import Layers
from mim4dd.ops._reduction import reduce_all
from mim4dd.ops.log_sum_exp import log_sum_exp_of


def against_negatives(
    layers: Layers,  # one of queries (N, D) and positives (N, D)
    negative_keys: Tensor,  # (M, D) or (N, M, D)
    negative_mask: Tensor | None,  # (M,) or (N, M)
    logit_scale: Tensor,  # ()
    reduction: Reduction,
    normalize: bool,
    backend: Backend,
) -> Tensor:
    """−log σ(the positive's logit − lse of the negatives): exact also where p is 1."""
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if not layers.single or layers.num_queries != layers.num_keys:
        raise ValueError(
            "with negative_keys, query and key must both be (N, D), key i being the positive of "
            f"query i: got {layers.num_queries} queries and {layers.num_keys} keys"
        )
    query, key = layers.query[0], layers.key[0]
    check_floating("negative_keys", negative_keys)
    if mix_under_autocast(query, negative_keys):
        check_same_device("query", query, "negative_keys", negative_keys)
        query, key, negative_keys = promoted(query, key, negative_keys)
    else:
        check_matching("query", query, "negative_keys", negative_keys)
    paired = negative_keys.dim() == 3
    allowed = query.shape if paired else query.shape[1:]
    given = (
        (*negative_keys.shape[:1], *negative_keys.shape[2:]) if paired else negative_keys.shape[1:]
    )
    if negative_keys.dim() not in (2, 3) or given != allowed or 0 in negative_keys.shape:
        raise ValueError(
            f"negative_keys must be (M, D) or (N, M, D), with query (N, D) {tuple(query.shape)}, "
            f"got {tuple(negative_keys.shape)}"
        )
    if negative_mask is not None:
        _check_mask(negative_mask, negative_keys)

    def rows(features: Tensor) -> Tensor:
        return reference.unit_rows(features)[0] if normalize else features.to(layers.dtype)

    with torch.autocast(query.device.type, enabled=False):
        wide_query = rows(query)
        positive = logit_scale * (wide_query * rows(key)).sum(1)
        if paired:
            # Of size 1/D of the negatives themselves: nothing to fuse.
            if negative_mask is not None:  # what is masked may hold anything
                negative_keys = negative_keys.where(negative_mask[..., None], 0)
            logits = logit_scale * torch.einsum("nd,nmd->nm", wide_query, rows(negative_keys))
            logits = logits.masked_fill(~logits.isfinite(), math.nan)
            if negative_mask is None:
                lse = logits.logsumexp(1)
            else:
                lse = reference.log_sum_exp(logits, negative_mask)
        else:
            negatives = Layers([query], [negative_keys], single=True)
            lse = log_sum_exp_of(negatives, logit_scale, negative_mask, None, normalize, backend)
    # Not softplus, which PyTorch replaces by its asymptote from 20 on.
    loss = -F.logsigmoid(positive.masked_fill(~positive.isfinite(), math.nan) - lse)
    return reduce_all(loss, reduction)


def _check_mask(negative_mask: Tensor, negative_keys: Tensor) -> None:
    check_tensor("negative_mask", negative_mask)
    if negative_mask.dtype != torch.bool:
        raise TypeError(f"negative_mask must have dtype torch.bool, got {negative_mask.dtype}")
    check_same_device("negative_mask", negative_mask, "negative_keys", negative_keys)
    if negative_mask.shape != negative_keys.shape[:-1]:
        raise ValueError(
            "negative_mask must hold one entry per row of negative_keys "
            f"{tuple(negative_keys.shape)}, got shape {tuple(negative_mask.shape)}"
        )
