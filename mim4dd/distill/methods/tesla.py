"""Trajectory matching with constant memory by TESLA's approximate gradient."""

from typing import Literal

from mim4dd.distill.methods.mtt import MTT, MTTSettings
from mim4dd.distill.methods.registry import method

__all__ = ["TESLA"]


@method(
    "tesla",
    title="TESLA",
    settings=MTTSettings,
    needs_experts=True,
    learns=("syn_lr",),
)
class TESLA(MTT):
    """:class:`MTT` with the gradient that TESLA takes: θ_t is a constant in every inner step.

    The terms of later steps, which hold the Hessians, are left out, so the images' gradient is not
    that of the loss: docs/math.md tells how far off it is. MTT here needs no more memory. The
    published code loses a factor of 2 and gives the images half of this gradient.

    References:
        Cui et al. Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory.
        arXiv:2211.10586.
    """

    gradient: Literal["exact", "tesla"] = "tesla"
