"""Kernels that one machine compiles are found by the launches of another."""

import json
import os
import subprocess
import sys
import tarfile

import pytest
from places import ROOT, SUPPORT

pytest.importorskip("triton")

from launch_recorder import record_of
from one_launch import OPTIONS, arguments
from stages import carried

from mim4dd.kernels._forward import combine_kernel


def python(file, *words, cache):
    """Run with Triton's compiler instead of its interpreter."""
    surroundings = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    surroundings |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT / "bench")}
    command = [sys.executable, file, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    record = record_of(combine_kernel, 90, arguments(), {"grid": (1,), **OPTIONS})
    records = [{**record, "capability": each, "launches": 1, "test": "a"} for each in (80, 90)]
    launches, packed = folder / "launches.jsonl", folder / "dist" / "kernels.tar.xz"
    launches.write_text("".join(json.dumps(each) + "\n" for each in records), "utf-8")
    found = python(
        ROOT / "bench" / "compile_launches.py", launches, "--pack", packed, cache=folder / "unused"
    )
    assert found.returncode == 0, found.stderr
    assert "1 kernels in" in found.stdout  # that for an sm_80 stays here
    assert not (folder / "unused").exists()
    return packed


def test_a_launch_finds_what_was_compiled_elsewhere(archive, tmp_path):
    """By the real way of a launch: were it to compile, there would be its steps."""
    found = python(SUPPORT / "one_launch.py", archive, 90, cache=tmp_path)
    assert (found.returncode, found.stdout) == (0, "1\n"), found.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".cubin"}
    assert len(files) == 3


def test_kernels_of_another_gpu_are_refused(archive, tmp_path):
    """So it is told that they are of no use, and nothing is left behind."""
    found = python(SUPPORT / "one_launch.py", archive, 100, cache=tmp_path)
    assert "ValueError: its kernels are of another assembler" in found.stderr
    assert not list(tmp_path.iterdir())


def test_names_in_an_archive_lead_to_no_other_place(archive, tmp_path, monkeypatch):
    """Whatever they are: a file lies in a folder of the cache."""
    bad = tmp_path / "bad.tar.xz"
    with tarfile.open(archive) as tar:
        keys = tar.extractfile(carried.KEYS).read()
    with tarfile.open(bad, "w:xz") as tar:
        carried._add(tar, carried.KEYS, keys)
        carried._add(tar, "../../../away/kernel.cubin", b"machine code")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    carried.unpack(bad, 90)
    assert (tmp_path / "cache" / "away" / "kernel.cubin").read_bytes() == b"machine code"
    assert not (tmp_path / "away").exists()
