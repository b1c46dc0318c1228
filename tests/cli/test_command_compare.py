"""`mim4dd compare`, as a user types it."""

import json
import os
import statistics
from pathlib import Path

import pytest
from command_line import DISTILL, EXPERTS

from mim4dd.distill.runs import RunDirectory, SyntheticSet


def test_compare_leaves_a_summary_and_continues(mim4dd):
    options = f"{DISTILL.replace('--experts experts', '')} {EXPERTS} --iterations 3"
    status, out, err = mim4dd(f"compare {options} --num-distill 2 --install-seconds 12 --out demo")
    assert status == 0, err
    summary = json.loads(Path("demo/summary.json").read_text())
    assert summary["dataset"] == "digits"
    assert summary["seconds"].keys() == {"install", "experts", "distill", "evaluate"}
    assert summary["seconds"]["install"] == 12
    by_name = summary["accuracy"]["ipc"]["1"]
    for accuracy in (summary["accuracy"]["full"], *by_name.values()):
        assert accuracy.keys() - {"networks"} == {"mean", "std", "seeds"}
        assert 0 <= accuracy["mean"] <= 1
    counts = {name: (each["seeds"], each.get("networks")) for name, each in by_name.items()}
    assert counts == {"random_real": (2, None), "mtt": (2, 4), "mtt+mim4dd": (2, 4)}
    scores = summary["label_robust_score"]
    assert scores.keys() == {"mtt", "mtt+mim4dd"}
    assert all(0 <= each["mean"] <= 1 for each in scores.values())
    assert "LRS of MTT + MIM4DD" in out
    difference = by_name["mtt+mim4dd"]["mean"] - by_name["mtt"]["mean"]
    gain = summary["mim4dd_gain"]
    assert gain["mean"] == pytest.approx(difference)
    assert gain["low"] <= gain["mean"] <= gain["high"]
    sets = [SyntheticSet.load(f"demo/mtt/seed{seed}/synthetic.safetensors") for seed in (0, 1)]
    noted = [each.provenance.accuracies[0].values for each in sets]
    assert (len(noted[0]), len(noted[1])) == (2, 2)
    # Over distillations, each with the mean of its networks.
    means = [statistics.fmean(values) for values in noted]
    assert by_name["mtt"]["mean"] == pytest.approx(statistics.fmean(means))
    assert by_name["mtt"]["std"] == pytest.approx(statistics.stdev(means))
    weights = [RunDirectory(f"demo/{method}/seed0").read_config()["weight"] for method in
               ("mtt", "mtt+mim4dd")]  # fmt: skip
    assert weights == [0.0, 0.1]
    for path in summary["pictures"]:
        assert Path(path).exists()
        assert path in out
    assert "MIM4DD adds" in out
    assert "log C = 2.30" in out

    before = os.stat("demo/mtt/seed0/synthetic.safetensors").st_mtime_ns
    assert mim4dd(f"compare {options} --num-distill 2 --out demo")[0] == 0
    assert os.stat("demo/mtt/seed0/synthetic.safetensors").st_mtime_ns == before
    status, _, err = mim4dd(f"compare {options} --num-distill 2 --syn-steps 2 --out demo")
    assert status == 1
    refusal = "demo/mtt/seed0 holds a run with another syn_steps: 3 → 2; choose another --out"
    assert err.strip() == f"mim4dd: {refusal}"  # before any work, whichever worker is first


def test_compare_takes_methods_without_experts(mim4dd):
    few = "--width 8 --iterations 2 --num-keys 20 --num-eval 1 --eval-epochs 5 --num-distill 1"
    status, out, err = mim4dd(f"compare --method dm {few} --out demo")
    assert status == 0, err
    summary = json.loads(Path("demo/summary.json").read_text())
    assert summary["method"] == "dm"
    assert summary["accuracy"]["ipc"]["1"].keys() == {"random_real", "dm", "dm+mim4dd"}
    assert "1 per class by DM + MIM4DD" in out
    assert " points to DM\n" in out  # one pair tells nothing of a spread
    assert "MTT" not in out
    assert summary["seconds"]["experts"] is None
    assert out.count(" (–) %  of 1 networks") == 2  # of real images; one has no deviation
    assert out.count(" %  of 1 distillation, 1 networks") == 2


def test_compare_takes_experts_that_are_there(with_experts):
    few = f"{DISTILL} --iterations 1 --num-distill 1 --num-eval 1"
    status, _, err = with_experts(f"compare {few} --out demo")
    assert status == 0, err
    assert RunDirectory("demo/mtt/seed0").read_config()["experts"] == "experts"
    assert not Path("demo/experts").exists()
