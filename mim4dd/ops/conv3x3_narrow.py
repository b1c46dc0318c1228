r"""The gradient to the input of a 3×3 convolution of few channels on a CPU, as a bare operator.

For convolutions with stride 1 and padding 1 whose input has few channels (C), as images have: those
fill no vector, so libraries take as long as for several times more. Here one product per pixel
forms what it adds to all C channels of its nine neighbours,

.. math::
    \mathrm{conv3x3\_narrow\_bwd}(g, w)_{bcyx} =
    \sum_{i,j} P_{b,\,y + 1 - i,\,x + 1 - j,\,ijc}, \qquad
    P_{byx\,ijc} = \sum_o g_{boyx}\, w_{ocij}

of gradients of the output :math:`g` (B, O, H, W) and a weight :math:`w` (O, C, 3, 3), both in
float32 or both in float64. The result (B, C, H, W) is channels-last; so should the gradient be,
else it is copied first. It does not depend on the number of threads, and is right for any C.

The operator has no derivative: whoever builds on it joins it with the convolution.
"""

import torch
from torch import Tensor

from mim4dd._library import LIB, expect_compiled
from mim4dd.ops._rules import refuse

__all__: list[str] = []

LIB.define("conv3x3_narrow_bwd(Tensor grad_out, Tensor weight) -> Tensor grad_input")
expect_compiled("conv3x3_narrow_bwd", "CPU")


refuse("conv3x3_narrow_bwd", "it is a derivative, for an autograd.Function to call")


@torch.library.register_fake("mim4dd::conv3x3_narrow_bwd", lib=LIB)
def _fake(grad_out: Tensor, weight: Tensor) -> Tensor:
    return torch.empty(
        (grad_out.shape[0], weight.shape[1], *grad_out.shape[2:]),
        dtype=grad_out.dtype,
        device=grad_out.device,
        memory_format=torch.channels_last,
    )
