"""cal_inf_loss and cal_ring_loss of Inf-CL 1.2.1."""

import torch
from torch import distributed

from mim4dd.adapters._processes import num_processes as _num_processes
from mim4dd.ops.contrastive.ranks import Ranks as _Ranks
from mim4dd.ops.info_nce import info_nce as _info_nce

__all__ = ["cal_inf_loss", "cal_ring_loss"]


def cal_inf_loss(
    q: torch.Tensor,  # (N, D)
    k: torch.Tensor,  # (M, D)
    labels: torch.Tensor | None = None,  # (N,)
    scale: torch.Tensor | float | None = None,  # ()
    head_dim: int = 256,
) -> torch.Tensor:
    """``inf_cl.cal_inf_loss``, on any device; over the keys of all processes, if there are several.

    These are all of ``torch.distributed``'s, and keys go from one to the next
    (:class:`mim4dd.Ranks`). Each returns the mean over its own queries. Averaged over the
    processes, as DistributedDataParallel does, the gradients are those of the mean over all.

    Args:
        q: Queries, used as they are.
        k: Keys.
        labels: Index into ``k`` of each query's positive, not its class; default ``arange(N)``.
        scale: 1/τ, which receives a gradient; default 1.
        head_dim: How the peer's kernel cuts D; without effect here.

    Returns:
        The mean over the queries, ().

    Raises:
        ValueError: On features, labels or a scale that :func:`mim4dd.info_nce` refuses.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.inf_cl import cal_inf_loss
        >>> cal_inf_loss(torch.eye(3), torch.eye(3))
        tensor(0.5514)

    References:
        Cheng et al. Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive
        Loss. arXiv:2410.17243.
    """
    logit_scale = 1.0 if scale is None else scale
    world = distributed.group.WORLD if _num_processes() > 1 else None
    if world is None:
        return _info_nce(q, k, positive_index=labels, logit_scale=logit_scale)
    losses = _info_nce(
        q,
        k,
        positive_index=labels,
        logit_scale=logit_scale,
        reduction="none",
        group=_Ranks(world, exchange="ring"),
    )
    return losses.mean() if labels is None else losses.sum() / (labels >= 0).sum()


def cal_ring_loss(
    q: torch.Tensor,  # (N, D)
    k: torch.Tensor,  # (M, D)
    labels: torch.Tensor | None = None,  # (N,)
    scale: torch.Tensor | float | None = None,  # ()
    head_dim: int = 256,
) -> torch.Tensor:
    """``inf_cl.cal_ring_loss``: :func:`cal_inf_loss`, which the peer computes in another way.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.inf_cl import cal_ring_loss
        >>> cal_ring_loss(torch.eye(3), torch.eye(3))
        tensor(0.5514)
    """
    return cal_inf_loss(q, k, labels, scale, head_dim)
