"""Supervised contrastive loss: public function and checks."""

from typing import Literal

from torch import Tensor

from mim4dd._checks import Backend, Reduction, check_choice
from mim4dd.ops.contrastive import evaluate
from mim4dd.ops.contrastive.inputs import (
    Features,
    as_logit_scale,
    as_sides,
    by_label,
    check_hardness,
    excluded_keys,
    masked,
)
from mim4dd.ops.contrastive.ranks import Group
from mim4dd.reference import Critic, Kind

__all__ = ["sup_con"]


def sup_con(
    query: Features,  # (N, D)
    key: Features,  # (M, D)
    labels: Tensor,  # (N,)
    key_labels: Tensor,  # (M,)
    *,
    variant: Literal["out", "in"] = "out",
    query_mask: Tensor | None = None,  # (N,)
    key_mask: Tensor | None = None,  # (M,)
    exclude_self: bool = False,
    self_index: Tensor | None = None,  # (N,)
    exclude_index: Tensor | None = None,  # (N, K)
    decoupled: bool = False,
    hardness: float = 0.0,
    temperature: Tensor | float = 0.1,
    logit_scale: Tensor | float | None = None,
    reduction: Reduction = "mean",
    normalize: bool = False,
    group: Group | None = None,
    backend: Backend = None,
) -> Tensor:
    r"""Supervised contrastive loss: every key of the query's class is a positive.

    .. math::
        \ell^{out}_i &= \log \sum_{j} e^{s_{ij}} - \frac{1}{|P(i)|} \sum_{p \in P(i)} s_{ip} \\
        \ell^{in}_i &= \log \sum_{j} e^{s_{ij}} - \log \frac{1}{|P(i)|} \sum_{p \in P(i)} e^{s_{ip}}

    with :math:`s_{ij} = q_i^\top k_j / \tau`. ``"out"`` is :func:`mim4dd.info_nce` with labels, and
    what is said there of memory, precision and repeatability holds for both. Keys are a set of
    their own: where they are the queries, pass ``exclude_self``, or each is among its positives.

    Args:
        query: Queries, floating point: (N, D), or layers of them as in :func:`mim4dd.info_nce`.
        key: Keys, in dtype and on device of ``query``. (M, D)
        labels: Class of each query; -1 to ignore it. (N,), integer
        key_labels: Class of each key; -1 to ignore it. (M,), integer
        variant: Whether the mean over the positives stands outside the logarithm or inside.
        query_mask: False for queries to ignore; what is ignored may hold anything. (N,), bool
        key_mask: False for keys to ignore. (M,), bool
        exclude_self: Keys are the queries: leave out key i of query i.
        self_index: Where they are among the keys: which key is query i itself, to leave out; -1 for
            none. (N,), integer
        exclude_index: Keys that query i leaves out, such as false negatives, padded with -1: each
            costs a comparison per pair on a GPU. (N, K), integer
        decoupled: Leave the positives out of the denominator.
        hardness: α ≥ 0 weighs every negative by exp(α q·k), without a gradient through that.
        temperature: Softmax temperature τ > 0; a tensor, () or (1,), receives a gradient.
        logit_scale: 1/τ in place of ``temperature``; likewise.
        reduction: ``"mean"`` or ``"sum"`` over the queries that have a positive, or ``"none"``.
        normalize: Scale every row of both sides to unit length first.
        group: Processes whose keys count too: a process group, or :class:`mim4dd.Ranks`. Queries
            stay on their rank, and indices name keys of it. A mean or sum is over the queries of
            all ranks, and every rank returns it; see docs/distributed.md.
        backend: None, or ``"reference"`` for the plain PyTorch definition.

    Returns:
        Loss in nats, float32 or wider: a scalar, or (N,) for ``reduction="none"``; for layers with
            a leading axis L.

    Raises:
        ValueError: On a shape, device or value that the formula does not cover.
        TypeError: On a dtype that it does not cover.

    Example:
        >>> import torch, mim4dd
        >>> labels = torch.tensor([0, 0, 1])
        >>> mim4dd.sup_con(torch.eye(3), torch.eye(3), labels, labels, temperature=1.0)
        tensor(0.8848)

    References:
        Khosla et al. Supervised Contrastive Learning. arXiv:2004.11362, eq. 2 and 3.
    """
    check_choice("variant", variant, ("out", "in"))
    check_hardness(hardness)
    sides = as_sides(query, key, group)
    loss, _ = evaluate(
        sides,
        masked(sides, by_label(sides, labels, key_labels), query_mask, key_mask),
        as_logit_scale(sides, temperature, logit_scale),
        None,
        Critic(Kind[variant.upper()], decoupled, float(hardness), normalize),
        reduction,
        backend,
        excluded_keys(sides, exclude_self, self_index, exclude_index),
    )
    return sides.shaped(loss)
