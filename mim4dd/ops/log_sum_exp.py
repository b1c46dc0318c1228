"""The log-sum-exp of all logits of a query: public function and checks."""

import torch
from torch import Tensor

from mim4dd._checks import Backend
from mim4dd.ops.contrastive import evaluate
from mim4dd.ops.contrastive.inputs import (
    Features,
    Positives,
    Sides,
    as_logit_scale,
    as_sides,
    excluded_keys,
    masked,
)
from mim4dd.ops.contrastive.ranks import Group
from mim4dd.reference import NO_POSITIVE, Critic

__all__ = ["log_sum_exp"]


def log_sum_exp(
    query: Features,  # (N, D)
    key: Features,  # (M, D)
    *,
    key_mask: Tensor | None = None,  # (M,)
    exclude_self: bool = False,
    self_index: Tensor | None = None,  # (N,)
    exclude_index: Tensor | None = None,  # (N, K)
    temperature: Tensor | float = 0.1,
    logit_scale: Tensor | float | None = None,
    normalize: bool = False,
    group: Group | None = None,
    backend: Backend = None,
) -> Tensor:
    r"""The normaliser of every contrastive softmax, without the logits it sums over.

    .. math:: \operatorname{lse}_i = \log \sum_{j \in A(i)} e^{q_i^\top k_j / \tau}

    Differentiable twice, by fused kernels. What other losses are built from: those with a prior on
    the normaliser, or with positives that are no keys.

    Args:
        query: Queries: (N, D), or layers of them as in :func:`mim4dd.info_nce`.
        key: Keys, in dtype and on device of ``query``. (M, D)
        key_mask: False for keys to ignore. (M,), bool
        exclude_self: Keys are the queries: leave out key i of query i.
        self_index: Where they are among the keys: which key is query i itself, to leave out; -1 for
            none. (N,), integer
        exclude_index: Keys that query i leaves out, such as false negatives, padded with -1: each
            costs a comparison per pair on a GPU. (N, K), integer
        temperature: Softmax temperature τ > 0; a tensor, () or (1,), receives a gradient.
        logit_scale: 1/τ in place of ``temperature``; likewise.
        normalize: Scale every row of both sides to unit length first.
        group: Processes whose keys count too: a process group, or :class:`mim4dd.Ranks`. Queries
            stay on their rank, and indices name keys of it. A mean or sum is over the queries of
            all ranks, and every rank returns it; see docs/distributed.md.
        backend: None, or ``"reference"`` for the plain PyTorch definition.

    Returns:
        In nats, float32 or wider, −inf over no key: (N,), or (L, N) for layers.

    Raises:
        ValueError: On a shape, device or value that the formula does not cover.
        TypeError: On a dtype that it does not cover.

    Example:
        >>> import torch, mim4dd
        >>> mim4dd.log_sum_exp(torch.eye(2), torch.eye(2), temperature=1.0)
        tensor([1.3133, 1.3133])
    """
    sides = as_sides(query, key, group)
    scale = as_logit_scale(sides, temperature, logit_scale)
    excluded = excluded_keys(sides, exclude_self, self_index, exclude_index)
    return log_sum_exp_of(sides, scale, key_mask, excluded, normalize, backend)


def log_sum_exp_of(
    sides: Sides,
    logit_scale: Tensor,
    key_mask: Tensor | None,
    excluded: Tensor | None,  # (N, K)
    normalize: bool,
    backend: Backend,
) -> Tensor:
    """The same of checked arguments."""
    labels = torch.full((sides.num_queries,), NO_POSITIVE, device=sides.device)
    _, contrast = evaluate(
        sides,
        masked(sides, Positives(labels, None), None, key_mask),
        logit_scale,
        None,
        Critic(normalize=normalize),
        "none",
        backend,
        excluded,
    )
    return sides.shaped(contrast.lse)
