"""Experts are the same bit for bit, however often the command that trains them is killed."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jobs
import torch

from mim4dd.distill.experts import ExpertBuffer

NUM_EXPERTS = 12
COMMAND = f"experts --width 4 --train-epochs 2 --batch-train 128 --num-experts {NUM_EXPERTS}"
# What the command imports, so that a fork of a process that has it is at work at once.
IMPORTED = ["mim4dd.cli", "pydantic.fields", "sklearn.model_selection", "torch._dynamo"]


def start(folder):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=jobs.command, args=(f"{COMMAND} --out {folder}", 1))
    process.start()
    return process


def finish(folder):
    process = start(folder)
    process.join()
    assert process.exitcode == 0


def files(folder):
    """But for the lock, which says nothing of how far it is."""
    there = os.listdir(folder) if folder.exists() else []
    return sorted(name for name in there if name != ".lock")


def experts(folder):
    return [name for name in files(folder) if name.startswith("expert")]


def require_equal(folder, whole):
    """The files of an uninterrupted run, no others beside them, and the same tensors in them."""
    assert os.listdir(folder).count(".lock") == 0
    assert files(folder) == files(whole)
    stopped, uninterrupted = ExpertBuffer(folder), ExpertBuffer(whole)
    for expert in range(NUM_EXPERTS):
        assert torch.equal(stopped.trajectory(expert), uninterrupted.trajectory(expert))


def test_twenty_kills_change_nothing(tmp_path):
    draws = random.Random(torch.initial_seed())
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    finish(whole)
    started, process = time.monotonic(), start(folder)
    while not files(folder):
        time.sleep(0.001)
    until_first = time.monotonic() - started
    process.join()
    shutil.rmtree(folder)
    each = ExpertBuffer(whole).seconds / NUM_EXPERTS
    kills = continued = 0
    while kills < 20 or continued < 3:  # early kills alone would show nothing
        before = experts(folder)
        process = start(folder)
        if kills % 2:
            process.join(draws.uniform(0.5 * until_first, until_first + 4 * each))
        else:  # in the middle of writing a file
            known = files(folder)
            while files(folder) == known and process.is_alive():
                pass
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        continued += 0 < len(before) < len(experts(folder))
        if len(experts(folder)) == NUM_EXPERTS:
            finish(folder)
            require_equal(folder, whole)
            shutil.rmtree(folder)
    finish(folder)
    require_equal(folder, whole)


def test_a_kill_with_workers_changes_nothing(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    with subprocess.Popen(
        [sys.executable, "-m", "mim4dd", *COMMAND.split(), "--workers", "2", "--out", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        finish(whole)  # while its workers start
        while not files(folder):
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    finish(folder)
    require_equal(folder, whole)
