"""The command line, as a user types it: every command, its files, its errors, Ctrl-C."""

import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import exit_status, outcome
from PIL import Image
from places import SUPPORT
from same_run import leavings

from mim4dd import __main__ as program
from mim4dd import distill
from mim4dd.distill.methods import METHODS
from mim4dd.distill.runs import RunDirectory, SyntheticSet

EXPERTS = "--width 8 --num-experts 2 --train-epochs 4"
DISTILL = (
    "--experts experts --width 8 --syn-steps 3 --max-start-epoch 3 --num-keys 40 "
    "--num-eval 2 --eval-epochs 10"
)


@pytest.fixture
def mim4dd(tmp_path, monkeypatch, capfd):
    """Run a command in a folder of its own; return exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    return lambda command: outcome(capfd, *command.split())


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Made once."""
    folder = tmp_path_factory.mktemp("made") / "experts"
    assert exit_status("experts", *EXPERTS.split(), "--out", folder) == 0
    return folder


@pytest.fixture
def with_experts(mim4dd, experts, tmp_path):
    """With experts that a test may change."""
    shutil.copytree(experts, tmp_path / "experts")
    return mim4dd


def test_from_experts_to_evaluation(with_experts):
    mim4dd = with_experts
    status, out, _ = mim4dd(f"distill {DISTILL} --iterations 6 --eval-every 3 --out run")
    assert status == 0
    assert "run/synthetic.safetensors: test accuracy" in out
    assert "of 2 networks" in out
    run = RunDirectory("run")
    config = run.read_config()
    assert (config["syn_steps"], config["weight"], config["ipc"]) == (3, 0.1, 1)
    rows = run.read_metrics()
    assert len(rows) == 7
    assert [row["iteration"] for row in rows if "accuracy" in row] == [0, 3, 6]
    assert SyntheticSet.load(run.synthetic).label_syn.tolist() == list(range(10))
    for name in ("synthetic", "curves"):
        assert Path(f"run/pictures/{name}.png").exists()
        assert f"run/pictures/{name}.png" in out

    status, out, _ = mim4dd("evaluate run --num-eval 3")
    assert status == 0
    *lines, source, header, scores = out.splitlines()
    assert source.startswith("DD-Ranking, in percent")
    assert (header.split(), scores.split()[:2]) == (["set", "network", "LRS"], ["run", "convnet"])
    assert [line.split("  ")[0] for line in lines] == [
        "run",
        "1 random real images per class",
        "whole training set",
    ]
    assert all(line.endswith("of 3 networks") for line in lines)

    mim4dd(f"distill {DISTILL} --iterations 2 --weight 0 --out mtt")
    assert "mi_lower_bound" not in RunDirectory("mtt").read_metrics()[0]
    status, out, _ = mim4dd("show run mtt --out both.png")
    assert status == 0
    assert "both.png" in out
    assert Path("both.png").exists()


@pytest.mark.parametrize("options", ["dc", "dsa --dsa-strategy crop_scale", "cafe"])
def test_methods_that_need_no_experts(options, mim4dd):
    few = "--iterations 3 --outer-loop 2 --inner-loop 1 --batch-real 4 --num-networks 2"
    status, out, err = mim4dd(
        f"distill --method {options} {few} --width 8 --num-keys 20 --num-eval 1 --eval-epochs 5"
    )
    assert status == 0, err
    assert "runs/distill/synthetic.safetensors: test accuracy" in out
    rows = RunDirectory("runs/distill").read_metrics()
    assert [("mi_lower_bound" in row) for row in rows] == [True] * 3 + [False]
    status, _, err = mim4dd(f"distill --method {options} --syn-steps 3 --out other")
    assert (status, err.startswith("mim4dd: syn_steps has no effect on method")) == (1, True)


