"""The trajectory-matching loss: public function and checks."""

from torch import Tensor

from mim4dd import reference
from mim4dd._checks import check_floating, check_matching, check_rank

__all__ = ["trajectory_loss"]


def trajectory_loss(
    theta_T: Tensor,  # (P,)
    theta_0: Tensor,  # (P,)
    theta_target: Tensor,  # (P,)
) -> Tensor:
    r"""How far the student ended from the expert, relative to how far the expert went.

    .. math:: \|\theta_T - \theta^*\|^2 \,/\, \|\theta_0 - \theta^*\|^2

    1 means no progress, 0 a perfect match. Differentiable in all three. Plain PyTorch for now.

    Args:
        theta_T: Parameters of the student after its T steps. (P,), floating point
        theta_0: Parameters that student and expert started from. (P,)
        theta_target: Parameters that the expert reached. (P,)

    Returns:
        The loss, dimensionless, a scalar in the dtype of the parameters.

    Raises:
        ValueError: If shapes or devices differ, or the expert did not move.
        TypeError: If the dtypes differ.

    Example:
        >>> import torch, mim4dd
        >>> start, target = torch.zeros(4), torch.ones(4)
        >>> mim4dd.trajectory_loss(torch.full((4,), 0.5), start, target)
        tensor(0.2500)

    References:
        Cazenavette et al. Dataset Distillation by Matching Training Trajectories.
        arXiv:2203.11932, eq. 2.
    """
    check_rank("theta_T", theta_T, 1)
    check_floating("theta_T", theta_T)
    for name, theta in (("theta_0", theta_0), ("theta_target", theta_target)):
        check_matching("theta_T", theta_T, name, theta)
        if theta.shape != theta_T.shape:
            raise ValueError(
                f"{name} must have the shape of theta_T, "
                f"got {tuple(theta.shape)} and {tuple(theta_T.shape)}"
            )
    if bool((theta_0 == theta_target).all()):
        raise ValueError("theta_target must differ from theta_0: the expert did not move")
    return reference.trajectory_loss(theta_T, theta_0, theta_target)
