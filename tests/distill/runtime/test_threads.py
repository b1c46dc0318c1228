"""How many threads the work gets, whose word counts, and that processes change no result."""

import os
import signal
import subprocess
import sys
import time
from typing import ClassVar

import jobs
import pytest
import torch
from killing import finish, kill_again_and_again, start
from same_run import leavings
from tiny import TRAINING, make_data

from mim4dd._threads import use_threads, user_threads
from mim4dd.distill.add_ons.mutual_information import MIM4DD
from mim4dd.distill.commands.compare import compare
from mim4dd.distill.commands.compare_work import workers_at
from mim4dd.distill.config.commands import CompareConfig
from mim4dd.distill.evaluation.recipe import Evaluation, evaluate
from mim4dd.distill.experts import train_experts
from mim4dd.distill.files.atomic import read_json
from mim4dd.distill.loop import LoopSettings, distill
from mim4dd.distill.methods.dm import DM, DMSettings
from mim4dd.distill.methods.mtt import MTT, MTTSettings
from mim4dd.distill.networks import MLP, ConvNet
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.runtime.interruption import Interrupted, stopping_at_once
from mim4dd.distill.runtime.processes import run_parallel
from mim4dd.distill.runtime.threads import threads_for, work_of, workers_for, working_threads
from mim4dd.losses import MIM4DDLoss


@pytest.fixture
def four(monkeypatch):
    """A process of four threads that no user chose."""
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("mim4dd._threads._default", 4)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [10, 64, 256])
def test_the_networks_of_the_demo_get_one_thread_each(batch, four):
    network, images = ConvNet(10, 1, 32, 2, 8), torch.zeros(batch, 1, 8, 8)
    with working_threads(network, images):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    assert workers_for(work_of(network, images), images.device) == 4


@pytest.mark.parametrize("batch", [10, 256])
def test_a_wide_network_of_cifar_gets_all_threads(batch, four):
    network, images = ConvNet(10, 3, 128, 3, 32), torch.zeros(1, 3, 32, 32).expand(batch, 3, 32, 32)
    with working_threads(network, images):
        assert torch.get_num_threads() == 4
    assert workers_for(work_of(network, images), images.device) == 1


def test_work_counts_what_every_layer_multiplies_as_if_nothing_pooled():
    assert work_of(ConvNet(10, 1, 8, 1, 8), torch.zeros(3, 1, 8, 8)) == 3 * (
        64 * 8 * 9 + 10 * 8 * 16
    )
    rows = MLP(5, 7, width=6)
    matrices = [weight.numel() for weight in rows.parameters() if weight.dim() == 2]
    assert work_of(rows, torch.zeros(3, 7)) == 3 * sum(matrices)


def test_a_block_within_another_decides_by_its_own_work(four):
    small, large = torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 32, 32).expand(256, 3, 32, 32)
    tiny, wide = ConvNet(10, 1, 8, 2, 8), ConvNet(10, 3, 128, 3, 32)
    with working_threads(tiny, small):
        assert user_threads() is None
        with working_threads(wide, large):
            assert torch.get_num_threads() == 4
        assert torch.get_num_threads() == 1
    with pytest.raises(KeyError), use_threads(2):
        raise KeyError
    assert torch.get_num_threads() == 4


def test_what_a_user_sets_counts(four, monkeypatch):
    assert threads_for(1) == 1
    torch.set_num_threads(3)
    assert (threads_for(1), threads_for(10**12)) == (3, 3)
    torch.set_num_threads(4)
    monkeypatch.setenv("MKL_NUM_THREADS", "4")
    assert threads_for(1) == 4


_PROGRAM = """
import torch
import mim4dd

{set_threads}
from mim4dd.distill.runtime.threads import threads_for, user_threads

print(user_threads(), threads_for(1), threads_for(10**12))
"""


@pytest.mark.parametrize(
    ("variables", "set_threads", "printed"),
    [
        ({"OMP_NUM_THREADS": "1"}, "", "1 1 1"),
        ({"MKL_NUM_THREADS": "2"}, "", None),
        ({}, "torch.set_num_threads(torch.get_num_threads() + 1)", None),
    ],
)
def test_the_word_of_a_user_in_a_process_of_its_own(variables, set_threads, printed):
    clean = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(set_threads=set_threads)],
        env=clean | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    user, small, large = done.stdout.split()
    assert user == small == large
    assert printed is None or done.stdout.strip() == printed


class Noting(ConvNet):
    """Notes the number of threads that it runs with."""

    seen: ClassVar[list[int]] = []

    def forward(self, images):
        self.seen.append(torch.get_num_threads())
        return super().forward(images)


def small(data):
    return Noting(data.num_classes, data.channels, 8, 2, data.image_size)


