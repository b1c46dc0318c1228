"""Sweeps end to end: what is run once, what failures and kills leave, and the command."""

import csv
import json
import os
import sys

import pytest
from killing import finish, kill_again_and_again
from same_run import leavings

from mim4dd.__main__ import main
from mim4dd.distill.config.commands import DistillConfig
from mim4dd.distill.config.file import read_config
from mim4dd.distill.runs import RunDirectory, read_set
from mim4dd.distill.sweep.grid import make_grid
from mim4dd.distill.sweep.job import Job, Result, run_job
from mim4dd.distill.sweep.plots import draw_sweep
from mim4dd.distill.sweep.run import sweep
from mim4dd.distill.sweep.table import summarize

GIVEN = {
    "width": 8,
    "num_experts": 2,
    "train_epochs": 3,
    "syn_steps": 3,
    "max_start_epoch": 2,
    "num_keys": 40,
    "num_eval": 2,
    "eval_epochs": 10,
    "iterations": 3,
}
OPTIONS = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in GIVEN.items())
VARIED = {"weight": [0.0, 0.1], "lr_img": [1e38]}
COSTS = {"seconds", "seconds_std", "cpu_seconds", "peak_mib", "peak_bytes"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    return sweep(GIVEN, VARIED, out, one_at_a_time=True, seeds=2, workers=2), out


def rows_of(path, without=()):
    with path.open() as file:
        return [
            {name: value for name, value in row.items() if name not in without}
            for row in csv.DictReader(file)
        ]


def test_every_setting_is_distilled_with_every_seed(study):
    study, out = study
    assert [row.setting for row in study.rows] == ["base", "weight=0", "lr_img=1e+38"]
    for row in study.rows[:2]:
        assert (row.accuracy.count, row.networks, row.failures) == (2, 4, {})
        assert row.seconds.mean > 0
        assert row.cpu_seconds.mean > 0
        assert row.peak_mib.mean > 10
        assert row.random_real.count == 2
    assert study.rows[0].mi_lower_bound.count == 2
    assert study.rows[1].mi_lower_bound.count == 0
    experts = set()
    for setting, weight in (("base", 0.1), ("weight=0", 0.0)):
        for seed in (0, 1):
            config = read_config(out / "runs" / setting / f"seed{seed}/config.json", DistillConfig)
            assert (config.seed, config.add_on.weight) == (seed, weight)
            assert config.method.syn_steps == 3
            experts.add(config.experts)
    assert len(experts) == 1  # shared
    assert len(list(out.glob("random_real/*/seed*/result.json"))) == 2  # one recipe
    assert list(json.loads((out / "sources.json").read_text())) == [
        'data {"data": "digits", "data_path": "data", "image_size": null, "zca": false}'
    ]
    assert all(path.exists() for path in study.paths)


def test_the_table_is_of_the_runs(study):
    study, out = study
    results = [Result.read(out / f"runs/weight=0/seed{seed}/result.json") for seed in (0, 1)]
    base = [Result.read(out / f"runs/base/seed{seed}/result.json") for seed in (0, 1)]
    row = study.rows[1]
    assert row.accuracy.mean == pytest.approx(sum(sum(r.accuracy) for r in results) / 4)
    for seed, result in enumerate(results):  # the set tells it too
        synthetic = read_set(out / f"runs/weight=0/seed{seed}")
        assert synthetic.provenance.accuracies[0].values == result.accuracy
    gains = [r.mean - b.mean for r, b in zip(results, base, strict=True)]
    assert row.gain.mean == pytest.approx(sum(gains) / 2)
    metrics = RunDirectory(out / "runs/base/seed0").read_metrics()
    assert base[0].metrics["loss"] == metrics[-2]["loss"]  # the last step; the last row has none
    assert base[0].mi_lower_bound == metrics[-2]["mi_lower_bound"]


def test_a_distillation_that_diverges_is_recorded(study):
    study, out = study
    row = study.rows[2]
    assert row.accuracy.count == 0
    assert list(row.failures) == [0, 1]
    assert "not finite" in row.failures[0]
    assert rows_of(out / "table.csv")[2]["failed"] == "2"


def test_a_set_on_which_networks_diverge_is_recorded(tmp_path):
    """NaN has no mean, and no place in JSON."""
    config = DistillConfig.of(lr_teacher=1e18, width=8, num_eval=2, eval_epochs=10)
    job = Job(config, tmp_path, baseline=True)
    run_job(job)
    result = Result.read(job.result)
    assert result.accuracy == ()
    assert result.failure == "2 of 2 networks trained on the set diverged"


def test_the_command_prints_table_and_paths(study, monkeypatch, capfd):
    study, out = study
    vary = "--vary weight=0,0.1 --vary lr_img=1e38 --one-at-a-time --seeds 2"
    monkeypatch.setattr(sys, "argv", f"mim4dd sweep {OPTIONS} {vary} --out {out}".split())
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert capfd.readouterr().out.splitlines() == [
        *study.table.splitlines(),
        *map(str, study.paths),
    ]


def test_the_command_draws_for_a_paper(study, monkeypatch, capfd):
    _, out = study
    vary = "--vary weight=0,0.1 --vary lr_img=1e38 --one-at-a-time --seeds 2 --paper"
    monkeypatch.setattr(sys, "argv", f"mim4dd sweep {OPTIONS} {vary} --out {out}".split())
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    lines = capfd.readouterr().out.splitlines()
    for kind in ("png", "pdf", "svg"):
        assert str(out / "plots" / f"weight.{kind}") in lines
        assert (out / "plots" / f"weight.{kind}").stat().st_size > 0
    table = (out / "table.tex").read_text()
    assert r"\begin{tabular}{llcc}" in table
    assert table.count(r"\pm") >= 2


def test_finished_runs_are_kept_and_more_may_be_asked_for(study):
    study, out = study
    kept = {path: os.stat(path).st_mtime_ns for path in out.glob("**/*.safetensors")}
    kept |= {path: os.stat(path).st_mtime_ns for path in out.glob("**/result.json")}
    varied = {"weight": [0.0], "temperature": [0.2]}
    more = sweep(GIVEN, varied, out, one_at_a_time=True, seeds=3, workers=2)
    assert [row.accuracy.count for row in more.rows] == [3, 3, 3]
    assert {path: os.stat(path).st_mtime_ns for path in kept} == kept
    with pytest.raises(ValueError, match=r"another base, which .*syn_steps: 3 → 2; choose"):
        sweep({**GIVEN, "syn_steps": 2}, {"weight": [0.0]}, out)
    with pytest.raises(ValueError, match="against must name a value that the sweep has"):
        sweep(GIVEN, {"weight": [0.0]}, out, against="weight=7")
    with pytest.raises(ValueError, match=r"against must be name=value, got 'weight=0,0\.1'"):
        sweep(GIVEN, {"weight": [0.0]}, out, against="weight=0,0.1")
    for name in ("seeds", "workers"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            sweep(GIVEN, {"weight": [0.0]}, out, **{name: 0})


def test_killed_at_any_moment_the_command_continues(tmp_path):
    command = f"sweep {OPTIONS} --iterations 40 --checkpoint-every 5 --seeds 1 --vary weight=0,0.1"
    finish(tmp_path, f"{command} --out whole")
    kill_again_and_again(tmp_path, lambda: f"{command} --out parts", kills=2, longest=3)
    for name in ("table.csv", "runs.csv"):
        whole, parts = (rows_of(tmp_path / folder / name, COSTS) for folder in ("whole", "parts"))
        assert whole == parts
        assert float(parts[0]["accuracy"]) > 0
    for setting in ("base", "weight=0"):
        whole, parts = (
            leavings(tmp_path / folder / "runs" / setting / "seed0")
            for folder in ("whole", "parts")
        )
        assert whole == parts


def test_options_that_do_not_fit_name_the_setting(study):
    _, out = study
    with pytest.raises(ValueError, match="layers=conv7: layers must name submodules"):
        sweep(GIVEN, {"layers": ["conv7"]}, out, seeds=1)


def test_a_result_that_is_none_is_refused(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"seed": 1}))
    with pytest.raises(
        ValueError, match=r"result\.json does not hold the result of a distillation"
    ):
        Result.read(path)


