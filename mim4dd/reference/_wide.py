"""The precision that the definitions compute in."""

from typing import Any

import torch
from torch import Tensor


def wide(*tensors: Tensor | None) -> Any:
    """The tensors in at least float32: half precision is stored, never computed in."""
    return [
        None if tensor is None else tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        for tensor in tensors
    ]