def test_a_config_file_holds_options_and_the_command_line_wins(with_experts):
    mim4dd = with_experts
    mim4dd(f"distill {DISTILL} --iterations 1 --seed 7 --out first")
    status, _, err = mim4dd("distill --config first/config.json --temperature 0.2 --out second")
    assert status == 0, err
    first, second = (RunDirectory(path).read_config() for path in ("first", "second"))
    assert second == first | {"temperature": 0.2}
    for content, message in (
        ({"iteration": 3}, "bad.json names unknown options: iteration"),
        ({"ipc": "one"}, "bad.json: ipc must be of type int, got 'one'"),
        ({"ipc": True}, "bad.json: ipc must be of type int, got True"),
        ({"ipc": None}, "bad.json: ipc must be of type int, got None"),
        ({"layers": 1}, "bad.json: layers must be of type NoneType or str, got 1"),
        ({"critic": 1.5}, "bad.json: critic must be of type str, got 1.5"),
        ({"weight": "1"}, "bad.json: weight must be of type float or int, got '1'"),
        ([], "bad.json must hold a JSON object, got list"),
    ):
        Path("bad.json").write_text(json.dumps(content))
        status, _, err = mim4dd("distill --config bad.json --out third")
        assert (status, err) == (1, f"mim4dd: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--ipc 0", "ipc must be at least 1"),
        ("--ipc 1000", "ipc must be at most the size of the smallest class"),
        ("--temperature 0", "temperature must be positive and finite, got 0"),
        ("--temperature nan", "temperature must be positive and finite, got nan"),
        ("--weight -1", "weight must be at least 0 and finite, got -1"),
        ("--syn-steps 0", "syn_steps must be at least 1"),
        ("--max-start-epoch 9", "max_start_epoch - 1 + expert_epochs must be within the experts'"),
        ("--width 16", "experts must be of the network 'ConvNet width=16"),
        ("--experts none", "experts must be a folder of expert_*.safetensors files, none holds"),
        ("--layers conv7", "layers must name submodules of the network, got ['conv7']; it has: "),
        ("--num-keys 0", "num_keys must be at least 1"),
        ("--dsa-strategy blur", "strategy must join some of color, crop"),
        ("--data nowhere", "data must be one of breast_cancer, cifar10, cifar100, digits, "),
        ("--device tpu9", "device must be a device that PyTorch knows, got 'tpu9'"),
        ("--from-iteration 3", "--from-iteration needs --resume with the run to continue"),
        ("--resume run", "run/config.json does not exist"),
    ],
)
def test_options_that_cannot_work_are_one_line_and_leave_nothing(options, message, with_experts):
    status, _, err = with_experts(f"distill {DISTILL} --out run {options}")
    assert status == 1
    assert err.splitlines()[-1].startswith(f"mim4dd: {message}")
    assert "Traceback" not in err
    assert not Path("run").exists()


def test_only_warnings_of_our_own_files_are_shortened(capsys):
    shown = []
    show = program._one_line(lambda *arguments: shown.append(arguments[0]))
    show("ours", UserWarning, str(Path(program.__file__).parent / "distill" / "loop.py"), 1)
    show("a user's", UserWarning, "/home/user/mim4dd/program.py", 1)
    show("a checkout's", UserWarning, str(Path(program.__file__).parents[1] / "program.py"), 1)
    assert capsys.readouterr().err == "mim4dd: warning: ours\n"
    assert shown == ["a user's", "a checkout's"]


