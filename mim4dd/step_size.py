"""A learned step size that cannot go negative."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd._checks import check_positive

__all__ = ["PositiveStepSize"]


class PositiveStepSize(nn.Module):
    r"""A step size η > 0 from a parameter ρ that any outer optimiser may move anywhere.

    .. math:: \eta = \eta_0 \, \mathrm{softplus}(\rho) / \log 2, \qquad \rho_0 = 0

    A learned step size that is updated by itself can cross 0, after which the student climbs its
    loss. Softplus is taken in units of the start, so that training begins at η₀ exactly, whether
    that is 1e-6 or 100, and ρ means the same at any scale.

    **The outer learning rate** acts on ρ: near the start ``Δη ≈ 0.72 η₀ Δρ``. Plain SGD of rate α
    thus moves η by ``−0.52 η₀² α ∂L/∂η``: to begin as SGD of rate β on η itself does, take
    ``α = 1.92 β / η₀²``. A step of Adam of rate α moves η by about ``0.72 α η₀``. Far below 0 a
    step on ρ changes η by a factor ``exp(Δρ)``, far above 0 by ``1.44 η₀ Δρ``.

    Args:
        initial: η₀, positive and finite.
        shape: Shape of the step size: () for one, (T,) per step, (L,) per parameter tensor.
        dtype: Of ρ and η; by default torch's default.
        device: Where they are.

    Raises:
        ValueError: If ``initial`` is not positive and finite in ``dtype``.

    Example:
        >>> import torch, mim4dd
        >>> step_size = mim4dd.PositiveStepSize(0.01)
        >>> outer = torch.optim.SGD(step_size.parameters(), lr=1.0)
        >>> step_size().backward()  # 0.72 * 0.01
        >>> outer.step()
        >>> step_size()
        tensor(0.0099, grad_fn=<MulBackward0>)

    References:
        Learned by softplus in Wang et al., Dataset Distillation, arXiv:1811.10959. The range is
        that of floating point: at ρ < −100 a float32 underflows to 0.
    """

    initial: Tensor

    def __init__(
        self,
        initial: float,
        shape: tuple[int, ...] = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        start = torch.tensor(initial, dtype=dtype)
        check_positive("initial", start)
        self.rho = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
        self.register_buffer("initial", start.to(self.rho))

    def forward(self) -> Tensor:
        """η, of ``shape``."""
        # Beyond torch's own threshold of 20 the rest is still above float64's rounding.
        return self.initial * (F.softplus(self.rho, threshold=40) / math.log(2))
