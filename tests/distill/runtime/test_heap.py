"""Who keeps the memory that is freed: the command line and workers, and no import."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mim4dd.distill.runtime.heap import keep_freed_memory
from mim4dd.distill.runtime.processes import run_parallel

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries have settings of their own"
)

_BLOCK = 128 * 2**20  # bytes: above what glibc keeps by itself
_LARGEST_PAGE = 2 * 2**20  # that the system may make in one fault

_PROGRAM = """
import importlib, pkgutil, sys
import mim4dd
from test_heap import returns_to_the_system

for module in pkgutil.walk_packages(mim4dd.__path__, "mim4dd."):
    if module.name.startswith(("mim4dd.distill", "mim4dd.cli")):
        importlib.import_module(module.name)
assert returns_to_the_system(), "an import keeps freed memory"
from mim4dd.__main__ import main

sys.argv = ["mim4dd", "--help"]
try:
    main()
except SystemExit:
    pass
assert not returns_to_the_system(), "the command line gives freed memory back"
"""


def returns_to_the_system():
    """Whether a freed block's pages are made anew for the next one, as the faults tell."""
    faults = []
    for _ in range(5):  # a young process has other faults too
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(_BLOCK // 4)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(faults) > _BLOCK // _LARGEST_PAGE // 2


def answer(task):
    return returns_to_the_system()


def start(worker):
    return answer


def test_the_command_line_keeps_freed_memory_and_imports_do_not():
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr


def test_workers_keep_freed_memory():
    assert [kept for _, kept in run_parallel(start, [0], fresh=True)] == [False]


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("must not be asked"))
    assert keep_freed_memory() is False