@pytest.mark.filterwarnings("default:experts in again:UserWarning")
def test_experts_become_a_replay_buffer_and_experts_again(with_experts):
    mim4dd = with_experts
    assert mim4dd("buffer experts buffer")[:2] == (0, "buffer/replay_buffer_0.pt\n")
    status, out, _ = mim4dd("buffer buffer again --width 8")
    assert (status, out[:30]) == (0, "2 experts of 4 epochs in again")
    assert 0.5 < float(out.removesuffix("\n").rpartition(" ")[2]) <= 1  # accuracy of the first
    options = DISTILL.replace("--experts experts", "--experts again")
    status, _, err = mim4dd(f"distill {options} --iterations 1 --eval-every 0 --out run")
    assert status == 0
    assert "mim4dd: warning: experts in again do not say what they were trained on" in err
    Path("width.json").write_text('{"width": 8}')
    for command, message in (
        ("buffer experts other --config width.json", "its experts are; leave out --config\n"),
        ("buffer buffer wide", "parameter 0 is (8, 1, 3, 3), and (32, 1, 3, 3) in the network"),
        (
            "buffer experts other --width 8",
            "experts already says what its experts are; leave out --width",
        ),
        ("buffer run other", "run holds neither"),
    ):
        status, _, err = mim4dd(command)
        assert status == 1
        assert message in f"{err}\n"
    assert not Path("wide").exists()
    assert not Path("other").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--workers 0", "workers must be at least 1"),
        ("--devices cpu,cpu", "workers must be at least the number of devices, got 1 for cpu,cpu"),
        ("--devices cpu,gpu", "devices must be a device that PyTorch knows, got 'gpu'"),
    ],
)
def test_workers_and_devices_that_cannot_be_are_refused(options, message, mim4dd):
    status, _, err = mim4dd(f"experts {EXPERTS} {options} --out experts")
    assert status == 1
    assert message in err
    assert not Path("experts").exists()