def test_a_result_of_unknown_classes_is_read_and_drawn_without_their_bound(tmp_path):
    """Those that first versions wrote name no classes."""
    values = {"seed": 3, "accuracy": [0.5, 0.6], "metrics": {"mi_lower_bound": 1.5}}
    path = tmp_path / "result.json"
    path.write_text(json.dumps(values | {"num_classes": None}))
    result = Result.read(path)
    assert (result.seed, result.num_classes, result.mi_lower_bound) == (3, 0, 1.5)
    (setting,) = make_grid({}, {"weight": [0.1]}, True)
    row = summarize(setting, [result], [result], None, [result])
    paths = draw_sweep([row], {("base", 3): result}, "digits", tmp_path, cpu=True)
    assert paths == [tmp_path / "mi_bound.png"]


def test_options_are_combined_unless_one_at_a_time_is_asked_for(tmp_path, monkeypatch):
    judged = []
    monkeypatch.setattr(
        "mim4dd.distill.sweep.run.judge_settings",
        lambda settings, *_, **__: judged.append([setting.name for setting in settings]),
    )
    varied = {"weight": [0.0, 0.1], "temperature": [0.1, 0.2]}
    sweep({}, varied, tmp_path)
    sweep({}, varied, tmp_path, one_at_a_time=True)
    assert judged[0] == ["weight=0", "weight=0,temperature=0.2", "base", "temperature=0.2"]
    assert judged[1] == ["base", "weight=0", "temperature=0.2"]
