"""Losses of other libraries under their own names and arguments, on the kernels of this one.

One module per library, named after it. docs/adapters.md says where they differ and why.
"""

from mim4dd.adapters import (
    inf_cl,
    info_nce_pytorch,
    lightly,
    open_clip,
    pytorch_metric_learning,
)

__all__ = ["inf_cl", "info_nce_pytorch", "lightly", "open_clip", "pytorch_metric_learning"]
