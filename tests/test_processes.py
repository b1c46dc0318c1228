"""Tasks over worker processes: results, errors with their cause, and no worker left behind."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jobs
import pytest
import torch

from mim4dd.distill.processes import WorkerError, run_parallel


def alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_results_are_those_of_one_process_whichever_worker_ends_first():
    expected = list(run_parallel(jobs.squares, range(7)))
    assert expected == [(index, index**2) for index in range(7)]
    assert sorted(run_parallel(jobs.squares, range(7), workers=3)) == expected
    assert list(run_parallel(jobs.squares, [], workers=2)) == []


def test_workers_share_the_threads_and_are_numbered():
    torch.set_num_threads(4)
    try:
        ran = dict(run_parallel(jobs.where, [0.5, 0.5, 0.0], workers=2))
        assert {ran[0][0], ran[1][0]} == {0, 1}
        assert len({ran[index][1] for index in range(3)} - {os.getpid()}) == 2
        assert {threads for _, _, threads in ran.values()} == {2}
        # One task left, as after an interruption, is run by as many threads as all were.
        assert next(run_parallel(jobs.where, [0], workers=2))[1][2] == 2
        assert next(run_parallel(jobs.where, [0], threads=3))[1] == (0, os.getpid(), 3)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(1)


def test_tensors_reach_the_workers_and_return():
    factor = torch.rand(5)
    tasks = [torch.rand(5), torch.rand(5)]
    start = functools.partial(jobs.scale, factor)
    for index, total in run_parallel(start, tasks, workers=2):
        assert torch.equal(total, (factor * tasks[index]).sum())


@pytest.mark.parametrize(
    ("task", "kind", "message", "cause"),
    [
        ("value", ValueError, "task is bad", 'raise ValueError("task is bad")'),
        ("awkward", RuntimeError, "Awkward: this and that", "raise Awkward"),
        ("result", Exception, "failing.<locals>", "connection.send"),
    ],
)
def test_what_a_task_raises_is_raised_with_the_workers_traceback(task, kind, message, cause):
    with pytest.raises(kind, match=message) as caught:
        list(run_parallel(jobs.failing, ["sleep", task], workers=2))
    assert isinstance(caught.value.__cause__, WorkerError)
    assert "in worker 1, task 1" in str(caught.value.__cause__)
    assert cause in str(caught.value.__cause__)
    assert multiprocessing.active_children() == []  # the one that slept is gone


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("kill", "worker 1 was killed by SIGKILL, as the system does when memory runs out, at tas"),
        ("exit", "worker 1 exited with status 3; what it printed says why, at task 1"),
    ],
)
def test_a_worker_that_dies_is_reported(task, message):
    with pytest.raises(WorkerError, match=message):
        list(run_parallel(jobs.failing, ["sleep", task], workers=2))
    assert multiprocessing.active_children() == []


def test_what_cannot_start_is_said_at_once():
    with pytest.raises(OSError, match="no such device"):
        list(run_parallel(jobs.not_starting, [1], workers=2))
    with pytest.raises(TypeError, match="start must be picklable to be run by workers"):
        list(run_parallel(lambda worker: None, [1], workers=2))
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        run_parallel(jobs.squares, [1], workers=0)
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        run_parallel(jobs.squares, [1], threads=0)


def test_a_caller_that_stops_stops_the_workers():
    results = run_parallel(jobs.where, [0, 60, 60], workers=2)
    next(results)
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent(number, tmp_path):
    """Not even one that ignores SIGTERM: after Ctrl-C it is killed, else it sees the parent end."""
    process = subprocess.Popen(
        [sys.executable, jobs.__file__, str(tmp_path)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert all(alive(worker) for worker in workers)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does, to the workers too
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert err.count("Traceback") == (1 if number == signal.SIGINT else 0)  # the parent's own
    wait_until(lambda: not any(alive(worker) for worker in workers), seconds=10)
