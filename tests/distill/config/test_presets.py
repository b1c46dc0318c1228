"""presets.json: every entry works, holds what was published, and gives way to what is typed."""

import dataclasses
import json
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import typer

from mim4dd import distill
from mim4dd.__main__ import main
from mim4dd.cli.options import add_command, with_options
from mim4dd.distill.config.commands import (
    CompareConfig,
    DistillConfig,
    ExpertsConfig,
    part,
)
from mim4dd.distill.config.presets import expert_preset, preset
from mim4dd.distill.experts import ExpertTraining
from mim4dd.distill.methods import METHODS
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.sweep.grid import make_setting
from mim4dd.distill.sweep.jobs import distillation_job

PRESETS = json.loads(files("mim4dd.distill.config").joinpath("presets.json").read_text())
SETTINGS = [
    (method, data, None if ipc == "any" else int(ipc))
    for method, by_data in PRESETS["methods"].items()
    for data, by_ipc in by_data.items()
    for ipc in by_ipc
]


@pytest.mark.parametrize(("method", "data", "ipc"), SETTINGS)
def test_every_entry_is_a_configuration(method, data, ipc):
    options = preset(data, method, ipc)
    chosen = {"data": data, "method": method, "ipc": ipc or 1}
    CompareConfig.require(chosen | options, "presets.json")  # no unknown name, no other type
    filled = DistillConfig.preset(chosen)
    assert filled.keys() | vars(ExpertTraining()).keys() >= options.keys()
    DistillConfig.of(**chosen | filled)
    together = CompareConfig.of(**chosen | CompareConfig.preset(chosen))
    if METHODS[method].needs_experts:
        last_target = together.method.max_start_epoch - 1 + together.method.expert_epochs
        assert last_target <= together.train_epochs


@with_options(DistillConfig)
def resolved_by_the_command(config: DistillConfig) -> None:
    """What the command line makes of its options."""
    assert SEEN == []
    SEEN.append(config)


SEEN = []
COMMAND = typer.Typer()
add_command(COMMAND, resolved_by_the_command)


@pytest.mark.parametrize(("method", "data", "ipc"), SETTINGS)
def test_command_python_sweep_and_comparison_resolve_alike(method, data, ipc):
    options = {"data": data, "method": method, "ipc": ipc or 1, "num_eval": 3}
    config = distill.resolve(**options)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    SEEN.clear()
    COMMAND(words, standalone_mode=False)
    assert [config] == SEEN
    published = preset(data, method, ipc or 1)
    resolved = config.options()
    names = published.keys() & resolved.keys()
    assert {name: resolved[name] for name in names} == {name: published[name] for name in names}
    # Where a sweep's experts lie, and that it draws no curves by default, is its own.
    own = {"experts": config.experts, "eval_every": config.eval_every}
    setting = make_setting(options, {}, ["weight"])
    job = distillation_job(setting, 0, Path("out"))
    assert dataclasses.replace(job.config, **own) == config
    compared = part(CompareConfig.resolve(**options), DistillConfig)
    assert dataclasses.replace(compared, experts=config.experts) == config


def test_what_is_given_to_resolve_wins_and_is_checked():
    config = distill.resolve(method="mtt", data="cifar10", ipc=10, width=64, batch_syn=None)
    assert (config.network.width, config.method.batch_syn, config.iterations) == (64, None, 5000)
    assert distill.resolve() == DistillConfig.resolve(data="digits", method="mtt", ipc=1)
    for options, message in (
        ({"iteration": 3}, "DistillConfig names unknown options: iteration"),
        ({"ipc": "1"}, "DistillConfig: ipc must be of type int, got '1'"),
        ({"method": "dm", "syn_steps": 3}, "syn_steps has no effect on method 'dm'"),
    ):
        with pytest.raises(ValueError, match=message):
            distill.resolve(**options)


def test_experts_set_no_option_of_a_method_without_any():
    """DC publishes no ZCA; the experts that MTT matches are whitened."""
    chosen = {"data": "cifar10", "method": "dc", "ipc": 1}
    assert "zca" not in CompareConfig.preset(chosen)
    assert CompareConfig.preset(chosen | {"method": "mtt"})["zca"] is True
    assert ExpertsConfig.preset({"data": "cifar10"})["zca"] is True


@pytest.mark.parametrize("data", PRESETS["experts"])
def test_every_data_set_has_experts(data):
    CompareConfig.require(expert_preset(data), "presets.json")
    ExpertsConfig.of(data=data, **ExpertsConfig.preset({"data": data}))


def test_the_experts_of_digits_serve_every_method():
    epochs = expert_preset("digits")["train_epochs"]
    for method in ("mtt", "tesla", "datm"):
        for ipc in (1, 10):
            chosen = {"data": "digits", "method": method, "ipc": ipc}
            options = DistillConfig.of(**chosen | DistillConfig.preset(chosen)).method
            assert options.max_start_epoch - 1 + options.expert_epochs <= epochs


