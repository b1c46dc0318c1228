"""What tests launch is noted as Triton would compile it, and compiled without a GPU."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from places import ROOT

pytest.importorskip("triton")

import launch_recorder
from launch_recorder import LaunchRecorder, record_of
from one_launch import FORM, OPTIONS, arguments

from mim4dd.kernels._arguments import Losses, Tiling
from mim4dd.kernels._forward import combine_kernel
from mim4dd.kernels._rows import normalize_kernel


def combined(*some, **changes):
    """A launch of the kernel that joins the parts of losses."""
    return record_of(combine_kernel, 90, arguments(*some, **changes), {"grid": (1,), **OPTIONS})


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    """One that notes nothing by itself."""
    monkeypatch.setattr(launch_recorder.InterpretedFunction, "run", lambda kernel, *args, **_: None)
    return LaunchRecorder(tmp_path / "launches.jsonl")


def test_types_constants_and_alignment_are_noted():
    record = combined()
    assert record["kernel"] == "combine_kernel"
    assert record["module"] == "mim4dd.kernels._forward"
    assert record["options"] == {"num_warps": 4}
    assert record["signature"] == {
        "partial_ptr": "*fp32",
        "labels_ptr": "*i64",
        "weight_ptr": "*fp32",
        "losses": ("*fp32", "*fp32", "constexpr"),
        "N": "i32",
        "splits": "i32",
        "form": "constexpr",
        "BLOCK_N": "constexpr",
    }
    form = ["mim4dd.kernels._arguments", "Form", ["out", False, False]]
    assert record["constants"] == [[(3, 2), None], [(6,), form], [(7,), 128]]
    assert record["divisible"] == [(0,), (1,), (2,), (3, 0), (3, 1), (4,)]


def test_what_makes_another_kernel_is_another_record():
    records = [
        combined(),
        combined(1),
        combined(16),
        combined(offset=1),
        combined(form=FORM[:0]),
    ]
    assert len({json.dumps(record) for record in records}) == 5
    assert combined(3) == combined(2)


def test_numbers_that_a_kernel_does_not_specialise_stay_numbers():
    rows, table = torch.zeros(2), torch.zeros(1, dtype=torch.int64)
    options = {"KEYS": True, "DIVISOR": 1, "BLOCK_R": 1, "BLOCK_D": 1}
    records = [
        record_of(normalize_kernel, 90, (rows, rows, rows, table, R), options) for R in (1, 16)
    ]
    assert records[0] == records[1]
    assert records[0]["signature"]["R"] == "i32"


def test_kernels_are_noted_as_on_a_gpu():
    interpreted = Tiling(True, 16, "ieee", True, 16, 16, 16, 16)
    assert launch_recorder.as_json(interpreted)[2] == [True, 16, "ieee", False, 16, 16, 16, 16]


def test_the_gpu_of_a_test_is_noted(recorder, monkeypatch):
    from mim4dd.kernels import _paired

    empty = torch.zeros(1)
    for capability in (90, 100):
        monkeypatch.setattr(_paired, "capability", lambda device, on=capability: on)
        combine_kernel[(1,)](empty, empty, empty, Losses(None, None, None), 1, 1, FORM, BLOCK_N=16)
    assert [json.loads(each)["capability"] for each in recorder.counts] == [90, 100]


def test_an_h200_is_what_the_launchers_see(monkeypatch):
    from mim4dd.kernels import _inputs, _paired

    for module in launch_recorder.kernel_modules():
        for name in ("capability", "num_multiprocessors"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(module, name))  # to be put back
    cpu = torch.device("cpu")
    assert _inputs.split(8, 4096, 64, cpu) == (1, 4096)
    launch_recorder.pretend_h200()
    assert _inputs.split(8, 4096, 64, cpu) == (32, 128)
    assert _paired.capability(cpu) == 90


def test_launches_of_all_processes_are_counted(recorder):
    record = json.dumps(combined())
    recorder.pytest_runtest_setup(SimpleNamespace(nodeid="here"))
    recorder.note(record)
    for found in ([[record, 2, "there"]], [[json.dumps(combined(1)), 3, "there"]]):
        node = SimpleNamespace(workeroutput={"launches": json.dumps(found)})
        recorder.pytest_testnodedown(node)
    recorder.pytest_testnodedown(SimpleNamespace())  # it crashed
    recorder.pytest_sessionfinish(SimpleNamespace(config=SimpleNamespace()))
    lines = [json.loads(line) for line in recorder.path.read_text("utf-8").splitlines()]
    assert sorted((line["launches"], line["test"]) for line in lines) == [(3, "here"), (3, "there")]


def test_a_process_of_several_hands_its_launches_over(recorder):
    recorder.note("{}", test="there")
    config = SimpleNamespace(workeroutput={})
    recorder.pytest_sessionfinish(SimpleNamespace(config=config))
    assert json.loads(config.workeroutput["launches"]) == [["{}", 1, "there"]]
    assert not recorder.path.exists()


def test_what_does_not_compile_is_told_with_its_test(tmp_path):
    right = {**combined(), "launches": 5, "test": "one that is right"}
    alike = {**right, "divisible": [], "test": "one that the front end sees alike"}
    wrong = {
        **right,
        "signature": {**right["signature"], "N": "*fp32"},
        "test": "one that is wrong",
    }
    path = tmp_path / "launches.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (right, alike, wrong)), "utf-8")
    command = [sys.executable, ROOT / "bench" / "compile_launches.py", path, "--front-end"]
    surroundings = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    assert "| combine_kernel | 10 | 2 | 1 |" in found.stdout
    assert "| all | 10 | 2 | 1 |" in found.stdout
    assert found.returncode == 1
    assert "CompilationError" in found.stderr
    assert "one that is wrong" in found.stderr
    assert "one that is right" not in found.stderr


def test_a_file_without_launches_is_an_error(tmp_path):
    """So the gate does not pass because nothing was noted."""
    from compile_launches import report

    with pytest.raises(SystemExit, match="has no launches"):
        report(tmp_path / "launches.jsonl", [], [])
