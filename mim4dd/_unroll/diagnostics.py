"""What inner training tells about itself, and the guard that names the step it diverged in."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["DivergenceError", "UnrollDiagnostics"]


class DivergenceError(FloatingPointError):
    """Inner training left the finite numbers.

    ``step`` is the first one whose loss, or whose parameters after it, are not finite.

    Example:
        >>> import torch, mim4dd
        >>> model = torch.nn.Linear(4, 2)
        >>> try:
        ...     mim4dd.unroll_sgd(
        ...         model, mim4dd.flatten_parameters(model), torch.ones(2, 4), torch.tensor([0, 1]),
        ...         torch.tensor([[0, 1]] * 5), lr=torch.tensor(float("inf")),
        ...     )
        ... except mim4dd.DivergenceError as error:
        ...     print(error.step)
        1
    """

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


@dataclass
class UnrollDiagnostics:
    """Filled by an unroll and by its backward, when it is passed to them.

    Reading a value waits for the device; filling does not.

    Example:
        >>> import torch, mim4dd
        >>> model = torch.nn.Linear(4, 2)
        >>> images = torch.randn(2, 4, requires_grad=True)
        >>> diagnostics = mim4dd.UnrollDiagnostics()
        >>> theta_T = mim4dd.unroll_sgd(
        ...     model, mim4dd.flatten_parameters(model), images, torch.tensor([0, 1]),
        ...     torch.tensor([[0, 1]] * 5), lr=0.1, diagnostics=diagnostics,
        ... )
        >>> theta_T.square().sum().backward()
        >>> diagnostics.losses.shape, diagnostics.adjoint_norms.shape
        (torch.Size([5]), torch.Size([5]))
    """

    losses: Tensor | None = field(default=None, init=False)
    """Inner loss of every step, (T,) or (T, K)."""

    adjoint_norms: Tensor | None = field(default=None, init=False)
    """‖∂L/∂θ_{t+1}‖ of every step t walked back, in order, float64. (W,) or (W, K)"""


def refuse_divergence(losses: Tensor, theta_T: Tensor) -> None:
    """Raise where a loss (T,) or (T, K), or the parameters at the end, are not finite.

    Once at the end, so that no step makes the host wait for a GPU.
    """
    finite = losses.isfinite().flatten(1).all(1) if losses.dim() > 1 else losses.isfinite()
    if bool(finite.all() & theta_T.isfinite().all()):
        return
    if bool(finite.all()):
        last = len(losses) - 1
        raise DivergenceError(last, f"the parameters are not finite after the last step, {last}")
    step = int(torch.argmin(finite.int()))
    raise DivergenceError(
        step,
        f"the inner loss is not finite ({losses[step].tolist()}) in step {step} of {len(losses)} "
        "(counted from 0): lower lr, or look for NaN and inf in theta_0 and image_syn",
    )
