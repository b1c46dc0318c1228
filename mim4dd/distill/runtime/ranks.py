"""Work over several processes, as torchrun starts them.

In a distillation every rank draws networks of its own and computes the gradient of its loss; all
take the same step with the mean. Independent tasks are shared out: each rank does some of them, and
all know all results. What is written of the whole, the first rank writes.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "agree",
    "alone",
    "any_rank",
    "average",
    "from_first",
    "gather",
    "gather_objects",
    "is_restarted",
    "is_sharing",
    "joined_ranks",
    "leads",
    "num_ranks",
    "rank",
    "require_one_process",
    "share",
    "sharing",
    "take_own_gpu",
    "wait_for_ranks",
]

Task = TypeVar("Task")
Result = TypeVar("Result")
Value = TypeVar("Value")

# Tasks are shared out evenly, but one may take as long as a whole distillation. A rank that died is
# noticed by torchrun, whatever the others wait for.
_PATIENCE = timedelta(days=7)
_TO_MEET = timedelta(minutes=30)  # for those on other machines to be started
_TO_CONNECT = timedelta(seconds=10)
_PORT = "mim4dd.port.{}"

_is_sharing = ContextVar("is_sharing", default=False)
_is_alone = ContextVar("is_alone", default=False)


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
        take_own_gpu()
    store, number, count = _meet()
    dist.init_process_group(
        "nccl" if place.type == "cuda" else "gloo",
        store=store,
        rank=number,
        world_size=count,
        timeout=_PATIENCE,
    )
    yield
    # Not after an error, which other ranks need not share: torchrun ends those.
    wait_for_ranks()
    dist.destroy_process_group()


def _meet() -> tuple[dist.Store, int, int]:
    """A store of these processes alone, the number of this one, and how many there are.

    torchrun keeps its store when it starts the ranks again, after one died. They would read there
    where those before were to be met, and wait for them (pytorch/pytorch#135712). How often they
    were started does not tell them apart: on several machines it is counted on each.
    """
    shared, number, count = next(dist.rendezvous("env://", timeout=_TO_MEET))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return shared, number, count
    host = os.environ["MASTER_ADDR"]
    if number == 0:
        own = dist.TCPStore(host, 0, is_master=True, timeout=_TO_MEET)
        for other in range(1, count):
            shared.set(_PORT.format(other), str(own.port))
        return own, number, count
    return _store_of_first(host, shared, _PORT.format(number)), number, count


def _store_of_first(host: str, shared: dist.Store, key: str) -> dist.Store:
    """The store that the first rank has just opened."""
    until = time.monotonic() + _TO_MEET.total_seconds()
    while time.monotonic() < until:
        port = shared.get(key).decode()
        if port:
            shared.compare_set(key, port, "")  # read: it is of this start alone
            # Or of a first rank that died before this one could read it: it refuses.
            with suppress(dist.DistError):
                store = dist.TCPStore(host, int(port), timeout=_TO_CONNECT)
                store.set_timeout(_TO_MEET)
                return store
        time.sleep(0.05)
    raise TimeoutError(f"the first rank did not start within {_TO_MEET}")


def take_own_gpu() -> None:
    """Compute on the GPU of this rank's number on its machine, where torchrun started one for it.

    Workers of a rank call it as well: they would all take the first GPU.
    """
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def is_restarted(device: torch.device) -> bool:
    """Whether torchrun started this command again, after a rank died (``--max-restarts``).

    Of several machines only the one where it died counts that.
    """
    return any_rank(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0", device)


def require_one_process(command: str) -> None:
    """Raise ValueError for a command that every process of torchrun would do from end to end."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise ValueError(
            f"mim4dd {command} runs as one process and must not be started by torchrun, "
            f"got WORLD_SIZE={size}; distill, experts, evaluate, compare, reproduce and sweep "
            "without --search may be"
        )


@contextmanager
def sharing() -> Iterator[None]:
    """Share independent tasks out over the ranks: all of them must come here, and do the same.

    Outside, a rank does all tasks that it is given. So a rank may judge a set by itself.
    """
    before = _is_sharing.set(True)
    try:
        yield
    finally:
        _is_sharing.reset(before)


def is_sharing() -> bool:
    """Whether tasks are shared out, among several ranks."""
    return _is_sharing.get() and num_ranks() > 1


@contextmanager
def alone() -> Iterator[None]:
    """Be the one rank there is, within a task that no other rank takes part in."""
    before = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(before)


def share(function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
    """What the function returns for every task, on all ranks; where tasks are shared, each is done
    by one of them.
    """
    if not is_sharing():
        return [function(task) for task in tasks]
    mine = slice(rank(), None, num_ranks())
    with alone():
        own = [function(task) for task in tasks[mine]]
    parts = gather_objects(own)
    return [parts[index % len(parts)][index // len(parts)] for index in range(len(tasks))]


def gather_objects(value: Value) -> list[Value]:
    """The values of all ranks, in their order; they are pickled."""
    if num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


def from_first(find: Callable[[], Value]) -> Value:
    """What the first rank finds in files, where ranks share: another would look a moment later."""
    if not is_sharing():
        return find()
    return gather_objects(find() if leads() else None)[0]  # type: ignore[return-value]


def leads() -> bool:
    """Whether this process writes what all made together: of ranks that share, the first."""
    return not is_sharing() or rank() == 0


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
    return dist.get_rank() if _is_joined() else 0


def num_ranks() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _is_joined() else 1


def _is_joined() -> bool:
    return dist.is_initialized() and not _is_alone.get()


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
    # As objects, since a rank need not know the shapes of the others' tensors.
    return gather_objects({name: tensor.cpu() for name, tensor in tensors.items()})


def any_rank(condition: bool, device: torch.device) -> bool:
    """Whether the condition holds on any rank."""
    if num_ranks() == 1:
        return condition
    flag = torch.tensor(float(condition), device=device)
    dist.all_reduce(flag)
    return bool(flag > 0)
