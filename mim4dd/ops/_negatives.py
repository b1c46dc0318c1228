"""InfoNCE against negatives that are named, where the positives are no keys of other queries."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mim4dd import reference
from mim4dd._checks import Backend, Reduction, check_choice, check_floating, check_matching
from mim4dd.ops._contrastive import Layers
from mim4dd.ops._reduction import reduce_all
from mim4dd.ops.log_sum_exp import log_sum_exp_of


def against_negatives(
    layers: Layers,  # one of queries (N, D) and positives (N, D)
    negative_keys: Tensor,  # (M, D) or (N, M, D)
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

    def rows(features: Tensor) -> Tensor:
        return reference.unit_rows(features)[0] if normalize else features.to(layers.dtype)

    with torch.autocast(query.device.type, enabled=False):
        positive = logit_scale * (rows(query) * rows(key)).sum(1)
        if paired:
            # Of size 1/D of the negatives themselves: nothing to fuse.
            logits = logit_scale * torch.einsum("nd,nmd->nm", rows(query), rows(negative_keys))
            lse = logits.masked_fill(~logits.isfinite(), math.nan).logsumexp(1)
        else:
            negatives = Layers([query], [negative_keys], single=True)
            lse = log_sum_exp_of(negatives, logit_scale, None, None, normalize, backend)
    # Not softplus, which PyTorch replaces by its asymptote from 20 on.
    loss = -F.logsigmoid(positive.masked_fill(~positive.isfinite(), math.nan) - lse)
    return reduce_all(loss, reduction)
