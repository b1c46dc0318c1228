"""One binary for every CPU: which instruction set it runs on, and that none needs another."""

import os
import shutil
import subprocess
import sys

import pytest
from places import ROOT

from mim4dd import _C

OBJECTS = sorted((ROOT / "build" / "objects" / "cpu").glob("isa-*.o"))
# What an importing process prints, and how it ends, where MIM4DD_CPU is `name`.
IMPORT = "import torch, mim4dd._C as c; print(c.instruction_set)"


def import_with(name: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "MIM4DD_CPU": name}
    return subprocess.run(
        [sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True, check=False
    )


def test_every_instruction_set_of_this_cpu_can_be_chosen():
    for name in _C.instruction_sets.split():
        assert import_with(name).stdout.strip() == name


def test_the_widest_is_the_default():
    assert import_with("").stdout.strip() == _C.instruction_sets.split()[-1]


def test_an_unknown_one_is_refused_by_name():
    answer = import_with("avx3")
    assert answer.returncode != 0
    assert f"must be one of '{_C.instruction_sets}'" in answer.stderr
    assert "got 'avx3'" in answer.stderr


@pytest.mark.skipif(shutil.which("nm") is None or not OBJECTS, reason="not built in this checkout")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.stem)
def test_no_function_is_shared_between_instruction_sets(path):
    """Of a function that two files compile, the linker keeps one, perhaps the one for AVX-512."""
    listing = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
    of_its_own = f"mim4dd::{path.stem.removeprefix('isa-')}::"
    weak = [line.split(maxsplit=2)[2] for line in listing.splitlines() if line[17:18] in "WVu"]
    shared = [name for name in weak if of_its_own not in name and not name.startswith("DW.ref.")]
    assert not shared
