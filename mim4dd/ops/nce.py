"""Noise-contrastive loss with a binary critic: public function and checks."""

from torch import Tensor

from mim4dd import reference
from mim4dd._checks import (
    Backend,
    Reduction,
    check_finite,
    check_floating,
    check_rank,
    check_same_device,
)
from mim4dd.ops._contrastive import check_labels, prepare, reduce_queries

__all__ = ["nce"]


def nce(
    query: Tensor,  # (N, D)
    key: Tensor,  # (M, D)
    labels: Tensor,  # (N,)
    key_labels: Tensor,  # (M,)
    *,
    temperature: Tensor | float = 0.1,
    bias: Tensor | float | None = None,
    reduction: Reduction = "mean",
    normalize: bool = False,
    backend: Backend = None,
) -> Tensor:
    r"""Noise-contrastive loss: is each pair of query and key of one class, or not?

    .. math::
        \ell_i = -\sum_{p \in P(i)} \log h_{ip} - \sum_{j \notin P(i)} \log(1 - h_{ij}), \qquad
        h_{ij} = \sigma(q_i^\top k_j / \tau + b)

    The default bias is :math:`b_i = -\log(N_i / M)`, with :math:`N_i` negatives of M keys: the
    N/M of the papers' critic with the keys at hand standing for the data set. To reproduce their
    critic over a memory bank, pass :math:`b = -\log(N/M) - \log Z`. Plain PyTorch for now.

    Args:
        query: Queries. (N, D), floating point
        key: Keys, in dtype and on device of ``query``. (M, D)
        labels: Class of each query. (N,), integer
        key_labels: Class of each key. (M,), integer
        temperature: Temperature τ > 0 of the logits; as a 0-d tensor it receives a gradient.
        bias: Added to every logit; as a 0-d tensor it receives a gradient.
        reduction: ``"mean"`` or ``"sum"`` over the queries that have a positive, or ``"none"``.
        normalize: Scale every row of both sides to unit length first.
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
    query, key, temperature = prepare(query, key, temperature, reduction, normalize, backend)
    check_labels(query, key, labels, key_labels)
    if isinstance(bias, Tensor):
        check_rank("bias", bias, 0)
        check_floating("bias", bias)
        check_same_device("bias", bias, "query", query)
    if bias is not None:
        check_finite("bias", bias)
    loss = reference.nce(query, key, labels, key_labels, temperature, bias)
    return reduce_queries(loss, labels, key_labels, reduction)
