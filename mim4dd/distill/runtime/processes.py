"""Independent tasks over worker processes, which end with the process that started them.

Where ranks share tasks, each has workers of its own.
"""

import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.machinery import PathFinder
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.multiprocessing  # teaches the pickler of processes to share memory of tensors

from mim4dd._threads import adopt_threads, process_threads, user_threads
from mim4dd.distill.runtime.heap import keep_freed_memory
from mim4dd.distill.runtime.ranks import (
    alone,
    gather_objects,
    is_sharing,
    num_ranks,
    rank,
    take_own_gpu,
)

__all__ = ["WorkerError", "run_parallel", "start_worker_server"]

Task = TypeVar("Task")
Result = TypeVar("Result")

# A task that saves its state on SIGTERM, as a distillation does, needs a moment for it.
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.5

# What a distillation of digits imports, in the end: seconds, where the work may take one. Workers
# are forked from a server that has done it.
_PRELOADED = [
    "mim4dd.distill.commands.compare",
    "sklearn.datasets",
    "sklearn.model_selection",
    "torch._dynamo",
]


class WorkerError(RuntimeError):
    """A worker died, or what happened in it: the cause of the exception that is raised here.

    Example:
        >>> try:  # doctest: +SKIP
        ...     results = dict(run_parallel(start, tasks, workers=2))
        ... except ValueError as error:
        ...     print(error.__cause__)  # with the traceback of the worker
    """


def run_parallel(
    start: Callable[[int], Callable[[Task], Result]],
    tasks: Iterable[Task],
    workers: int = 1,
    threads: int | None = None,
    fresh: bool = False,
    poll: Callable[[], object] | None = None,
) -> Iterator[tuple[int, Result]]:
    """Run every task once and yield its index and result, in the order in which they end.

    Each worker process calls ``start`` once, with its number from 0 up to ``workers`` - 1, for what
    all its tasks need, such as data on a device; what that returns is called with one task after
    another. With one worker all happens in this process.

    When a task fails, the caller stops iterating, or Ctrl-C is pressed, the workers are stopped:
    asked by SIGTERM, and killed five seconds later. When this process is killed, they exit.

    Where ranks share tasks, as in commands under torchrun, each runs some of them, in so many
    workers of its own. It yields these first, then those of the others.

    Args:
        start: Makes the function that runs tasks. Workers are started afresh, so it is pickled: a
            function of a module, a bound method, or a :func:`functools.partial` of one. Like all
            of :mod:`multiprocessing`, a script needs ``if __name__ == "__main__"`` around the call.
        tasks: What each call gets; pickled too, as are the results. The next one is asked for when
            a worker is free, so it may depend on what is done by then.
        workers: Number of processes.
        threads: Threads of torch's operators in each. By default it has an even share of this
            process's, of which small work takes one. The last bits of sums may depend on it, but on
            nothing else here.
        fresh: Give every task a new process, also with one worker, for tasks that measure the
            memory of theirs.
        poll: Called twice a second while workers are at work, and not with one worker.

    Raises:
        ValueError: If ``workers`` or ``threads`` is below 1.
        TypeError: If ``start`` cannot be pickled.
        WorkerError: If a worker dies, with its signal or exit status.
        Exception: What a task raised; its cause holds the traceback of the worker.

    Example:
        >>> from mim4dd.distill.runtime.processes import run_parallel
        >>> def start(worker):
        ...     return lambda task: task**2
        >>> list(run_parallel(start, [3, 4]))
        [(0, 9), (1, 16)]
    """
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")

    def run(tasks: Iterable[Task]) -> Iterator[tuple[int, Result]]:
        if workers == 1 and not fresh:
            return _run_here(start, tasks, threads)
        return _run_in_workers(start, tasks, workers, threads, fresh, poll)

    if not is_sharing():
        return run(tasks)
    start = partial(_start_alone, start)
    return _over_ranks(run, tasks)


def _over_ranks(
    run: Callable[[Iterable[Task]], Iterator[tuple[int, Result]]], tasks: Iterable[Task]
) -> Iterator[tuple[int, Result]]:
    """Run every R-th of the tasks here, and wait for the others' results."""
    first, step = rank(), num_ranks()
    own: dict[int, Result] = {}
    for index, result in run(islice(tasks, first, None, step)):
        own[first + index * step] = result
        yield first + index * step, result
    for number, results in enumerate(gather_objects(own)):
        if number != first:
            yield from results.items()


def _start_alone(
    start: Callable[[int], Callable[[Task], Result]], worker: int
) -> Callable[[Task], Result]:
    """As ``start``; its tasks meet no other rank."""
    with alone():
        function = start(worker)

    def run_one(task: Task) -> Result:
        with alone():
            return function(task)

    return run_one


def _run_here(
    start: Callable[[int], Callable[[Task], Result]], tasks: Iterable[Task], threads: int | None
) -> Iterator[tuple[int, Result]]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        function = start(0)
        for index, task in enumerate(tasks):
            yield index, function(task)
    finally:
        torch.set_num_threads(before)