def test_experts_evaluation_and_distillation_follow_the_work(four, tmp_path):
    data = make_data()
    experts = train_experts(small, "small", data, TRAINING, tmp_path / "experts")
    images, labels = data.sample(1, torch.Generator().manual_seed(0))
    evaluate(lambda: small(data), images, labels, 0.1, data, Evaluation(num_eval=1, eval_epochs=2))
    assert set(Noting.seen) == {1}
    mtt = MTT(small(data), experts, MTTSettings(syn_steps=2, max_start_epoch=2))
    for method in (mtt, DM(lambda seed: small(data), DMSettings(batch_real=4))):
        Noting.seen.clear()
        added = MIM4DD(method, MIM4DDLoss(), weight=0.1, num_keys=8)
        run = RunDirectory(tmp_path / type(method).__name__)
        distill(added, data, LoopSettings(iterations=1, eval_every=0), run)
        assert set(Noting.seen) == {1}
    torch.set_num_threads(3)
    Noting.seen.clear()
    distill(mtt, data, LoopSettings(iterations=1, eval_every=0), RunDirectory(tmp_path / "user"))
    assert set(Noting.seen) == {3}


def test_a_worker_takes_the_word_of_its_parents_user(four):
    """A share of what a user set is used whole, one of what torch chose as the work needs it."""
    ((_, chosen),) = run_parallel(jobs.threads, [None], workers=2)
    assert chosen == (2, 1)
    torch.set_num_threads(6)
    ((_, chosen),) = run_parallel(jobs.threads, [None], workers=2)
    assert chosen == (3, 3)


COMPARISON = {
    "width": 8,
    "num_experts": 2,
    "train_epochs": 3,
    "syn_steps": 3,
    "max_start_epoch": 2,
    "num_keys": 40,
    "num_eval": 2,
    "eval_epochs": 10,
    "iterations": 4,
    "num_distill": 1,
}


def test_a_comparison_says_the_same_with_one_worker_and_with_two(four, tmp_path):
    config = CompareConfig.resolve(**COMPARISON)
    one, two = (compare(config, tmp_path / str(count), workers=count) for count in (1, 2))
    for part in ("accuracy", "mim4dd_gain", "mi_lower_bound"):
        assert one[part] == two[part]
    for name in ("mtt/seed0", "mtt+mim4dd/seed0"):
        assert leavings(tmp_path / "1" / name) == leavings(tmp_path / "2" / name)
    assert (tmp_path / "2" / "mtt" / "seed0" / "pictures" / "curves.png").exists()
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        compare(config, tmp_path / "0", workers=0)


def test_by_default_small_work_is_spread_and_large_is_not(four):
    config = CompareConfig.resolve(**COMPARISON)
    data = make_data()
    assert workers_at(config, data, 64, None) == 4
    assert workers_at(config, data, 64, 3) == 3
    wide = CompareConfig.resolve(**COMPARISON | {"width": 2000})
    assert workers_at(wide, data, 64, None) == 1
    torch.set_num_threads(3)  # of a user: all for one process
    assert workers_at(config, data, 64, None) == 1


def test_the_workers_server_starts_for_workers_alone(four, tmp_path, monkeypatch):
    started = []
    server = "mim4dd.distill.commands.compare.start_worker_server"
    monkeypatch.setattr(server, lambda: started.append(True))

    def stop(config):
        raise InterruptedError

    monkeypatch.setattr(CompareConfig, "load_data", stop)  # what comes first of the work

    def starts(out, workers):
        started.clear()
        with pytest.raises(InterruptedError):
            compare(CompareConfig.resolve(**COMPARISON), tmp_path / out, workers=workers)
        return bool(started)

    assert starts("new", 2)
    assert starts("new", None)
    assert not starts("new", 1)
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "summary.json").write_text("{}")
    assert not starts("done", 2)
    torch.set_num_threads(3)  # of a user: all for one process
    assert not starts("new", None)


def command_of(**options):
    flags = (f"--{name.replace('_', '-')} {value}" for name, value in options.items())
    return f"compare {' '.join(flags)} --workers 2 --out"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_an_interruption(number):
    given = signal.getsignal(number)
    # As of a program in the foreground: what a shell starts in the background ignores Ctrl-C.
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, before)
    try:
        with pytest.raises(Interrupted, match="3 of 4"), stopping_at_once(lambda: "3 of 4 done"):
            signal.raise_signal(number)
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, given)


def test_a_stopped_comparison_saves_what_its_workers_are_at(tmp_path):
    # More than the one that starts first can reach before the other has started.
    few = {"iterations": 10**6, "checkpoint_every": 10**6, "eval_every": 0}
    process = start(tmp_path, f"{command_of(**COMPARISON | few)} out")
    runs = [RunDirectory(tmp_path / "out" / name / "seed0") for name in ("mtt", "mtt+mim4dd")]
    while min(run.rows_written() for run in runs) < 3:
        assert process.is_alive()
        time.sleep(0.01)
    process.terminate()
    process.join()
    assert process.exitcode == 130
    for run in runs:  # the last checkpoint in turn was that of iteration 0
        assert 0 < run.load_checkpoint()[1]["iteration"] <= run.rows_written() < few["iterations"]


def test_killed_at_any_moment_a_comparison_in_processes_continues(tmp_path):
    command = command_of(**COMPARISON | {"iterations": 20, "checkpoint_every": 3})
    finish(tmp_path, f"{command} whole")
    kill_again_and_again(tmp_path, lambda: f"{command} parts", kills=2, longest=2)
    whole, parts = (read_json(tmp_path / name / "summary.json") for name in ("whole", "parts"))
    assert whole["accuracy"] == parts["accuracy"]
    for run in tmp_path.glob("whole/mtt*/seed0"):
        other = tmp_path / "parts" / run.relative_to(tmp_path / "whole")
        assert leavings(run) == leavings(other)
