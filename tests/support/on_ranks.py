"""Run a function of a test module on several gloo ranks, none of which outlives the call."""

import multiprocessing
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

# Children are forked from a server that has imported everything, and so start within milliseconds.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["mim4dd", "torch.distributed", "torch._dynamo"])


def on_ranks(world, function, folder, *arguments, seconds=60):
    """What ``function(rank, *arguments)`` returns on every rank; it must be importable.

    Ranks that take longer are killed.
    """
    store = folder / f"store-{len(list(folder.iterdir()))}"
    connections, children = [], []
    for rank in range(world):
        mine, its = _SERVER.Pipe(duplex=False)
        of_child = its, store, world, rank, seconds, function, arguments
        children.append(_SERVER.Process(target=_main, args=of_child))
        children[-1].start()
        its.close()  # so that the end of the child ends the connection
        connections.append(mine)
    end = time.monotonic() + seconds
    try:
        errors = [_answer(mine, end) for mine in connections]
    finally:
        for child in children:
            child.join(1)
            child.kill()
    assert not any(errors), "\n".join(filter(None, errors))
    return [torch.load(store.with_name(f"{store.name}-{rank}.pt")) for rank in range(world)]


def _answer(connection, end):
    """The error of a rank, or None."""
    try:
        answered = connection.poll(max(0, end - time.monotonic()))
        return connection.recv() if answered else "a rank gave no answer in time"
    except EOFError:
        return "a rank died"


def _main(connection, store, world, rank, seconds, function, arguments):
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=seconds / 2),
        )
        result = function(rank, *arguments)
        dist.barrier()
        torch.save(result, store.with_name(f"{store.name}-{rank}.pt"))
        connection.send(None)
        dist.destroy_process_group()
    except BaseException:
        connection.send(traceback.format_exc())
