"""Supervised contrastive loss: public function and checks."""

from typing import Literal

from torch import Tensor

from mim4dd import reference
from mim4dd._checks import Backend, Reduction, check_choice
from mim4dd.ops._contrastive import check_labels, prepare, reduce_queries
from mim4dd.ops.info_nce import info_nce

__all__ = ["sup_con"]


def sup_con(
    query: Tensor,  # (N, D)
    key: Tensor,  # (M, D)
    labels: Tensor,  # (N,)
    key_labels: Tensor,  # (M,)
    *,
    variant: Literal["out", "in"] = "out",
    temperature: Tensor | float = 0.1,
    reduction: Reduction = "mean",
    normalize: bool = False,
    backend: Backend = None,
) -> Tensor:
    r"""Supervised contrastive loss: every key of the query's class is a positive.

    .. math::
        \ell^{out}_i &= \log \sum_{j} e^{s_{ij}} - \frac{1}{|P(i)|} \sum_{p \in P(i)} s_{ip} \\
        \ell^{in}_i &= \log \sum_{j} e^{s_{ij}} - \log \frac{1}{|P(i)|} \sum_{p \in P(i)} e^{s_{ip}}

    with :math:`s_{ij} = q_i^\top k_j / \tau`. ``"out"`` is :func:`mim4dd.info_nce` with labels and
    shares its kernels; ``"in"`` is plain PyTorch for now. Keys are a set of their own: where they
    are the queries, each query is among its own positives.

    Args:
        query: Queries. (N, D), floating point
        key: Keys, in dtype and on device of ``query``. (M, D)
        labels: Class of each query. (N,), integer
        key_labels: Class of each key. (M,), integer
        variant: Whether the mean over the positives stands outside the logarithm or inside.
        temperature: Softmax temperature τ > 0; as a 0-d tensor it receives a gradient.
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
        >>> labels = torch.tensor([0, 0, 1])
        >>> mim4dd.sup_con(torch.eye(3), torch.eye(3), labels, labels, temperature=1.0)
        tensor(0.8848)

    References:
        Khosla et al. Supervised Contrastive Learning. arXiv:2004.11362, eq. 2 and 3.
    """
    check_choice("variant", variant, ("out", "in"))
    if variant == "out":
        return info_nce(
            query,
            key,
            labels=labels,
            key_labels=key_labels,
            temperature=temperature,
            reduction=reduction,
            normalize=normalize,
            backend=backend,
        )
    query, key, temperature = prepare(query, key, temperature, reduction, normalize, backend)
    check_labels(query, key, labels, key_labels)
    loss = reference.sup_con_in(query, key, labels, key_labels, temperature)
    return reduce_queries(loss, labels, key_labels, reduction)
