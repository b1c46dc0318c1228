"""One distillation over several processes, as torchrun starts them.

Every rank draws networks of its own and computes the gradient of its loss; all take the same step
with the mean. What is written, the first rank writes.
"""

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["any_rank", "average", "join_ranks", "num_ranks", "rank"]

# The others wait while the first rank evaluates.
_PATIENCE = timedelta(hours=2)


def join_ranks(device: str) -> str:
    """Join the group that torchrun started, if it did; return this rank's device.

    Args:
        device: As asked for; ``"cuda"`` becomes the rank's own GPU.
    """
    if "WORLD_SIZE" not in os.environ:
        return device
    if torch.device(device).type == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    return device


def rank() -> int:
    """Number of this process, 0 where there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    """How many processes distil together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each tensor over the ranks, the same bits on all of them; NaN anywhere stays."""
    if num_ranks() == 1:
        return list(tensors)
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / num_ranks()).split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def any_rank(condition: bool, device: torch.device) -> bool:
    """Whether the condition holds on any rank."""
    if num_ranks() == 1:
        return condition
    flag = torch.tensor(float(condition), device=device)
    dist.all_reduce(flag)
    return bool(flag > 0)
