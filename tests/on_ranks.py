"""Run a function of a test module on several gloo ranks, none of which outlives the call."""

import multiprocessing
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
        arguments_of_child = (its, store, world, rank, seconds, function, arguments)
        children.append(_SERVER.Process(target=_main, args=arguments_of_child))
        connections.append(mine)
    for child in children:
        child.start()
    try:
        errors = [mine.recv() if mine.poll(seconds) else "no answer" for mine in connections]
    finally:
        for child in children:
            child.join(1)
            child.kill()
    assert not any(errors), "\n".join(filter(None, errors))
    return [torch.load(store.with_name(f"{store.name}-{rank}.pt")) for rank in range(world)]


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
