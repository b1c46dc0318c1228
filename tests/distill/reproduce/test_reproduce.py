"""Rows of published tables: what is asked for, what a kill leaves, files and their table.

Jobs run in this process here: tests of sweeps kill those that have processes of their own.
"""

import json
import math
import os
import random
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
from places import ROOT

import mim4dd
from mim4dd.__main__ import main
from mim4dd.distill.evaluation.recipe import Accuracy
from mim4dd.distill.reproduce.known import ROWS, chosen_rows
from mim4dd.distill.reproduce.record import read_record
from mim4dd.distill.reproduce.rows import Budget, PublishedRow
from mim4dd.distill.reproduce.run import reproduce
from mim4dd.distill.reproduce.table import markdown_table, write_table
from mim4dd.distill.runtime import machine
from mim4dd.distill.sweep import job as sweep_job
from mim4dd.distill.sweep.job import Job, Result, run_job

NAME = "digits-dm-ipc1-0"
(ROW,) = chosen_rows([NAME])
COSTS = {
    "seconds", "cpu_seconds", "peak_bytes", "seconds_per_iteration", "cpu_seconds_per_iteration",
    "peak_mib", "machine", "threads", "torch", "mim4dd", "commit",
}  # fmt: skip


def without_costs(record):
    kept = {name: value for name, value in record.items() if name not in COSTS}
    kept["distillations"] = [
        {name: value for name, value in each.items() if name not in COSTS}
        for each in record["distillations"]
    ]
    return kept


def record_of(**changes):
    """The file of a row, as the table reads it."""
    given = {
        "data": "mnist", "method": "dm", "ipc": 10, "weight": 0.0, "iterations": 300, "experts": 0,
        "published": 0.975, "accuracy": {"mean": 0.95, "std": 0.012, "n": 3},
        "random_real": {"mean": 0.9, "std": None, "n": 1}, "seconds_per_iteration": 2.345,
        "cpu_seconds_per_iteration": 1.5, "peak_mib": 812.4, "note": "",
        "differs": {"iterations": {"here": 300, "published": 20000}},
        "options": {"lr_img": 1.0, "weight": 0.0},
        "distillations": [
            {"failure": None, "seed": seed, "accuracy": [accuracy], "random_real": [real]}
            for seed, accuracy, real in ((0, 0.94, 0.9), (1, 0.96, 0.9))
        ],
    }  # fmt: skip
    return given | changes


class Killed(BaseException):
    """What ends a process, for all that can be seen on the disk."""


def call(command):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["mim4dd", *command.split()])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code


