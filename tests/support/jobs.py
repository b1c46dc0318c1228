"""What tests run in other processes, which import it: functions of a module are pickled by name.

Run as a script, it starts workers, which leave their numbers in a folder, and waits for them.
"""

import functools
import os
import signal
import sys
import time
from pathlib import Path

import torch

from mim4dd.__main__ import main
from mim4dd.distill.runtime.processes import run_parallel
from mim4dd.distill.runtime.threads import threads_for


def squares(worker):
    return lambda task: task**2


def scaled(factor, worker):
    """What comes in and goes out: a tensor for all tasks, one for each, and where it ran."""
    return lambda task: ((factor * task).sum(), worker, os.getpid(), torch.get_num_threads())


def meeting(folder, factor, worker):
    """The same, once both workers have a task."""
    function = scaled(factor, worker)

    def after_meeting(task):
        (folder / str(worker)).touch()
        while not all((folder / name).exists() for name in ("0", "1")):
            time.sleep(0.01)
        return function(task)

    return after_meeting


def marking(folder, worker):
    """Leaves a file for each task."""
    return lambda task: (folder / str(task)).touch()


def parent(worker):
    """Which process the worker was forked from."""
    return lambda task: os.getppid()


def threads(worker):
    """How many it has, and takes for the smallest work."""
    return lambda task: (torch.get_num_threads(), threads_for(1))


class Awkward(Exception):
    """Unpickling calls it with one argument too few."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def failing(worker):
    def function(task):
        if task == "value":
            raise ValueError("task is bad")
        if task == "awkward":
            raise Awkward("this", "that")
        if task == "result":
            return lambda: None
        if task == "exit":
            sys.exit(3)
        if task == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(task)
        return task

    return function


def not_starting(worker):
    raise OSError("no such device")


def stubborn(folder, worker):
    """Sleeps through SIGTERM, as a task in the middle of a long step does."""

    def function(task):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / str(os.getpid())).touch()
        time.sleep(900)

    return function


def asked(folder, worker):
    """Notes that it was asked to stop, as a distillation saves its state."""

    def note(*_):
        (folder / "asked").touch()
        sys.exit()

    def function(task):
        if task:
            signal.signal(signal.SIGTERM, note)
            (folder / "at work").touch()
            time.sleep(task)
        return task

    return function


def command(line, threads):
    """`mim4dd`, with this many threads as OMP_NUM_THREADS gives it."""
    torch.set_num_threads(threads)
    sys.argv = ["mim4dd", *line.split()]
    main()


if __name__ == "__main__":
    # A shell starts what runs in the background with Ctrl-C ignored, tests and all.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for _ in run_parallel(functools.partial(stubborn, Path(sys.argv[1])), [0], workers=2):
        pass
