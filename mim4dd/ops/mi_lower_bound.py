"""The mutual information that InfoNCE certifies: public function and checks."""

from torch import Tensor

from mim4dd import reference
from mim4dd._checks import check_floating, check_integer, check_rank, check_same_device

__all__ = ["mi_lower_bound"]


def mi_lower_bound(
    loss: Tensor,  # (N,) or (L, N)
    labels: Tensor,  # (N,)
    key_labels: Tensor,  # (M,)
) -> Tensor:
    """Mutual information that the InfoNCE losses of queries certify: log M less their mean.

    Each class counts by its share of the keys, and keys of classes without a query do not count.
    The bound is valid for keys drawn independently, and losses with marginal negatives: neither
    decoupled nor reweighted. Between classes alone it can reach log C, with C classes: read it
    beside that (docs/math.md, "The bound").

    Args:
        loss: What :func:`mim4dd.info_nce` gives for ``reduction="none"``, by layer or not.
        labels: Class of each query; those labelled -1 do not count. (N,), integer
        key_labels: Class of each key; likewise. (M,), integer

    Returns:
        The bound in nats: (), or (L,) for layers.

    Raises:
        ValueError: On shapes or devices that do not fit together.
        TypeError: On a dtype that the formula does not cover.

    Example:
        >>> import torch, mim4dd
        >>> classes, features = torch.arange(4), torch.eye(4)
        >>> loss = mim4dd.info_nce(features, features, reduction="none", temperature=0.5)
        >>> mim4dd.mi_lower_bound(loss, classes, classes)
        tensor(1.0455)

    References:
        van den Oord, Li, Vinyals. arXiv:1807.03748, section 2.3; Poole et al., arXiv:1905.06922.
    """
    check_floating("loss", loss)
    for name, vector in (("labels", labels), ("key_labels", key_labels)):
        check_rank(name, vector, 1)
        check_integer(name, vector)
        check_same_device(name, vector, "loss", loss)
    if loss.dim() not in (1, 2) or loss.shape[-1] != labels.shape[0]:
        raise ValueError(
            f"loss must be (N,) or (L, N) with one entry per label, got {tuple(loss.shape)} and "
            f"{labels.shape[0]} labels"
        )
    return reference.mi_lower_bound(loss, labels, key_labels)
