"""Gradients of a batch added into the synthetic set: an operator for the adjoint.

``torch.ops.mim4dd.scatter_add_rows(out, rows, source, scale=1.0)`` does, in place and in the order
of b, ``out[rows[b]] += scale * source[b]``. Rows that occur twice have the same bits in every run
and on any number of threads; ``index_add_`` on a GPU does not.

Takes:
    out: Written in place. (n, ...), any floating dtype, any strides
    rows: On a CPU one out of range raises; on a GPU, where nothing looks at values, it stops the
        kernel with an assertion, as in PyTorch's own indexing. (B,), int64, in [0, n)
    source: In dtype and on device of ``out``, not sharing its memory. (B, ...)
    scale: A number.
"""

import torch
from torch import Tensor

from mim4dd._library import LIB, expect_compiled
from mim4dd._torch_private import below_autograd

LIB.define("scatter_add_rows(Tensor(a!) out, Tensor rows, Tensor source, *, float scale=1.0) -> ()")
expect_compiled("scatter_add_rows", "CPU")
expect_compiled("scatter_add_rows", "CUDA")


@torch.library.register_fake("mim4dd::scatter_add_rows", lib=LIB)
def _fake(out: Tensor, rows: Tensor, source: Tensor, *, scale: float = 1.0) -> None:
    return None


def _refuse_autograd(out: Tensor, rows: Tensor, source: Tensor, *, scale: float = 1.0) -> None:
    if torch.is_grad_enabled() and (out.requires_grad or source.requires_grad):
        raise RuntimeError("mim4dd::scatter_add_rows is not differentiable: call it under no_grad")
    with below_autograd():
        torch.ops.mim4dd.scatter_add_rows(out, rows, source, scale=scale)


# register_autograd takes no operator that writes in place.
LIB.impl("scatter_add_rows", _refuse_autograd, "Autograd")
