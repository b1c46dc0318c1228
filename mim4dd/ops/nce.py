"""Noise-contrastive loss with a binary critic: public function and checks."""

from torch import Tensor

from mim4dd._checks import Backend, Reduction
from mim4dd.ops.contrastive import evaluate
from mim4dd.ops.contrastive.inputs import (
    Features,
    as_bias,
    as_logit_scale,
    as_sides,
    by_label,
    check_hardness,
    excluded_keys,
    masked,
)
from mim4dd.ops.contrastive.ranks import Group
from mim4dd.reference import Critic, Kind

__all__ = ["nce"]


def nce(
    query: Features,  # (N, D)
    key: Features,  # (M, D)
    labels: Tensor,  # (N,)
    key_labels: Tensor,  # (M,)
    *,
    query_mask: Tensor | None = None,  # (N,)
    key_mask: Tensor | None = None,  # (M,)
    exclude_self: bool = False,
    self_index: Tensor | None = None,  # (N,)
    exclude_index: Tensor | None = None,  # (N, K)
    hardness: float = 0.0,
    temperature: Tensor | float = 0.1,
    logit_scale: Tensor | float | None = None,
    bias: Tensor | float | None = None,
    reduction: Reduction = "mean",
    normalize: bool = False,
    group: Group | None = None,
    backend: Backend = None,
) -> Tensor:
    r"""Noise-contrastive loss: is each pair of query and key of one class, or not?

    .. math::
        \ell_i = -\sum_{p \in P(i)} \log h_{ip} - \sum_{j \notin P(i)} \log(1 - h_{ij}), \qquad
        h_{ij} = \sigma(q_i^\top k_j / \tau + b)

    The default bias is :math:`b_i = -\log(N_i / M)`, with :math:`N_i` negatives of M keys: the
    N/M of the papers' critic with the keys at hand standing for the data set. To reproduce their
    critic over a memory bank, pass :math:`b = -\log(N/M) - \log Z`.
    Memory, precision and repeatability are as in :func:`mim4dd.info_nce`.

    Args:
        query: Queries, floating point: (N, D), or layers of them as in :func:`mim4dd.info_nce`.
        key: Keys, in dtype and on device of ``query``. (M, D)
        labels: Class of each query; -1 to ignore it. (N,), integer
        key_labels: Class of each key; -1 to ignore it. (M,), integer
        query_mask: False for queries to ignore; what is ignored may hold anything. (N,), bool
        key_mask: False for keys to ignore. (M,), bool
        exclude_self: Keys are the queries: leave out key i of query i.
        self_index: Where they are among the keys: which key is query i itself, to leave out; -1 for
            none. (N,), integer
        exclude_index: Keys that query i leaves out, such as false negatives, padded with -1: each
            costs a comparison per pair on a GPU. (N, K), integer
        hardness: α ≥ 0 raises the logit of every negative by α q·k, a constant for gradients.
        temperature: Temperature τ > 0 of the logits; a tensor, () or (1,), receives a gradient.
        logit_scale: 1/τ in place of ``temperature``; likewise.
        bias: Added to every logit; a tensor, () or (1,), receives a gradient.
        reduction: ``"mean"`` or ``"sum"`` over the queries that have a positive, or ``"none"``.
        normalize: Scale every row of both sides to unit length first.
        group: Processes whose keys count too, as in :func:`mim4dd.sup_con`. The default bias then
            counts the keys of all.
        backend: None, or ``"reference"`` for the plain PyTorch definition.

    Returns:
        Loss in nats, float32 or wider: a scalar, or (N,) for ``reduction="none"``.

    Raises:
        ValueError: On a shape, device or value that the formula does not cover.
        TypeError: On a dtype that it does not cover.

    Example:
        >>> import torch, mim4dd
        >>> labels = torch.arange(3)
        >>> mim4dd.nce(torch.eye(3), torch.eye(3), labels, labels, temperature=1.0)
        tensor(2.0519)

    References:
        Tian, Krishnan, Isola. Contrastive Representation Distillation. arXiv:1910.10699.
        Shang et al. Contrastive Mutual Information Maximization for Binary Neural Networks.
        arXiv:2207.02970.
    """
    check_hardness(hardness)
    sides = as_sides(query, key, group)
    loss, _ = evaluate(
        sides,
        masked(sides, by_label(sides, labels, key_labels), query_mask, key_mask),
        as_logit_scale(sides, temperature, logit_scale),
        as_bias(sides, bias),
        Critic(Kind.NCE, False, float(hardness), normalize),
        reduction,
        backend,
        excluded_keys(sides, exclude_self, self_index, exclude_index),
    )
    return sides.shaped(loss)