def test_a_missing_package_is_named(mim4dd, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    status, _, err = mim4dd(f"experts {EXPERTS} --out experts")
    assert status == 1
    assert "is missing; pip install 'mim4dd[distill]' brings it" in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("mim4dd: sklearn")


def test_a_truncated_expert_is_named(with_experts):
    path = Path("experts/expert_0001.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    status, _, err = with_experts(f"distill {DISTILL}")
    assert status == 1
    assert "expert_0001.safetensors is truncated or not a safetensors file" in err


def test_a_run_is_never_overwritten(with_experts):
    mim4dd = with_experts
    mim4dd(f"distill {DISTILL} --iterations 1 --out run")
    before = Path("run/synthetic.safetensors").read_bytes()
    status, _, err = mim4dd(f"distill {DISTILL} --iterations 2 --out run")
    assert status == 1
    assert "run already holds a run: continue it with --resume run" in err
    assert Path("run/synthetic.safetensors").read_bytes() == before


def test_ctrl_c_saves_and_resume_continues_bit_for_bit(with_experts, tmp_path):
    mim4dd = with_experts
    options = f"{DISTILL} --iterations 12 --dsa-strategy crop_scale"
    assert mim4dd(f"distill {options} --out whole")[0] == 0
    # In a process of its own, as a shell starts it: signals there are the command's, not pytest's.
    script = SUPPORT / "interrupted.py"
    stopped = subprocess.run(
        [sys.executable, script, "SIGINT", "5", "distill", *options.split(), "--out", "parts"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    err = stopped.stderr
    assert stopped.returncode == 130, err
    assert err.splitlines()[-1].startswith("mim4dd: stopped before iteration")
    assert "continue with --resume parts" in err
    assert not Path("parts/synthetic.safetensors").exists()
    # What there is can be looked at.
    reached = len(RunDirectory("parts").read_metrics())
    assert reached == 5
    status, out, _ = mim4dd("evaluate parts --no-baselines --eval-epochs 1")
    assert (status, out.startswith(f"parts, {reached} of 12 iterations ")) == (0, True)
    status, out, _ = mim4dd("show parts --no-features --iteration 0")
    assert (status, "parts/pictures/synthetic.png" in out) == (0, True)
    status, _, err = mim4dd("show parts --no-features --iteration 1")
    assert status == 1
    assert f"must be one that parts has a checkpoint of, 0, {reached}, got 1" in err
    status, _, err = mim4dd("distill --resume parts --syn-steps 2 --iterations 3")
    assert status == 1
    assert "--resume takes the run's own options, got --syn-steps as well; only these may" in err
    assert mim4dd("distill --resume parts")[0] == 0
    assert leavings("parts") == leavings("whole")


def test_a_diverged_run_goes_on_with_other_steps(with_experts):
    mim4dd = with_experts
    few = f"{DISTILL} --iterations 6 --checkpoint-every 1 --eval-every 0 --num-eval 1"
    status, _, err = mim4dd(f"distill {few} --lr-lr 1e5 --out run")
    assert status == 1
    last = RunDirectory("run").load_set()[1]
    assert f"The last good state, of iteration {last}, is kept" in err
    assert "--positive-syn-lr, or --from-iteration 0" in err
    assert mim4dd("evaluate run --no-baselines --eval-epochs 1")[0] == 0
    assert mim4dd("distill --resume run")[0] == 1  # once more
    status, _, err = mim4dd("distill --resume run --from-iteration 0 --lr-lr 1e-4 --iterations 4")
    assert status == 0, err
    run = RunDirectory("run")
    assert len(run.read_metrics()) == 5
    config = run.read_config()
    assert (config["lr_lr"], config["iterations"], config["syn_steps"]) == (1e-4, 4, 3)
    status, _, err = mim4dd("distill --resume run --lr-img 1")
    assert (status, "is finished, so settings.lr_img: " in err) == (1, True)
    assert run.read_config() == config
    assert mim4dd("distill --resume run --lr-img 1 --iterations 5 --positive-syn-lr")[0] == 0
    assert run.read_config() == config | {"lr_img": 1.0, "iterations": 5, "positive_syn_lr": True}


def test_a_run_of_a_device_that_is_not_here_goes_on_on_another(mim4dd):
    few = "--method dm --width 8 --iterations 1 --num-keys 20 --num-eval 1 --eval-epochs 1"
    assert mim4dd(f"distill {few} --out run")[0] == 0
    config = RunDirectory("run").read_config()
    absent = f"cuda:{torch.cuda.device_count()}"
    Path("run/config.json").write_text(json.dumps(config | {"device": absent}))
    status, _, err = mim4dd("distill --resume run --iterations 2")
    assert (status, "device" in err) == (1, True)
    status, _, err = mim4dd("distill --resume run --iterations 2 --device cpu")
    assert status == 0, err
    assert RunDirectory("run").read_config() == config | {"iterations": 2}


def test_the_options_of_a_run_that_goes_on_are_kept_before_its_state(mim4dd, monkeypatch):
    few = "--method dm --width 8 --iterations 1 --num-keys 20 --num-eval 1 --eval-epochs 1"
    assert mim4dd(f"distill {few} --out run")[0] == 0
    run = RunDirectory("run")
    config = run.read_config()
    assert mim4dd("distill --resume run --eval-epochs 2")[0] == 0  # it is finished
    assert run.read_config() == config | {"eval_epochs": 2}

    def stop(*_):
        raise ValueError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_checkpoint", stop)
        status, _, err = mim4dd("distill --resume run --iterations 2 --lr-img 0.5")
        assert (status, "killed" in err) == (1, True)
    changed = config | {"eval_epochs": 2, "iterations": 2, "lr_img": 0.5}
    assert run.read_config() == changed
    assert mim4dd("distill --resume run")[0] == 0
    assert run.read_config() == changed
    _, header = run.load_checkpoint()
    assert header["identity"]["settings"]["lr_img"] == 0.5


def test_more_images_than_a_class_has_start_from_noise(mim4dd, monkeypatch):
    many = "--method dm --ipc 200 --width 8 --iterations 1 --num-keys 20 --num-eval 1"
    status, _, err = mim4dd(f"distill {many} --eval-epochs 1 --init noise --out run")
    assert status == 0, err
    assert len(RunDirectory("run").load_result().image_syn) == 2000
    with monkeypatch.context() as patch:  # refused before anything is trained
        patch.delattr("mim4dd.distill.evaluation.recipe.train_network")
        for option, way_out in {
            "": "--no-baselines leaves the baselines out",
            " --fairness": "evaluate this set without --fairness",
        }.items():
            status, _, err = mim4dd(f"evaluate run{option}")
            assert status == 1
            assert "run cannot be compared with random real images: ipc must be at most" in err
            assert err.strip().endswith(way_out)
    assert mim4dd("evaluate run --no-baselines")[0] == 0
    status, _, err = mim4dd(f"distill {many} --init real --out other")
    assert status == 1
    assert "ipc must be at most the size of the smallest class" in err
    status, _, err = mim4dd(f"compare {many} --init noise --out other")
    assert (status, "ipc must be at most the size of" in err) == (1, True)
    assert not Path("other").exists()


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


def test_rows_are_distilled_and_judged_by_name(mim4dd):
    few = "--method dm --iterations 2 --num-eval 2 --eval-epochs 5 --num-keys 20"
    status, out, err = mim4dd(f"distill --data wine {few} --out run")
    assert status == 0, err
    assert "of 2 networks" in out
    assert RunDirectory("run").read_config()["network"] == "mlp"
    status, out, err = mim4dd("evaluate run")
    assert status == 0, err
    assert "random real images" in out
    # Not after hours of distilling.
    status, _, err = mim4dd(f"distill --data wine {few} --eval-dsa-strategy crop --out other")
    assert status == 1
    assert err.endswith("eval_dsa_strategy must be 'none' for rows, which wine holds, got 'crop'")
    assert not Path("other").exists()
    assert not Path("demo/experts").exists()


def test_any_folder_of_images(mim4dd, tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(12):
            pixels = (torch.rand(10, 10, 3) * 127 + 128 * label).byte().numpy()
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{index}.png")
    task = "--data pets --image-size 8 --width 8"
    assert mim4dd(f"experts {task} --num-experts 1 --train-epochs 4 --out experts")[0] == 0
    status, _, err = mim4dd(f"distill {DISTILL} {task} --iterations 2 --out run")
    assert status == 0, err
    assert SyntheticSet.load(Path("run/synthetic.safetensors")).class_names == ("cat", "dog")
    Path("pets").rename("animals")
    few = f"{DISTILL} {task.replace('pets', 'animals')} --iterations 1"
    assert mim4dd(f"distill {few} --out renamed")[0] == 0
    assert mim4dd("evaluate renamed --no-baselines")[0] == 0
    # The same names, and each has the other's pictures.
    for old, new in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        Path("animals", old).rename(Path("animals", new))
    status, _, err = mim4dd(f"distill {few} --out swapped")
    assert status == 1
    assert "experts in experts must be of the network and the data to distil for" in err
    assert "data.train.content (other samples or other labels of them)" in err
    assert not Path("swapped").exists()
    for command in ("evaluate renamed --no-baselines", "distill --resume renamed --iterations 2"):
        status, _, err = mim4dd(command)
        assert (status, "train.content (other samples" in err) == (1, True)


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
    assert note.startswith("soft labels of random real images: of a network trained on the whole")


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


def test_doctor_and_help(mim4dd):
    status, out, _ = mim4dd("doctor")
    assert status == 0
    assert "CPU extension: loaded" in out


@pytest.mark.parametrize("method", METHODS)
def test_help_is_of_one_method_with_the_defaults_that_are_used(method, mim4dd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = mim4dd(f"distill --method {method} --data cifar10 --ipc 10 --help")
    assert status == 0
    assert len(out.splitlines()) <= 100  # two screens
    blocks = [" ".join(block.split()) for block in re.split(r"\n  (?=--)", out)[1:]]
    shown = {block.split()[0].removeprefix("--").replace("-", "_"): block for block in blocks}
    assert next(iter(shown)) == "method"
    resolved = distill.resolve(method=method, data="cifar10", ipc=10).options()
    of_command = {"config", "plugin", "out", "resume", "from_iteration", "log", "help"}
    assert set(shown) == resolved.keys() | of_command
    for name, value in resolved.items():
        if value is not None and not isinstance(value, bool):
            # Where a line ends, there may be a space in the middle of a word.
            assert f"[{value}]".replace(" ", "") in shown[name].replace(" ", "")