def _run_in_workers(
    start: Callable[[int], Callable[[Task], Result]],
    tasks: Iterable[Task],
    workers: int,
    threads: int | None,
    fresh: bool,
    poll: Callable[[], object] | None,
) -> Iterator[tuple[int, Result]]:
    # As many threads for the last task as for the first: the count follows what was asked for.
    share = max(1, process_threads() // workers) if threads is None else threads
    prepare = partial(_work, start, share, threads is not None or user_threads() is not None)
    pool: list[_Worker] = []
    busy: dict[Connection, _Worker] = {}
    try:
        waiting = enumerate(tasks)
        for number, task in enumerate(islice(waiting, workers)):
            with _interrupts_wait():
                pool.append(_Worker(number, prepare))
            pool[number].send(*task)
            busy[pool[number].connection] = pool[number]
        while busy:
            for ready in wait(list(busy), None if poll is None else _POLL_SECONDS):
                worker = busy.pop(cast(Connection, ready))
                index, result = worker.receive()
                if (following := next(waiting, None)) is not None:
                    if fresh:
                        with _interrupts_wait():
                            _stop([worker])
                            worker = _Worker(worker.number, prepare)
                            pool[worker.number] = worker
                    worker.send(*following)
                    busy[worker.connection] = worker
                yield index, result
            if poll is not None:
                poll()
    finally:
        _stop(pool)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C back while a worker starts, until it can be found to be stopped.

    A terminal sends Ctrl-C to all. It stays blocked in the worker, as the mask is inherited, so
    that this process alone decides and no worker prints a traceback.
    """
    resource_tracker.ensure_running()  # its own start, within a worker's, would unblock the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _server() -> ForkServerContext:
    """What makes processes by a server that has imported what they need, once it is running."""
    context = multiprocessing.get_context("forkserver")
    shadowed = _is_shadowed_in(os.getcwd())
    can_look_elsewhere = sys.version_info >= (3, 11)
    context.set_forkserver_preload(_PRELOADED if can_look_elsewhere or not shadowed else [])
    with _safe_path() if shadowed else contextlib.nullcontext():
        forkserver.ensure_running()
    return context


@contextmanager
def _safe_path() -> Iterator[None]:
    """Have a Python that is started within not look for modules in the working directory."""
    added = "PYTHONSAFEPATH" not in os.environ  # else the user has decided
    if added:
        os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if added:
            del os.environ["PYTHONSAFEPATH"]


@functools.cache  # of effect at the first start of a worker alone, which starts the server
def _is_shadowed_in(folder: str) -> bool:
    """Whether a folder, the working directory, holds another module by the name of an imported one.

    The server looks there first, as ``python -c`` does, whatever this process's path. Workers take
    over the path, but what the server has imported is there to stay: in a checkout beside an
    installed wheel it would be the checkout's package, which has no kernels.
    """
    for name, module in list(sys.modules.items()):
        origin = getattr(getattr(module, "__spec__", None), "origin", None)
        if "." in name or origin is None:
            continue
        found = PathFinder.find_spec(name, [folder])
        if found is None or found.origin is None:  # nothing, or a folder without a module
            continue
        if os.path.realpath(found.origin) != os.path.realpath(origin):
            return True
    return False


def start_worker_server() -> None:
    """Let the server that workers are forked from import, while this process does other work.

    The first worker would start it, and wait for seconds.

    Example:
        >>> from mim4dd.distill.runtime.processes import start_worker_server
        >>> start_worker_server()
    """
    with _interrupts_wait():
        _server()


class _Worker:
    """A process, this end of the pipe to it, and the task it is at."""

    def __init__(self, number: int, work: Callable[[int, Connection], None]) -> None:
        self.number, self.index = number, -1
        self.busy = False
        context = _server()
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=work, args=(number, theirs), daemon=True)
        try:
            self.process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"start must be picklable to be run by workers, as functions of a module are: "
                f"{error}"
            ) from error
        except RuntimeError as error:  # of torch; a container's share is 64 MiB
            if "shared memory" not in str(error):
                raise
            raise OSError(
                "workers get their data through shared memory, which has no room for it "
                f"({error}): make /dev/shm larger, as docker run --shm-size=2g does, or "
                "take one worker"
            ) from error
        finally:
            theirs.close()  # else the end of the worker would not end the pipe

    def send(self, index: int, task: object) -> None:
        self.index, self.busy = index, True
        # To a dead worker: receive reads what it left behind, and says that it died.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(task)

    def receive(self) -> tuple[int, Any]:
        try:
            value, failure = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._report_death()
        if failure is not None:
            raise value from WorkerError(f"in worker {self.number}, task {self.index}:\n{failure}")
        self.busy = False
        return self.index, value

    def _report_death(self) -> NoReturn:
        self.process.join()
        status = self.process.exitcode
        if status is not None and status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
            if -status == signal.SIGKILL:
                how += ", as the system does when memory runs out"
        else:
            how = f"exited with status {status}; what it printed says why"
        raise WorkerError(f"worker {self.number} {how}, at task {self.index}")


def _stop(pool: list[_Worker]) -> None:
    """End all workers: those without a task at once, the others as the signal finds them."""
    for worker in pool:
        worker.connection.close()  # which ends one without a task
        if worker.busy:
            worker.process.terminate()
    for worker in pool:
        worker.process.join(_GRACE_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.process.close()


def _work(
    start: Callable[[int], Callable[[Any], Any]],
    threads: int,
    of_user: bool,
    number: int,
    connection: Connection,
) -> None:
    """What a worker does: run tasks until the pipe ends."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    adopt_threads(threads, of_user)
    take_own_gpu()
    keep_freed_memory()
    try:
        function = start(number)
        while True:
            try:
                task = connection.recv()
            except EOFError:
                return
            connection.send((function(task), None))
    except Exception as error:
        with contextlib.suppress(BrokenPipeError):  # to a parent that was killed
            connection.send((_portable(error), traceback.format_exc()))


def _exit_with_parent() -> None:
    """Leave no worker behind a parent that was killed and could not stop it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """The exception, or what it said where it does not survive pickling."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
