r"""3×3 convolutions with stride 1 and padding 1 on a CPU, and their derivatives, as bare operators.

By Winograd's F(2×2, 3×3) (Lavin & Gray 2016, arXiv:1509.09308): 16 multiplications where the
definition has 36, and about its rounding errors. With :math:`*` the convolution, :math:`x` input,
:math:`w` weight and :math:`g` the gradient of the output

.. math::
    \mathrm{conv3x3} = x * w + b, \qquad
    \mathrm{conv3x3\_bwd} = (\bar x(g, w),\ \bar w(g, x)), \qquad
    \mathrm{conv3x3\_bwd\_bwd} = (x' * w + x * w',\ \bar x(g, w'),\ \bar w(g, x'))

for the cotangents :math:`x', w'` of ``conv3x3_bwd``; what of them is None counts as zero. ``mask``
says which results are wanted, the others are None. Images are (B, C, H, W), weights (O, C, 3, 3),
all in float32 or all in float64. Results are channels-last; so should the inputs be, others are
copied first. An infinite pixel makes all outputs of its tile NaN, also those that it is not next
to.

The operators have no derivatives: whoever builds on them joins the three.
"""

import torch
from torch import Tensor

from mim4dd._library import LIB, expect_compiled
from mim4dd.ops._rules import refuse

__all__: list[str] = []

LIB.define("conv3x3(Tensor input, Tensor weight, Tensor? bias) -> Tensor")
LIB.define(
    "conv3x3_bwd(Tensor grad_out, Tensor input, Tensor weight, bool[2] mask)"
    " -> (Tensor grad_input, Tensor grad_weight)"
)
LIB.define(
    "conv3x3_bwd_bwd(Tensor? cotangent_input, Tensor? cotangent_weight, Tensor grad_out,"
    " Tensor input, Tensor weight, bool[3] mask)"
    " -> (Tensor grad_grad_out, Tensor grad_input, Tensor grad_weight)"
)


for _name in ("conv3x3", "conv3x3_bwd", "conv3x3_bwd_bwd"):
    expect_compiled(_name, "CPU")
    refuse(_name, "an autograd.Function has to join it with conv3x3_bwd and conv3x3_bwd_bwd")


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _wanted(mask: list[bool], *likes: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(
        _empty(like, *like.shape) if is_wanted else None
        for like, is_wanted in zip(likes, mask, strict=True)
    )


@torch.library.register_fake("mim4dd::conv3x3", lib=LIB)
def fake(input: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
    return _empty(input, input.shape[0], weight.shape[0], *input.shape[2:])


@torch.library.register_fake("mim4dd::conv3x3_bwd", lib=LIB)
def fake_bwd(
    _: Tensor, input: Tensor, weight: Tensor, mask: list[bool]
) -> tuple[Tensor | None, ...]:
    return _wanted(mask, input, weight)


@torch.library.register_fake("mim4dd::conv3x3_bwd_bwd", lib=LIB)
def _fake_bwd_bwd(
    _: Tensor | None,
    __: Tensor | None,
    grad_out: Tensor,
    input: Tensor,
    weight: Tensor,
    mask: list[bool],
) -> tuple[Tensor | None, ...]:
    return _wanted(mask, grad_out, input, weight)
