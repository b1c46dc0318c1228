"""What `make gpu` relies on: results survive a kill, and no stage keeps another from running."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu
import pytest
import toy_stage
from places import ROOT, SUPPORT
from stages import commit, counters, plan, stand_ins
from stages.plan import Part, Setting
from stages.records import BEGUN, FAILED, OK, SKIPPED, STOPPED, Record, Results
from stages.summary import PLAN, summary
from stages.supervise import Stage, supervise


@pytest.fixture(autouse=True)
def _paths(monkeypatch):
    """Where stages find their modules."""
    places = ROOT / "bench", ROOT / "tests", SUPPORT
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results.jsonl")


def statuses(results, stage=None):
    return {case: record.status for (_, case), record in results.cases(stage).items()}


def run_stage(results, stage, limit=60):
    return supervise(stage, results, results.path.with_name("log.txt"), limit)


@pytest.mark.parametrize(
    ("how", "status", "told"),
    [
        ("fail", FAILED, "as it should"),
        ("lost", FAILED, "illegal memory access"),
        ("crash", STOPPED, "killed by signal 9"),
        ("hang", STOPPED, "nothing happened for 4 s"),
    ],
)
def test_the_next_case_runs_whatever_the_last_one_did(how, status, told, results):
    stage = toy_stage.stage(results.path, "toy", "ok", how, "ok 2", case_limit=4)
    ended = run_stage(results, stage)
    assert statuses(results) == {"ok": OK, how: status, "ok 2": OK}
    assert told in results.cases()["toy", how].error
    assert results.cases()["toy", "ok 2"].found == {"figure": 1.5}
    assert ended.reason == ""


def test_a_stage_ends_at_its_limit(results):
    ended = run_stage(results, toy_stage.stage(results.path, "toy", "ok", "hang", "ok 2"), limit=4)
    assert statuses(results) == {"ok": OK, "hang": STOPPED}
    assert ended.reason == "stopped after 4 s"


def test_what_does_not_start_is_not_started_for_ever(results):
    assert run_stage(results, Stage("none", ("false",), 60)).reason == "exit status 1, in no case"


@pytest.mark.parametrize("how", ["fail", "crash", "hang"])
def test_every_part_of_the_plan_may_fail(how, results):
    """Of the real plan, with other commands: some fail, and all the others are there."""
    parts, fails = [], {5} if how == "hang" else range(1, 99, 2)
    for place, part in enumerate(plan.full(Setting(results.path, "cuda"))):
        toy = toy_stage.stage(results.path, part.name, how if place in fails else "ok")
        parts.append(part._replace(stages=(toy,), limit=4 if how == "hang" else 60, needed=""))
    assert not gpu.run(parts, results.path.parent, 600)
    report = (results.path.with_name("report.md")).read_text("utf-8")
    for place, part in enumerate(parts):
        (record,) = results.cases(part.name).values()
        assert (record.status == OK) == (place not in fails)
        assert f"| {part.name} |" in report
        assert (f"- {part.name}, {how}: " in report) == (place in fails)


def test_nothing_follows_where_there_is_no_gpu(results):
    parts = [
        Part("smoke", 60, (toy_stage.stage(results.path, "smoke", "fail"),), needed="versions"),
        Part("later", 60, (toy_stage.stage(results.path, "later", "ok"),)),
    ]
    assert not gpu.run(parts, results.path.parent, 60)
    assert not results.cases("later")
    assert results.cases(PLAN)[PLAN, "later"].error == "not begun: smoke found no versions"


def test_no_part_begins_when_the_time_is_over(results):
    assert gpu.run([], results.path.parent, 60)
    parts = [Part("late", 60, (toy_stage.stage(results.path, "late", "ok"),))]
    gpu.run(parts, results.path.parent, 1)
    assert results.cases(PLAN)[PLAN, "late"].error == "not begun: the time was over"


def test_a_kill_loses_one_case_at_most(tmp_path):
    """Killed again and again, at any moment; what it had started dies with it."""
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = subprocess.Popen([sys.executable, toy_stage.__file__, str(folder)])
        time.sleep(random.uniform(0.1, 0.9))
        process.send_signal(signal.SIGKILL)
        process.wait()
        did = folder / "done.txt"
        wait_for_the_end_of(did)
        lines = did.read_text().split() if did.exists() else []
        results = Results(folder / "results.jsonl")
        ended = [record for record in results.cases().values() if record.status == OK]
        assert len(lines) - 1 <= len(ended) <= len(lines)
        if results.path.exists():
            for line in results.path.read_text().splitlines():
                json.loads(line)
        summary(results.cases())


def wait_for_the_end_of(did):
    """Of the process that wrote there; fails where it goes on."""
    for _ in range(300):
        before = did.read_bytes() if did.exists() else b""
        time.sleep(0.05)
        if before == (did.read_bytes() if did.exists() else b""):
            return
    pytest.fail("a stage outlives what started it")


def test_a_line_cut_short_is_none(results):
    results.append(Record("a", "b", OK))
    with results.path.open("a") as file:
        file.write('{"stage": "a", "case": "c", "stat')
    assert statuses(results) == {"b": OK}


def test_the_second_plan_runs_what_was_wrong_and_the_figures(results):
    before = [
        Record("triage sup_con tf32", "N=M=1000 D=64", FAILED),
        Record("triage sup_con tf32", "N=M=1000 D=96", OK),
        Record("tests/ops/test_nce.py", "tests/ops/test_nce.py::test_x[cuda]", STOPPED),
        Record("tests/ops/test_nce.py", "tests/ops/test_nce.py::test_y[cuda]", SKIPPED),
        Record("sanitizer 2", "memcheck info_nce", BEGUN),
    ]
    for record in before:
        results.append(record)
    setting = Setting(Path("new.jsonl"), "cuda")
    parts = {part.name: part.stages for part in plan.again(setting, results.cases())}
    assert [*parts] == [
        "build", "smoke", "triage again", "tests again", "sanitizer again",
        "tiles", "ceilings", "losses", "pool", "unroll",
    ]  # fmt: skip
    (triage,), (tests,) = parts["triage again"], parts["tests again"]
    assert triage.command[-3:] == ("sup_con", "tf32", "N=M=1000 D=64")
    assert tests.command[-1] == "tests/ops/test_nce.py::test_x[cuda]"
    assert parts["sanitizer again"][0].command[-1] == "memcheck info_nce"
    assert not any("again" in part.name for part in plan.again(setting, {}))


def test_a_rehearsal_has_tests_that_run_without_a_gpu():
    stages = list(plan.files_of_tests(Setting(Path("new.jsonl"), "cpu")))
    assert len(stages) == 2
    assert all("kernel_device" in (ROOT / stage.name).read_text() for stage in stages)


def test_tests_and_benchmarks_are_noted_one_by_one(results, tmp_path, monkeypatch):
    # Here tests may run in workers of xdist, within which pytest-benchmark times nothing.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    file = tmp_path / "test_some.py"
    file.write_text(
        "import os, pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='of no use')\n"
        "def test_left_out(): pass\n"
        "def test_dies(): os._exit(3)\n"
        "def test_timed(benchmark):\n"
        "    benchmark.extra_info['op'] = 'none'\n"
        "    benchmark.pedantic(len, args=((),))\n"
    )
    stage = Setting(results.path, "cuda").pytest("some", 60, f"--rootdir={tmp_path}", str(file))
    assert run_stage(results, stage).reason == ""
    found = {case.rpartition("::")[2]: record for (_, case), record in results.cases().items()}
    assert {name: record.status for name, record in found.items()} == {
        "test_good": OK,
        "test_bad": FAILED,
        "test_left_out": SKIPPED,
        "test_dies": STOPPED,
        "test_timed": OK,
    }
    assert "assert 1 == 2" in found["test_bad"].error
    assert found["test_left_out"].error.endswith("of no use")
    assert found["test_timed"].found["extra_info"] == {"op": "none"}
    assert found["test_timed"].found["stats"]["median"] > 0


@pytest.mark.parametrize("loads", [True, False])
def test_a_wheel_from_elsewhere_is_built_again_if_it_does_not_load(loads, results, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from stages import build

    commands = []

    def run(command, **_):
        commands.append(command)
        if command[-1] == "doctor" and not loads:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(build, "fitting_wheels", lambda: [Path("dist/a.whl")])
    monkeypatch.setattr(build, "take_kernels", dict)
    monkeypatch.setattr(subprocess, "run", run)
    words = ["build", "--results", str(results.path), "--stage", "build"]
    monkeypatch.setattr(sys, "argv", words)
    build.main()
    assert "dist/a.whl" in commands[0]
    assert ("--editable" in commands[-1]) == (not loads)
    assert statuses(results).get("both halves") == (None if loads else OK)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_sources_are_named_as_git_names_them(tmp_path):
    def git(*words):
        options = ["-c", "user.name=a", "-c", "user.email=b", "-c", "commit.gpgsign=false"]
        result = subprocess.run(
            ["git", *options, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    git("init", "-q")
    for name in ("csrc/a.cu", "csrc/a/b.h", "kernels/c.py", "mim4dd/d/e.py", "mim4dd/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "csrc/a.cu").chmod(0o755)
    git("add", ".")
    git("commit", "-qm", "one")
    first = commit.trees(tmp_path)
    assert first == {name: git("rev-parse", f"HEAD:{name}") for name in commit.FOLDERS}
    head = git("rev-parse", "HEAD")
    (tmp_path / "kernels/c.py").write_text("other")
    git("commit", "-qam", "two")
    # Built, and no part of the sources.
    (tmp_path / "mim4dd/_C.abi3.so").write_text("")
    (tmp_path / "mim4dd/kernels").symlink_to("../kernels")
    assert commit.find(first, tmp_path) == head
    assert commit.find(commit.trees(tmp_path), tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "kernels/c.py").write_text("uncommitted")
    assert commit.find(commit.trees(tmp_path), tmp_path) is None


def test_stand_ins_run_what_they_are_given(tmp_path):
    stand_ins.write(tmp_path)
    words = ["--set", "full", "--launch-skip", "1", "echo", "--large", "x"]
    text = subprocess.check_output([tmp_path / "ncu", *words], text=True)
    assert text.startswith("--large x\n")
    found = counters.figures(text)
    assert found["ms"] == pytest.approx(0.01234)
    assert found["registers"] == 168
    assert found["SM %"] == 56.7
