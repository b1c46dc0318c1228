"""A network's block behind its convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_relu_pool(
    input: Tensor,  # (B, C, H, W)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    num_groups: int,
    pool: int,
    eps: float,
) -> Tensor:
    """avg_pool(relu(group_norm(input))); see :func:`mim4dd.norm_relu_pool`."""
    wide = torch.promote_types(input.dtype, torch.float32)
    scale, shift = (None if part is None else part.to(wide) for part in (weight, bias))
    maps = F.group_norm(input.to(wide), num_groups, scale, shift, eps).relu()
    return F.avg_pool2d(maps, pool).to(input.dtype)