def make_row(folder, killed_at=None):
    """Run the command in a folder; killed before a file is written for the so-manieth time."""
    written, replace_file = [], os.replace

    def count(*arguments):
        written.append(None)
        if len(written) == killed_at:
            raise Killed
        replace_file(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "mim4dd.distill.reproduce.run.run_jobs", lambda jobs, _: list(map(run_job, jobs))
        )
        patched.setattr(os, "replace", count)
        call(f"reproduce {NAME} --note word --out {folder}/runs --results {folder}/results")
    return len(written)


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(
        "mim4dd.distill.reproduce.run.run_jobs", lambda jobs, _: list(map(run_job, jobs))
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    return folder, make_row(folder)


@pytest.fixture
def done(whole):
    folder, _ = whole
    return folder, read_record(folder / "results" / f"{NAME}.json")


def test_the_file_tells_what_the_distillations_reached(done):
    folder, record = done
    assert (record["data"], record["method"], record["ipc"], record["weight"]) == (
        "digits", "dm", 1, 0.0
    )  # fmt: skip
    assert (record["iterations"], record["experts"], record["published"]) == (20, 0, None)
    assert (record["budget"], record["source"], record["note"]) == ("small", ROW.source, "word")
    results = [
        Result.read(folder / f"runs/small/runs/{NAME}/seed{seed}/result.json") for seed in (0, 1)
    ]
    means = [statistics.fmean(result.accuracy) for result in results]
    # Over distillations, not over the four networks.
    assert record["accuracy"]["mean"] == pytest.approx(statistics.fmean(means))
    assert record["accuracy"]["std"] == pytest.approx(statistics.stdev(means))
    assert record["accuracy"]["n"] == record["random_real"]["n"] == 2
    for each, result in zip(record["distillations"], results, strict=True):
        assert tuple(each["accuracy"]) == result.accuracy
        assert len(each["random_real"]) == 2
        assert each["torch"]
    assert record["seconds_per_iteration"] > 0
    assert record["peak_mib"] > 10
    assert record["differs"]["num_eval"] == {"here": 2, "published": 5}
    assert "data_path" not in record["options"]
    table = (folder / "results" / "README.md").read_text()
    assert "| digits | DM | 1 |" in table


def test_a_row_that_is_there_is_left_and_seeds_are_added(done, in_process, tmp_path):
    _, record = done
    results = tmp_path / "results"
    results.mkdir()
    path = results / f"{NAME}.json"
    path.write_text(json.dumps(record))
    before = path.read_bytes()
    reproduce(ROW, tmp_path / "runs", results)  # nothing is missing, so nothing is run
    assert path.read_bytes() == before
    assert not (tmp_path / "runs").exists()

    # As another machine left it after one of the seeds: the other is run, to the same values.
    path.write_text(json.dumps({**record, "distillations": record["distillations"][:1]}))
    reproduce(ROW, tmp_path / "runs", results, note="word")
    assert without_costs(read_record(path)) == without_costs(record)
    assert not (tmp_path / f"runs/small/runs/{NAME}/seed0").exists()

    # A shorter run never takes the place of a longer one.
    longer = {**record, "iterations": 21, "options": {**record["options"], "iterations": 21}}
    path.write_text(json.dumps(longer))
    before = path.read_bytes()
    reproduce(ROW, tmp_path / "runs", results)
    assert path.read_bytes() == before


def test_a_row_that_needs_experts_trains_them_and_says_how_many(in_process, tmp_path):
    few = {
        "width": 8, "num_experts": 2, "train_epochs": 3, "syn_steps": 2, "max_start_epoch": 1,
        "num_keys": 20, "iterations": 2, "num_eval": 1, "eval_epochs": 2,
    }  # fmt: skip
    row = PublishedRow("digits", "mtt", 1, 0.1, None, "", Budget(1, few), Budget(1))
    assert row.name == "digits-mtt-ipc1-0.1"
    record = read_record(reproduce(row, tmp_path / "runs", tmp_path))
    assert (record["experts"], record["options"]["train_epochs"]) == (2, 3)
    assert record["differs"]["num_experts"] == {"here": 2, "published": 10}
    assert record["accuracy"]["std"] is None  # of one
    assert record["distillations"][0]["metrics"]["mi_lower_bound"] <= math.log(10)
    assert len(list((tmp_path / "runs" / "small" / "experts").iterdir())) == 1


def test_another_precision_is_noted_and_no_run_of_it_is_taken_for_a_row(done, in_process, tmp_path):
    folder, _ = done
    record = read_record(reproduce(ROW, tmp_path / "runs", tmp_path, precision="bfloat16"))
    assert record["differs"]["precision"] == {"here": "bfloat16", "published": "float32"}
    with pytest.raises(ValueError, match="holds a run with another precision"):
        reproduce(ROW, folder / "runs", tmp_path / "others", precision="bfloat16")


def test_runs_of_other_options_are_refused(done, tmp_path):
    folder, _ = done
    other = replace(ROW, small=Budget(1, {**ROW.small.options, "lr_img": 2.0}))
    with pytest.raises(ValueError, match=r"holds a run with another lr_img: .* → 2\.0"):
        reproduce(other, folder / "runs", tmp_path)


def test_killed_at_any_moment_the_row_is_the_same(whole, done, tmp_path):
    _, writes = whole
    _, record = done
    for _ in range(4):
        with pytest.raises(Killed):
            make_row(tmp_path, random.randint(1, writes // 5))
    make_row(tmp_path)
    assert record["accuracy"]["n"] == 2
    assert without_costs(read_record(tmp_path / "results" / f"{NAME}.json")) == without_costs(
        record
    )
    for seed in (0, 1):  # the sets too, bit for bit
        files = [
            folder / f"runs/small/runs/{NAME}/seed{seed}/synthetic.safetensors"
            for folder in (whole[0], tmp_path)
        ]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_stop_between_networks_keeps_those_that_were_judged(tmp_path, monkeypatch):
    config = ROW.setting("small").config
    run_job(Job(config, tmp_path / "whole", baseline=True))
    whole = Result.read(tmp_path / "whole" / "result.json").accuracy
    judged = []

    def stop_at_the_second(*arguments):
        if judged:
            raise KeyboardInterrupt
        judged.append(None)
        return Accuracy((0.125,))  # which a network trained once more would not have

    with monkeypatch.context() as patched:
        patched.setattr(sweep_job, "evaluate", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run_job(Job(config, tmp_path / "parts", baseline=True))
    run_job(Job(config, tmp_path / "parts", baseline=True))
    parts = Result.read(tmp_path / "parts" / "result.json").accuracy
    assert parts == (0.125, *whole[1:])


def test_the_table_is_of_the_files():
    lines = markdown_table(
        [
            record_of(),
            record_of(
                weight=0.1,
                published=None,
                note="a word",
                options={"lr_img": 1.0, "weight": 0.1},
                distillations=[  # of one seed in common
                    {"failure": None, "seed": 1, "accuracy": [0.97, 0.99], "random_real": []},
                    {"failure": None, "seed": 2, "accuracy": [0.5], "random_real": [0.5]},
                ],
            ),
            record_of(weight=0.1, options={"lr_img": 2.0, "weight": 0.1}),  # not alike
            record_of(
                accuracy={"mean": None, "std": None, "n": 0},
                random_real={"mean": None, "std": None, "n": 0},
                options={},
                seconds_per_iteration=None,
                distillations=[
                    {"failure": "diverged", "seed": 4, "accuracy": [], "random_real": [0.9]}
                ],
            ),
        ]
    ).splitlines()
    differs = "`iterations` 300 for 20000"
    over = "+5.0 ± 1.4 (-7.7 … +17.7; p 0.126)"
    assert lines[2:] == [
        f"| mnist | DM | 10 | 95.0 ± 1.2 | 3 | 97.5 | -2.5 | 90.0 | {over} |  | 300 |  | 2.35 "
        f"| 1.50 | 812 | {differs} |",
        "| mnist | DM + MIM4DD, λ 0.1 | 10 | 95.0 ± 1.2 | 3 | – | – | 90.0 | +0.0 | +2.0 | 300 |  "
        f"| 2.35 | 1.50 | 812 | {differs}, a word |",
        f"| mnist | DM + MIM4DD, λ 0.1 | 10 | 95.0 ± 1.2 | 3 | 97.5 | -2.5 | 90.0 | {over} |  "
        f"| 300 |  | 2.35 | 1.50 | 812 | {differs} |",
        "| mnist | DM | 10 | – | 0 | 97.5 | – | – |  |  | 300 |  |  | 1.50 | 812 "
        f"| {differs}, seed 4 diverged |",
    ]
    assert {line.count("|") for line in lines} == {17}


def test_the_text_around_the_table_is_kept(tmp_path):
    for name, ipc in (("mnist-dm-ipc10-0", 10), ("mnist-dm-ipc1-0", 1)):
        (tmp_path / f"{name}.json").write_text(json.dumps(record_of(ipc=ipc)))
    page = write_table(tmp_path)
    assert page.read_text().startswith("<!-- rows -->")
    page.write_text(f"# Title\n\n{page.read_text()}\nAfter.\n")
    (tmp_path / "mnist-dm-ipc10-0.json").write_text(
        json.dumps(record_of(accuracy={"mean": 0.5, "std": None, "n": 1}))
    )
    text = write_table(tmp_path).read_text()
    assert text.startswith("# Title\n\n<!-- rows -->")
    assert text.endswith("<!-- end of rows -->\n\nAfter.\n")
    assert text.index("| mnist | DM | 1 |") < text.index("| mnist | DM | 10 | 50.0 | 1 |")
    assert text.count("| mnist |") == 2
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"other\.json must hold a row of docs/reproduce, it lacks"
    ):
        write_table(tmp_path)


def test_the_table_of_the_repository_is_of_its_files(tmp_path):
    folder = ROOT / "docs" / "reproduce"
    for path in [folder / "README.md", *folder.glob("*.json")]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert write_table(tmp_path).read_bytes() == (folder / "README.md").read_bytes()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_can_be_asked_for(row):
    small, whole = (row.setting(budget).config for budget in ("small", "published"))
    assert small.iterations <= whole.iterations
    assert (small.method_name, small.ipc, small.add_on.weight) == (row.method, row.ipc, row.weight)
    assert row.published is None or 0.2 < row.published < 1
    assert (row.published is None) == (row.weight > 0 or row.data == "digits")


def test_whole_rows_are_as_published():
    def whole(name):
        (row,) = chosen_rows([name])
        return row.setting("published")

    assert whole("mnist-dm-ipc50-0").config.iterations == 20000
    assert whole("mnist-dc-ipc10-0").config.iterations == 10000  # 1000 networks, 10 steps each
    assert whole("mnist-dc-ipc10-0").config.num_eval == 20
    mtt = whole("cifar10-mtt-ipc1-0.1")
    assert (mtt.config.iterations, mtt.config.zca, mtt.config.add_on.weight) == (5000, True, 0.1)
    assert (mtt.experts.num_experts, mtt.experts.train_epochs) == (100, 50)
    assert whole("cifar10-dc-ipc1-0").config.eval_dsa_strategy == "none"
    assert [row.name for row in chosen_rows([])] == [row.name for row in ROWS]
    with pytest.raises(ValueError, match=r"row must be one of .*, got 'mnist-gan'"):
        chosen_rows(["mnist-gan"])
    with pytest.raises(ValueError, match="budget must be one of 'small', 'published', got 'big'"):
        ROW.setting("big")


def test_the_command_lists_what_is_here(done, capsys):
    folder, record = done
    call(f"reproduce --list {NAME} mnist-dm-ipc1-0 --results {folder / 'results'}")
    here, other = capsys.readouterr().out.splitlines()
    assert here.startswith(f"{NAME}: {100 * record['accuracy']['mean']:.1f} ± ")
    assert "(n = 2), published –" in here
    assert other == "mnist-dm-ipc1-0: not here"


def test_the_commit_is_that_of_the_sources(monkeypatch, tmp_path):
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    commit = machine.describe_machine()["commit"]
    assert commit is None if head.returncode else commit.rstrip("+") == head.stdout.strip()
    # A package that only lies within a checkout is not of it.
    monkeypatch.setattr(mim4dd, "__file__", str(tmp_path / "__init__.py"))
    assert machine.describe_machine()["commit"] is None
