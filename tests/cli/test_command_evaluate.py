"""`mim4dd evaluate`, as a user types it: its tables, files and errors."""

import csv
import re
from pathlib import Path

import pytest
import torch
from command_line import DISTILL, EXPERTS

from mim4dd.distill.runs import RunDirectory, SyntheticSet


def test_runs_of_different_tasks_are_not_set_beside_one_baseline(with_experts):
    mim4dd = with_experts
    for ipc in (1, 2):
        mim4dd(f"distill {DISTILL} --iterations 1 --ipc {ipc} --out ipc{ipc}")
    status, _, err = mim4dd("evaluate ipc1 ipc2")
    assert status == 1
    assert "these differ in ipc; --no-baselines" in err
    status, out, _ = mim4dd("evaluate ipc1 ipc2 --no-baselines")
    assert status == 0
    assert len(out.splitlines()) == 2


def test_evaluation_across_architectures_and_recipes(with_experts):
    mim4dd = with_experts
    mim4dd(f"distill {DISTILL} --iterations 1 --out one")
    mim4dd(f"distill {DISTILL} --iterations 1 --seed 1 --out two")
    options = "one two --networks mlp,lenet,convnet --eval-epochs 3 --csv table.csv"
    status, out, err = mim4dd(f"evaluate {options}")
    assert status == 0, err
    header, *lines = out.splitlines()
    lines, scores = lines[:4], lines[4:]
    assert scores[0].startswith("DD-Ranking, in percent")
    assert [line.split()[:2] for line in scores[1:]] == [
        ["set", "network"], *([name, on] for name in ("one", "two") for on in header.split()[-3:]),
    ]  # fmt: skip
    assert header.split() == ["%,", "of", "2", "networks", "each", "mlp", "lenet", "convnet"]
    names = ["one", "two", "1 random real images per class", "whole training set"]
    assert [line.split("  ")[0] for line in lines] == names
    with open("table.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row in rows:
        assert row.keys() == {"set", "network", "mean", "std", "seeds"}
        shown = f"{100 * float(row['mean']):.1f} ({100 * float(row['std']):.1f})"
        assert shown in lines[names.index(row["set"])]
        assert (0 <= float(row["mean"]) <= 1, row["seeds"]) == (True, "2")
    own = mim4dd("evaluate one --no-baselines --eval-epochs 3 --csv own.csv")[1]
    assert own.split()[1:3] == lines[0].split()[-2:]  # on the run's own network
    assert Path("own.csv").read_text().splitlines()[1].startswith("one,convnet,")

    status, out, err = mim4dd("evaluate one --coresets --num-eval 1 --eval-epochs 2")
    assert status == 0, err
    names = [line.split("  ")[0] for line in out.splitlines()[:6]]
    chosen = [f"1 real images per class by {name}" for name in ("herding", "k-centre", "EL2N")]
    assert names == ["one", "1 random real images per class", "whole training set", *chosen]
    status, _, err = mim4dd("evaluate one --coresets --fairness")
    assert (status, err.strip()) == (
        1, "mim4dd: --coresets takes neither --fairness nor --no-baselines"
    )  # fmt: skip

    few = "--num-eval 1 --eval-epochs 2"
    status, out, err = mim4dd(f"evaluate one --fairness --regimes {few}")
    assert status == 0, err
    labels = [line.split()[2] for line in out.splitlines()[1:5]]
    assert labels == ["hard", "hard", "soft", "teacher"]
    assert out.splitlines()[6].startswith("teacher: such a network's labels of every augmented")
    assert out.splitlines()[-2].split() == ["set", "network", "LRS", "ARS"]
    status, out, err = mim4dd(
        "evaluate one --fairness --regimes --num-tests 2 --csv best.csv " + few
    )
    assert status == 0, err
    assert re.split("  +", out.splitlines()[0])[-5:] == [
        "% of 1 networks", "best over epochs", "random real", "best over epochs", "gain"
    ]  # fmt: skip
    with open("best.csv") as file:
        for row in csv.DictReader(file):
            for prefix in ("", "random_real_"):
                best = float(row[f"{prefix}best_over_epochs_mean"])
                assert best >= float(row[f"{prefix}mean"])
    status, out, err = mim4dd("evaluate one --num-tests 3 --num-eval 1 --eval-epochs 3")
    assert status == 0, err
    header, own, *_ = out.splitlines()
    assert re.split("  +", header)[-2:] == ["last epoch", "best over epochs"]
    last, best = (float(cell) for cell in own.replace("(–)", "").split()[1:])
    assert best >= last
    status, _, err = mim4dd("evaluate one --num-tests 0")
    assert (status, "--num-tests must be at least 1, got 0" in err) == (1, True)
    status, _, err = mim4dd("evaluate one --regimes")
    assert (status, "--regimes needs --fairness" in err) == (1, True)

    status, out, err = mim4dd("evaluate one --fairness --networks lenet,convnet --csv gains.csv")
    assert status == 0, err
    assert [line.split()[:4] for line in out.splitlines()[:5]] == [
        ["set", "network", "labels", "augmentation"],
        ["one", "lenet", "hard", "crop_scale_rotate"],
        ["one", "lenet", "hard", "none"],
        ["one", "convnet", "hard", "crop_scale_rotate"],
        ["one", "convnet", "hard", "none"],
    ]
    assert [line.split()[1] for line in out.splitlines()[-2:]] == ["lenet", "convnet"]
    assert "% of 2 networks" in out.splitlines()[0]
    with open("gains.csv") as file:
        for row in csv.DictReader(file):
            gain = float(row["mean"]) - float(row["random_real_mean"])
            assert float(row["gain_mean"]) == pytest.approx(gain)

    for networks in ("vit", "lenet,lenet", ""):
        status, _, err = mim4dd(f"evaluate one --networks={networks}")
        message = "networks must be different ones of alexnet, convnet, lenet, mlp, resnet18, vgg11"
        assert status == 1
        assert err.startswith(f"mim4dd: {message}, got {networks!r}")


def test_soft_labels_are_evaluated_beside_soft_labels(with_experts):
    mim4dd = with_experts
    mim4dd(f"distill {DISTILL} --iterations 1 --out run")
    run = RunDirectory("run")
    synthetic = SyntheticSet.load(run.synthetic)
    synthetic.label_syn = 0.5 * torch.eye(10) + 0.05
    synthetic.save(run.synthetic)
    status, out, err = mim4dd("evaluate run --fairness")
    assert status == 0, err
    _, *lines, note, _, scores, _ = out.splitlines()
    assert scores.split() == ["set", "network", "LRS", "ARS"]
    assert [line.split()[2] for line in lines] == ["soft", "hard", "hard"]
    assert note == (
        "soft labels of random real images: of the network that labelled the set, or else of one "
        "trained on the whole training set"
    )


def test_runs_of_different_networks_share_a_baseline_on_a_third(mim4dd):
    for network, options in (("convnet", "--width 8"), ("mlp", "--width 16")):
        task = f"--network {network} {options}"
        assert mim4dd(f"experts {EXPERTS} {task} --out experts-{network}")[0] == 0
        status, _, err = mim4dd(
            f"distill {DISTILL} {task} --experts experts-{network} --iterations 1 --out {network}"
        )
        assert status == 0, err
    status, _, err = mim4dd("evaluate convnet mlp")
    assert status == 1
    assert "these differ in network, width" in err
    status, out, err = mim4dd("evaluate convnet mlp --networks lenet --eval-epochs 3")
    assert status == 0, err
    table, scores = out.split("DD-Ranking")
    assert len(table.splitlines()) == 5
    assert [line.split()[:2] for line in scores.splitlines()[2:]] == [
        ["convnet", "lenet"],
        ["mlp", "lenet"],
    ]
    status, _, err = mim4dd("evaluate convnet mlp --networks lenet,mlp")
    assert status == 1
    assert "these differ in width; --no-baselines" in err
    status, _, err = mim4dd(f"distill {DISTILL} --experts experts-mlp --out other")
    assert status == 1
    assert "experts must be of the network 'ConvNet width=8" in err
    assert "these are of 'MLP width=16 zca=False'" in err
