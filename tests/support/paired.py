"""What the tests of clip_loss share: its definition, pairs, and what rounding can do to them."""

import torch
import torch.nn.functional as F


def both_directions(query, key, logit_scale):
    """The losses of CLIP's paper: of every query among the keys, of every key among the queries."""
    logits = logit_scale * query @ key.T
    index = torch.arange(len(query), device=query.device)
    return [F.cross_entropy(each, index, reduction="none") for each in (logits, logits.T)]


def make_inputs(n, d, dtype, device, spread=1.0):
    query, key = (
        (F.normalize(torch.randn(n, d, dtype=torch.float64, device=device), dim=1) * size)
        .to(dtype)
        .requires_grad_()
        for size in (spread, 1.0)
    )
    return query, key


def moved_by_rounding(query, key, scale, upstreams, dtype, lengths=(1.0, 1.0)):
    """Norms that the gradients of query, key and scale may move by if logits are rounded.

    Of logits up to s each difference is off by ε s, and so p by no more than 2 ε s p (1 − p). Where
    few queries are undecided, all of the error is that of their largest logits: luck. Gradients of
    rows that were normalised come divided by their ``lengths``.
    """
    logits = scale * query @ key.T
    by_query, by_key = (logits.softmax(dim) for dim in (1, 0))
    weights = upstreams[0][:, None] * by_query * (1 - by_query)
    weights = weights + upstreams[1] * by_key * (1 - by_key)
    weights = 2 * torch.finfo(dtype).eps * logits.abs().max() * weights
    sides = weights @ key.abs() / lengths[0], weights.T @ query.abs() / lengths[1]
    return [*((scale * side).norm() for side in sides), (weights * logits.abs()).sum() / scale]
