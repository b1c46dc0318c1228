"""Loggers get what `metrics.jsonl` gets: TensorBoard, Weights & Biases, and a user's own."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import exit_status
from event_files import events_of, scalars_of

from mim4dd import distill
from mim4dd.distill.loggers import numbers
from mim4dd.distill.runs import RunDirectory

DM = {"method": "dm", "weight": 0.0, "batch_real": 4, "width": 4, "depth": 1, "iterations": 4}
FEW = DM | {"eval_every": 2, "num_eval": 1, "eval_epochs": 1}
WORDS = "--method dm --weight 0 --batch-real 4 --width 4 --depth 1 --num-eval 1 --eval-epochs 1"


class Memory:
    """A logger that keeps what it is given, and does something at an iteration."""

    def __init__(self, at=None, action=None):
        self.rows, self.closed, self.at, self.action = [], 0, at, action

    def log(self, iteration, values):
        self.rows.append((iteration, dict(values)))
        if iteration == self.at:
            self.action()

    def close(self):
        self.closed += 1


def rows_of(run):
    return [(row["iteration"], numbers(row)) for row in run.metrics]


def control_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_a_logger_gets_every_row_once_and_is_closed_however_it_ends():
    memory = Memory(1, control_c)
    with pytest.warns(UserWarning, match="stopped before iteration 2 of 4"):
        run = distill.run("digits", loggers=[memory], **FEW)
    assert (memory.rows, memory.closed) == (rows_of(run), 1)
    run.train()
    assert (memory.rows, memory.closed) == (rows_of(run), 2)
    assert [iteration for iteration, _ in memory.rows] == [0, 1, 2, 3, 4]
    assert [iteration for iteration, row in memory.rows if "accuracy" in row] == [0, 2, 4]
    assert all(row["seconds"] > 0 for _, row in memory.rows[:-1])

    def fail():
        raise ConnectionError("no network")

    failing, other = Memory(2, fail), Memory()
    with pytest.raises(ConnectionError, match="no network"):
        distill.run("digits", loggers=[failing, other], **FEW)
    assert failing.closed == other.closed == 1


def test_a_run_that_is_opened_logs_what_is_new(tmp_path):
    distill.run("digits", out=tmp_path, **FEW)
    memory = Memory()
    run = distill.open_run(tmp_path, loggers=[memory])
    run.train(iterations=6)
    assert memory.rows == rows_of(run)[4:]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tensorboard_holds_the_metrics_of_a_run_that_was_stopped_and_went_back(folder, monkeypatch):
    """Names of files hold the second: the clock stands, and is put back by years."""
    pytest.importorskip("tensorboardX")
    clock = SimpleNamespace(time=lambda: 1.8e9, monotonic=time.monotonic)
    monkeypatch.setattr("mim4dd.distill.loggers.tensorboard.time", clock)
    words = f"distill {WORDS} --iterations 4 --checkpoint-every 2 --log tensorboard --out run"
    assert exit_status(*words.split()) == 0
    again = "distill --resume run --from-iteration 2 --lr-img 1 --log tensorboard"
    assert exit_status(*again.split()) == 0
    clock.time = lambda: 1.5e9
    assert exit_status(*again.replace("--lr-img 1", "--lr-img 2").split()) == 0
    files = sorted(Path("run/tensorboard").iterdir())
    assert len(files) == 3
    expected = {
        (row["iteration"], name): value
        for row in RunDirectory("run").read_metrics()
        for name, value in numbers(row).items()
    }
    found = scalars_of([event for file in files for event in events_of(file)])
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(value, rel=1e-6) for key, value in expected.items())


class StandIn:
    """What of wandb is used, and what it was given."""

    def __init__(self):
        self.begun = []

    def init(self, **given):
        run = SimpleNamespace(given=given, rows=[], finished=False)
        run.log = lambda values, step: run.rows.append((step, values))

        def finish():
            run.finished = True

        run.finish = finish
        self.begun.append(run)
        return run


def test_weights_and_biases_gets_a_run_for_every_part(folder, monkeypatch):
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    words = f"distill {WORDS} --iterations 3 --checkpoint-every 2 --log wandb --out runs/one"
    assert exit_status(*words.split()) == 0
    first = [(row["iteration"], numbers(row)) for row in RunDirectory("runs/one").read_metrics()]
    again = "distill --resume runs/one --from-iteration 2 --lr-img 1 --log wandb"
    assert exit_status(*again.split()) == 0
    rows = [(row["iteration"], numbers(row)) for row in RunDirectory("runs/one").read_metrics()]
    one, two = wandb.begun
    assert (one.rows, two.rows) == (first, rows[2:])
    assert one.finished
    assert two.finished
    assert one.given == {
        "project": "mim4dd",
        "group": "one",
        "name": "one",
        "config": one.given["config"],
        "dir": "runs/one",
    }
    assert (one.given["config"]["method"], one.given["config"]["batch_real"]) == ("dm", 4)
    assert two.given["name"] == "one from 2"


def test_nothing_begins_with_a_logger_that_is_not_there(folder, monkeypatch):
    for name, module in (("wandb", "wandb"), ("tensorboard", "tensorboardX")):
        monkeypatch.setitem(sys.modules, module, None)
        status = exit_status(*f"distill {WORDS} --log {name} --out run".split())
        assert status == f"mim4dd: {module} is missing; pip install 'mim4dd[{name}]' brings it"
    for names in ("csv", "wandb --log wandb"):
        status = exit_status(*f"distill {WORDS} --log {names} --out run".split())
        assert status.startswith("mim4dd: log must name different ones of tensorboard, wandb, got")
    assert list(folder.iterdir()) == []
