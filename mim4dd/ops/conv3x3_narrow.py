r"""3×3 convolutions of few channels on a CPU, and their gradients, as bare operators.

For convolutions with stride 1 and padding 1 whose input has few channels (C), as images have: those
fill no vector, so libraries take as long as for several times more. Nine taps of them do fill
vectors. A pixel of the output is a product of the 9 C numbers around it, and the gradient of the
filters is a sum of such products; the gradient of the input is

.. math::
    g^{in}_{bcyx} = \sum_{i,j} P_{b,\,y + 1 - i,\,x + 1 - j,\,ijc}, \qquad
    P_{byx\,ijc} = \sum_o g_{boyx}\, w_{ocij}

of gradients of the output :math:`g` (B, O, H, W) and a weight :math:`w` (O, C, 3, 3). All tensors
are in float32 or all in float64. Results are channels-last; so should the images be, else they are
copied first. They do not depend on the number of threads, and are right for any C.

The operators have no derivative: whoever builds on them joins them.
"""

import torch

from mim4dd._library import LIB, expect_compiled
from mim4dd.ops._rules import refuse
from mim4dd.ops.conv3x3 import fake, fake_bwd

__all__: list[str] = []

LIB.define("conv3x3_narrow(Tensor input, Tensor weight, Tensor? bias) -> Tensor")
LIB.define(
    "conv3x3_narrow_bwd(Tensor grad_out, Tensor input, Tensor weight, bool[2] mask)"
    " -> (Tensor grad_input, Tensor grad_weight)"
)

# What is returned is shaped as of the wide ones.
for _name, _fake in (("conv3x3_narrow", fake), ("conv3x3_narrow_bwd", fake_bwd)):
    expect_compiled(_name, "CPU")
    refuse(_name, "an autograd.Function has to join it with others")
    torch.library.register_fake(f"mim4dd::{_name}", _fake, lib=LIB)
