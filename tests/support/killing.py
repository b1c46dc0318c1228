"""Commands killed at any moment: children that die by SIGKILL, started fast."""

import multiprocessing
import os
import random
import signal
import sys

# How often test_killed kills. Moments differ with the sources (MIM4DD_TEST_SEED), so that few a run
# become many; MIM4DD_KILLS=20 asks for more at once.
KILLS = int(os.environ.get("MIM4DD_KILLS", "3"))

# Children are forked from a server that has imported everything, and so start within milliseconds.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "mim4dd.__main__",
        "mim4dd.cli",
        "mim4dd.distill.commands.compare",
        "matplotlib.backends.backend_agg",
        "sklearn.datasets",
        "sklearn.model_selection",
        "torch._dynamo",
    ]
)


def _run(folder, command, output):
    import torch

    torch.set_num_threads(1)
    if output is not None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, sys.stdout.fileno())
        os.dup2(file, sys.stderr.fileno())
    os.chdir(folder)
    sys.argv = ["mim4dd", *command.split()]
    from mim4dd.__main__ import main

    main()


def start(folder, command, output=None):
    """A child that runs ``mim4dd command`` in a folder, and prints into a file if one is given."""
    child = _SERVER.Process(target=_run, args=(str(folder), command, output))
    child.start()
    return child


def finish(folder, command):
    """Run a command to its end."""
    child = start(folder, command)
    child.join()
    assert child.exitcode == 0


def kill_again_and_again(folder, command, *, kills, longest):
    """Start a command and kill it at work, ``kills`` times; then finish it.

    ``command()`` is what a user would type next. A kill comes up to ``longest`` seconds in, sooner
    where that was too late once.
    """
    killed = 0
    while killed < kills:
        child = start(folder, command())
        child.join(random.uniform(0, longest))
        child.kill()
        child.join()
        if child.exitcode == -signal.SIGKILL:
            killed += 1
        else:
            assert child.exitcode == 0
            longest /= 2
    finish(folder, command())
