"""One distillation over several processes, as torchrun starts them.

Every rank draws networks of its own and computes the gradient of its loss; all take the same step
with the mean. What is written, the first rank writes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "agree",
    "any_rank",
    "average",
    "gather",
    "joined_ranks",
    "num_ranks",
    "rank",
    "require_one_process",
    "wait_for_ranks",
]

# The others wait while the first rank evaluates.
_PATIENCE = timedelta(hours=2)


@contextmanager
def joined_ranks(device: str) -> Iterator[None]:
    """Be one of the processes that torchrun started, if it did; each takes a GPU of its own.

    Args:
        device: ``"cpu"``, or ``"cuda"``, which then is the rank's own GPU.

    Raises:
        ValueError: If one GPU is named for all.
    """
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    place = torch.device(device)
    if place.type == "cuda":
        if place.index is not None:
            raise ValueError(
                f"device must be 'cuda' under torchrun, which numbers the GPUs, got {device!r}"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=_PATIENCE)
    yield
    # Not after an error, which other ranks need not share: torchrun ends those.
    wait_for_ranks()
    dist.destroy_process_group()


def require_one_process(command: str) -> None:
    """Raise ValueError for a command that every process of torchrun would do from end to end."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise ValueError(
            f"mim4dd {command} runs as one process and must not be started by torchrun, "
            f"got WORLD_SIZE={size}; mim4dd distill may be"
        )


def wait_for_ranks() -> None:
    """Go on when all ranks got here."""
    if num_ranks() > 1:
        dist.barrier()


def agree(iteration: int, tensors: Sequence[Tensor]) -> None:
    """Give every rank the first one's tensors, which rounding on another GPU may differ from.

    Raises:
        ValueError: If a rank is at another iteration, so does not see the same checkpoint.
    """
    if num_ranks() == 1:
        return
    first = torch.tensor(iteration, device=tensors[0].device)
    for tensor in (first, *tensors):
        dist.broadcast(tensor.detach(), 0)
    if any_rank(int(first) != iteration, first.device):
        raise ValueError(
            "all ranks must see the files of one run directory, but rank "
            f"{rank()} is at iteration {iteration} and rank 0 at {int(first)}"
        )


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


def gather(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors of every rank, in their order; those of several ranks on the CPU."""
    if num_ranks() == 1:
        return [tensors]
    gathered: list[dict[str, Tensor]] = [{} for _ in range(num_ranks())]
    # As objects, since a rank need not know the shapes of the others' tensors.
    dist.all_gather_object(gathered, {name: tensor.cpu() for name, tensor in tensors.items()})
    return gathered


def any_rank(condition: bool, device: torch.device) -> bool:
    """Whether the condition holds on any rank."""
    if num_ranks() == 1:
        return condition
    flag = torch.tensor(float(condition), device=device)
    dist.all_reduce(flag)
    return bool(flag > 0)
