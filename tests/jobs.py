"""What test_processes runs in workers, which import it: functions of a module are pickled by name.

Run as a script, it starts workers, says which, and waits for them.
"""

import functools
import os
import signal
import sys
import time
from pathlib import Path

import torch

from mim4dd.distill.processes import run_parallel


def squares(worker):
    return lambda task: task**2


def where(worker):
    def function(seconds):
        time.sleep(seconds)
        return worker, os.getpid(), torch.get_num_threads()

    return function


def scale(factor, worker):
    return lambda task: (factor * task).sum()


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
        time.sleep(60)

    return function


def not_starting(worker):
    raise OSError("no such device")


def stubborn(folder, worker):
    """Sleeps through SIGTERM, as a task in the middle of a long step does."""

    def function(task):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / str(os.getpid())).touch()
        time.sleep(120)

    return function


if __name__ == "__main__":
    for _ in run_parallel(functools.partial(stubborn, Path(sys.argv[1])), range(2), workers=2):
        pass
