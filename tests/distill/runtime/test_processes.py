"""Tasks over worker processes: results, errors with their cause, and no worker left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import jobs
import pytest
import torch

from mim4dd.distill.runtime.processes import WorkerError, run_parallel, start_worker_server


def alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(condition):
    end = time.monotonic() + 300  # a busy machine starts an interpreter in a minute
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_one_worker_is_this_process():
    expected = [(index, index**2) for index in range(4)]
    assert list(run_parallel(jobs.squares, range(4))) == expected
    assert list(run_parallel(jobs.squares, [], workers=2)) == []
    threads = torch.get_num_threads()
    ((_, ran),) = run_parallel(partial(jobs.scaled, torch.ones(1)), [1], threads=threads + 1)
    assert ran[1:] == (0, os.getpid(), threads + 1)
    assert torch.get_num_threads() == threads


def test_a_task_is_asked_for_when_a_worker_is_free(tmp_path):
    done = []

    def tasks():
        for task in range(5):
            done.append(len(list(tmp_path.iterdir())))
            yield task

    results = run_parallel(partial(jobs.marking, tmp_path), tasks(), workers=2)
    assert sorted(index for index, _ in results) == list(range(5))
    assert done[0] == 0
    assert all(count >= task - 1 for task, count in enumerate(done))


def test_workers_run_every_task_once_and_share_the_threads(tmp_path):
    factor, tasks = torch.rand(5), list(torch.rand(4, 5))
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        results = list(run_parallel(partial(jobs.meeting, tmp_path, factor), tasks, workers=2))
        # One task left, as after an interruption, gets no more threads than each had before.
        last = run_parallel(partial(jobs.scaled, factor), tasks[:1], workers=2)
        results.append((0, next(last)[1]))
    finally:
        torch.set_num_threads(threads)
    assert sorted(index for index, _ in results) == [0, 0, 1, 2, 3]
    for index, (total, _, pid, threads) in results:
        assert torch.equal(total, (factor * tasks[index]).sum())
        assert pid != os.getpid()
        assert threads == 2
    assert {worker for _, (_, worker, _, _) in results} == {0, 1}


def test_workers_come_from_the_server_that_was_started_ahead():
    start_worker_server()
    server = forkserver._forkserver._forkserver_pid
    assert alive(server)
    results = run_parallel(jobs.parent, [0, 1], workers=2)
    assert [parent for _, parent in results] == [server, server]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_may_have_a_process_of_its_own(workers):
    tasks = list(torch.rand(3, 5))
    results = dict(run_parallel(partial(jobs.scaled, torch.ones(5)), tasks, workers, fresh=True))
    assert sorted(results) == [0, 1, 2]
    for index, (total, worker, _, _) in results.items():
        assert torch.equal(total, tasks[index].sum())
        assert worker < workers
    assert len({pid for _, _, pid, _ in results.values()} | {os.getpid()}) == 4
    assert multiprocessing.active_children() == []


def test_a_worker_at_work_is_asked_to_stop_before_it_is_killed(tmp_path):
    start = partial(jobs.asked, tmp_path)
    for fresh in (False, True):
        results = run_parallel(start, [0.0, 60.0], workers=2, fresh=fresh)
        assert next(results) == (0, 0.0)
        wait_until((tmp_path / "at work").exists)
        results.close()
        assert (tmp_path / "asked").exists()
        for path in tmp_path.iterdir():
            path.unlink()


def test_a_caller_that_stops_stops_the_workers():
    results = run_parallel(jobs.failing, [0.0, 60.0], workers=2)
    assert next(results) == (0, 0.0)
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert multiprocessing.active_children() == []


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
        list(run_parallel(jobs.failing, [60.0, task] if task == "value" else [task], workers=2))
    assert isinstance(caught.value.__cause__, WorkerError)
    assert "in worker " in str(caught.value.__cause__)
    assert cause in str(caught.value.__cause__)
    assert multiprocessing.active_children() == []  # the one that slept is gone


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("kill", "worker 0 was killed by SIGKILL, as the system does when memory runs out, at tas"),
        ("exit", "worker 0 exited with status 3; what it printed says why, at task 0"),
    ],
)
def test_a_worker_that_dies_is_reported(task, message):
    with pytest.raises(WorkerError, match=message):
        list(run_parallel(jobs.failing, [task], workers=2))
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(number, tmp_path):
    """Not even one that ignores SIGTERM: after Ctrl-C it is killed, else it sees the parent end."""
    process = subprocess.Popen(
        [sys.executable, jobs.__file__, str(tmp_path)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: any(tmp_path.iterdir()) or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    (worker,) = [int(path.name) for path in tmp_path.iterdir()]
    assert alive(worker)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does, to the workers too
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert err.count("Traceback") == (1 if number == signal.SIGINT else 0)  # the parent's own
    wait_until(lambda: not alive(worker))


def test_workers_run_the_package_that_their_parent_runs(tmp_path):
    """Not the one in the working directory, where the workers' server looks first."""
    (tmp_path / "checkout" / "mim4dd").mkdir(parents=True)
    (tmp_path / "checkout" / "mim4dd" / "__init__.py").write_text("stands_here = True\n")
    script = tmp_path / "installed.py"
    script.write_text(
        "import mim4dd\n"
        "from mim4dd.distill.runtime.processes import run_parallel, start_worker_server\n\n"
        "def package(worker):\n"
        "    return lambda task: mim4dd.__file__\n\n"
        "if __name__ == '__main__':\n"
        "    start_worker_server()\n"
        "    for _, path in run_parallel(package, [0, 1], workers=2):\n"
        "        assert path == mim4dd.__file__, path\n"
    )
    roots = os.pathsep.join(sys.path)
    subprocess.run(
        [sys.executable, script],
        cwd=tmp_path / "checkout",
        env={**os.environ, "PYTHONPATH": roots},
        check=True,
        timeout=300,
    )
