"""Run a function of a test module on several gloo ranks; after a minute all are killed."""

import multiprocessing
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

# Children are forked from a server that has imported everything, and so start within milliseconds.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["mim4dd", "torch.distributed", "torch._dynamo"])

SECONDS = 60


def on_ranks(world, function, folder, *arguments):
    """What ``function(rank, *arguments)`` returns on every rank; it must be importable."""
    store = folder / f"store-{len(list(folder.iterdir()))}"
    connections, children = [], []
    for rank in range(world):
        mine, its = _SERVER.Pipe(duplex=False)
        arguments_of_child = (its, store, world, rank, function, arguments)
        children.append(_SERVER.Process(target=_main, args=arguments_of_child))
        connections.append(mine)
    for child in children:
        child.start()
    try:
        results = [mine.recv() if mine.poll(SECONDS) else "no answer" for mine in connections]
    finally:
        for child in children:
            child.join(1)
            child.kill()
    failed = [result for result in results if isinstance(result, str)]
    assert not failed, "\n".join(failed)
    return results


def _main(connection, store, world, rank, function, arguments):
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=SECONDS / 2),
        )
        result = function(rank, *arguments)
        dist.barrier()
        # As numpy: a tensor's memory would be shared, and gone with this process.
        connection.send(_as_numpy(result))
        dist.destroy_process_group()
    except BaseException:
        connection.send(traceback.format_exc())


def _as_numpy(result):
    if isinstance(result, torch.Tensor):
        return result.detach().numpy()
    if isinstance(result, (list, tuple)):
        return [_as_numpy(each) for each in result]
    return result
