"""cal_inf_loss of Inf-CL 1.2.1."""

import torch

from mim4dd.adapters._processes import num_processes as _num_processes
from mim4dd.ops.info_nce import info_nce as _info_nce

__all__ = ["cal_inf_loss"]


def cal_inf_loss(
    q: torch.Tensor,  # (N, D)
    k: torch.Tensor,  # (M, D)
    labels: torch.Tensor | None = None,  # (N,)
    scale: torch.Tensor | float | None = None,  # ()
    head_dim: int = 256,
) -> torch.Tensor:
    """``inf_cl.cal_inf_loss`` of one process, on any device and with two derivatives.

    Args:
        q: Queries, used as they are.
        k: Keys.
        labels: Index into ``k`` of each query's positive, not its class; default ``arange(N)``.
        scale: 1/τ, which receives a gradient; default 1.
        head_dim: How the peer's kernel cuts D; without effect here.

    Returns:
        The mean over the queries, ().

    Raises:
        ValueError: In more than one process, whose keys the peer would share.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.inf_cl import cal_inf_loss
        >>> cal_inf_loss(torch.eye(3), torch.eye(3))
        tensor(0.5514)
    """
    if _num_processes() > 1:
        raise ValueError(
            f"cal_inf_loss shares keys between processes, which is not supported in the "
            f"{_num_processes()} here; use mim4dd.info_nce for the loss of each alone"
        )
    return _info_nce(q, k, positive_index=labels, logit_scale=1.0 if scale is None else scale)
