"""`mim4dd distill --resume`, after Ctrl-C, a divergence, or on another device."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from command_line import DISTILL
from places import SUPPORT
from same_run import leavings

from mim4dd.distill.runs import RunDirectory


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
