"""What other libraries have, under their own names and arguments, on the kernels of this one.

Their losses, and what code that matches trajectories is made of: one module per library, named
after it. docs/adapters.md says where they differ and why.
"""

from mim4dd.adapters import (
    inf_cl,
    info_nce_pytorch,
    lightly,
    open_clip,
    pytorch_metric_learning,
    reparam_module,
    torch_optim,
)

__all__ = [
    "inf_cl",
    "info_nce_pytorch",
    "lightly",
    "open_clip",
    "pytorch_metric_learning",
    "reparam_module",
    "torch_optim",
]