# N, M, max_start_epoch, lr_img, lr_lr, initial syn_lr, batch_syn, ZCA
@pytest.mark.parametrize(
    ("data", "ipc", "expected"),
    [
        ("cifar10", 1, (50, 2, 2, 100, 1e-7, 0.01, None, True)),
        ("cifar10", 10, (30, 2, 20, 100, 1e-5, 0.001, None, True)),
        ("cifar10", 50, (30, 2, 40, 1000, 1e-5, 0.001, None, False)),
        ("cifar100", 1, (20, 3, 20, 1000, 1e-5, 0.01, None, True)),
        ("cifar100", 10, (20, 2, 20, 1000, 1e-5, 0.01, None, False)),
        ("cifar100", 50, (80, 2, 40, 1000, 1e-5, 0.01, 125, True)),
        ("tiny_imagenet", 1, (10, 2, 10, 10000, 1e-4, 0.01, None, False)),
        ("tiny_imagenet", 10, (20, 2, 40, 10000, 1e-4, 0.01, 200, False)),
        ("tiny_imagenet", 50, (20, 2, 40, 10000, 1e-4, 0.01, 300, False)),
    ],
)
def test_mtt_is_as_published(data, ipc, expected):
    """The table of DC-BENCH, which has it from MTT's authors."""
    chosen = {"data": data, "method": "mtt", "ipc": ipc}
    config = CompareConfig.of(**chosen | CompareConfig.preset(chosen))
    assert expected == (
        config.method.syn_steps,
        config.method.expert_epochs,
        config.method.max_start_epoch,
        config.lr_img,
        config.lr_lr,
        config.lr_teacher,
        config.method.batch_syn,
        config.zca,
    )
    assert (config.network.width, config.network.depth) == (
        128,
        4 if data == "tiny_imagenet" else 3,
    )
    assert (config.num_experts, config.train_epochs, config.lr_expert) == (100, 50, 0.01)
    assert "flip" in config.dsa_strategy
    assert config.method.dsa_strategy == config.dsa_strategy


def test_datm_is_as_published():
    """Its configs/: IPC10 of CIFAR-10 grows the window, IPC100 of CIFAR-100 does not."""
    assert (
        preset("cifar10", "datm", 10).items()
        >= {
            "syn_steps": 80,
            "min_start_epoch": 0,
            "initial_max_start_epoch": 10,
            "max_start_epoch": 20,
            "expansion_end": 1000,
            "lr_img": 100.0,
            "lr_y": 2.0,
            "batch_syn": 100,
            "ema_decay": 0.9995,
            "zca": True,
        }.items()
    )
    fixed = preset("cifar100", "datm", 100)
    assert (fixed["min_start_epoch"], fixed["max_start_epoch"], fixed["lr_y"]) == (30, 70, 10)
    assert "initial_max_start_epoch" not in fixed


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("cifar10", (200, 40, 10, 5000, 0.001, 600_000, True)),
        ("cifar100", (300, 100, 20, 1000, 0.001, 3_000_000, True)),
        ("tiny_imagenet", (300, 100, 30, 1000, 0.0003, 6_000_000, False)),
    ],
)
def test_at_bptt_is_as_published(data, expected):
    """The commands of its README; an iteration there is a batch of a pass."""
    config = distill.resolve(method="at_bptt", data=data, ipc=10)
    method = config.method
    assert expected == (
        method.syn_steps,
        method.window,
        method.window_change,
        method.batch_target,
        config.lr_img,
        config.iterations,
        config.zca,
    )


@pytest.mark.parametrize(
    ("method", "data", "ipc", "expected"),
    [
        ("sre2l", "cifar100", 10, (0.25, 1000, "noise")),
        ("dwa", "cifar100", 10, (0.25, 1000, "real")),
        ("dwa", "tiny_imagenet", 10, (0.1, 2000, "real")),
        ("edc", "cifar10", 1, (0.05, 75, "real")),
        ("edc", "cifar100", 10, (0.05, 2000, "real")),
    ],
)
def test_recovery_is_as_published(method, data, ipc, expected):
    config = distill.resolve(method=method, data=data, ipc=ipc)
    assert (config.lr_img, config.iterations, config.init) == expected
    assert (config.optimizer_img, config.beta1_img, config.beta2_img) == ("adam", 0.5, 0.9)
    assert (config.cosine_img, config.clip_img) == (True, True)
    assert config.network.norm == "batch"


def test_the_next_smaller_ipc_stands_for_those_between():
    assert preset("cifar10", "mtt", 9) == preset("cifar10", "mtt", 1)
    assert preset("cifar10", "mtt", 49) == preset("cifar10", "mtt", 10)
    assert preset("cifar10", "mtt", 1000) == preset("cifar10", "mtt", 50)
    # TESLA publishes CIFAR-100 at 50 alone: below it only what holds at any ipc is known.
    assert "syn_steps" not in preset("cifar100", "tesla", 10)
    assert preset("cifar100", "tesla", 10)["zca"] is True
    assert preset("unknown", "mtt", 10) == {}


def test_what_is_typed_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def mim4dd(command):
        monkeypatch.setattr(sys, "argv", ["mim4dd", *command.split()])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code

    mim4dd("experts --width 8 --num-experts 1 --train-epochs 11 --batch-train 500 --out experts")
    typed = (
        "--ipc 10 --width 8 --iterations 1 --syn-steps 1 --lr-img 7 --num-keys 20 --eval-every 0"
    )
    mim4dd(f"distill --experts experts {typed} --num-eval 1 --eval-epochs 1 --out run")
    config, tabulated = RunDirectory("run").read_config(), preset("digits", "mtt", 10)
    assert tabulated["lr_img"] != 7
    assert (config["lr_img"], config["iterations"]) == (7, 1)
    for name in ("max_start_epoch", "batch_syn", "lr_lr"):
        assert config[name] == tabulated[name]
    # A configuration file is as good as typed.
    mim4dd("distill --config run/config.json --max-start-epoch 3 --out again")
    again = RunDirectory("again").read_config()
    assert again == config | {"max_start_epoch": 3}
    # Its null too, which is all samples per step here.
    Path("all.json").write_text(json.dumps(config | {"batch_syn": None}))
    mim4dd("distill --config all.json --out all")
    assert RunDirectory("all").read_config() == config | {"batch_syn": None}
