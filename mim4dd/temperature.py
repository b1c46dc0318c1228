"""A learned temperature that stays positive and bounded."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mim4dd._checks import check_positive
from mim4dd._torch_private import in_forward_mode

__all__ = ["LearnedTemperature"]


class LearnedTemperature(nn.Module):
    r"""A temperature τ > 0 from a parameter t that any optimiser may move anywhere: CLIP's form.

    .. math:: \tau = 1 / \min(e^t, s_{max}), \qquad t_0 = \log (1 / \tau_0)

    A τ that is itself a parameter can be driven through 0 by a single step of Adam. Here a step
    changes it by a factor. Where the logit scale 1/τ has reached ``max_logit_scale`` it stays there
    until the gradient of t points down again; through a plain clamp no gradient would ever come.

    Pass it as ``temperature`` of a loss module, whose ``state_dict`` then holds t as
    ``temperature.logit_scale``; or call it for τ. Leave t out of weight decay, which pulls τ to 1.

    Args:
        initial: τ_0; by default CLIP's.
        max_logit_scale: The largest 1/τ; by default CLIP's. ``math.inf``, as in SigLIP, for none.
        dtype: Of t and τ; by default torch's default.
        device: Where they are.

    Raises:
        ValueError: If ``initial`` is not positive and finite, or 1/``initial`` above the bound.

    Example:
        >>> import torch, mim4dd
        >>> loss = mim4dd.InfoNCELoss(mim4dd.LearnedTemperature(0.5), normalize=True)
        >>> optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
        >>> loss(torch.eye(4), torch.eye(4)).backward()
        >>> optimizer.step()
        >>> loss.temperature()
        tensor(0.4524, grad_fn=<ExpBackward0>)

        SigLIP's, with its learned bias:

        >>> bias = torch.nn.Parameter(torch.tensor(-10.0))
        >>> temperature = mim4dd.LearnedTemperature(0.1, max_logit_scale=float("inf"))
        >>> loss = mim4dd.NCELoss(temperature, normalize=True, bias=bias)
        >>> list(loss.state_dict())
        ['bias', 'temperature.logit_scale']

    References:
        Radford et al. arXiv:2103.00020, section 2.5: the logit scale "clipped to prevent scaling
        the logits by more than 100". SigLIP: Zhai et al. arXiv:2303.15343, algorithm 1.
    """

    def __init__(
        self,
        initial: float = 0.07,
        max_logit_scale: float = 100.0,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_positive("initial", initial)
        if not max_logit_scale >= 1 / initial:
            raise ValueError(
                f"max_logit_scale must be at least 1/initial = {1 / initial:g}, "
                f"got {max_logit_scale}"
            )
        self.max_logit_scale = max_logit_scale
        start = torch.tensor(-math.log(initial), dtype=dtype, device=device)
        self.logit_scale = nn.Parameter(start)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self().item():g}, max_logit_scale={self.max_logit_scale:g}"

    def forward(self) -> Tensor:
        """τ, ()."""
        scale: Tensor = self.logit_scale
        if self.max_logit_scale < math.inf:
            bound = math.log(self.max_logit_scale)
            # With a jvp of its own, _AtMost could not be compiled.
            scale = scale.clamp(max=bound) if in_forward_mode() else _AtMost.apply(scale, bound)
        return scale.neg().exp()


class _AtMost(torch.autograd.Function):
    """min(value, bound), with the gradient of the value but where descent would raise it more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, bound: float) -> Tensor:
        return value.clamp(max=bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        value, ctx.bound = inputs
        ctx.save_for_backward(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        return grad.masked_fill((value >= ctx.bound) & (grad < 0), 0), None
