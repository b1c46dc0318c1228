"""Distillation over processes, as torchrun starts them: one result, one set of files, one end."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from places import SUPPORT
from ranked import SETTINGS, make_dc, run_ranks
from same_run import leavings
from tiny import make_data

from mim4dd.distill.config.commands import DistillConfig, ExpertsConfig
from mim4dd.distill.config.file import read_config
from mim4dd.distill.experts import train_experts
from mim4dd.distill.loop.loop import _stream, distill
from mim4dd.distill.methods.base import BaseMethod, Objective, RealData
from mim4dd.distill.runs import RunDirectory, SyntheticSet
from mim4dd.distill.runtime.ranks import joined_ranks

TORCHRUN = "torch.distributed.run --standalone --nproc-per-node 2"
# In how many runs a rank dies, at other moments in every run of the tests; `make kills` has 20.
DEATHS = int(os.environ.get("MIM4DD_DEATHS", "1"))
OPTIONS = (
    "--experts experts --width 8 --syn-steps 3 --max-start-epoch 3 --num-keys 40 --num-eval 1 "
    "--dsa-strategy crop_scale --iterations 20 --checkpoint-every 8 --eval-every 10 "
    "--eval-epochs 10"
)


def start(folder, command):
    return subprocess.Popen(
        [sys.executable, "-m", *TORCHRUN.split(), *command.split()],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def torchrun(folder, command):
    """Exit status, stdout and stderr; a run that hangs is killed."""
    process = start(folder, command)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with experts and the run that two ranks made."""
    folder = tmp_path_factory.mktemp("ranks")
    config = ExpertsConfig.of(width=8, num_experts=2, train_epochs=4)
    data = config.load_data()
    train_experts(config.make_network, config.network_title, data, config, folder / "experts")
    finish(folder, f"distill {OPTIONS} --out whole", "whole/synthetic.safetensors: test accuracy")
    return folder


def finish(folder, command, printed):
    """Run a command on two ranks to its end; the first says what comes of it, the other nothing."""
    for status, err in run_ranks(f"mim4dd {command}", folder):
        assert status == 0, err
    assert printed in (folder / "0.out").read_text()
    assert (folder / "1.out").read_text() == ""


class MeanOfRanks(BaseMethod):
    """What two ranks compute, in one process."""

    def __init__(self, method, seed):
        self.method, self.seed = method, seed

    def loss(self, image_syn, label_syn, syn_lr, real):
        losses = [
            self.method.loss(
                image_syn,
                label_syn,
                syn_lr,
                RealData(real.data, _stream(self.seed, real.iteration, rank), real.iteration),
            )
            for rank in range(2)
        ]
        return Objective((losses[0].value + losses[1].value) / 2, losses[0].compared)


def test_all_step_along_the_mean_gradient(whole, monkeypatch):
    monkeypatch.chdir(whole)
    run, alone = RunDirectory("whole"), RunDirectory("alone")
    config = read_config(run.config, DistillConfig)
    data = config.load_data()
    alone.create(run.read_config())
    distill(MeanOfRanks(config.make_method(data), config.seed), data, config, alone)
    both, expected = (SyntheticSet.load(each.synthetic) for each in (run, alone))
    first = SyntheticSet.load(run.initial)
    assert (expected.image_syn - first.image_syn).abs().max() > 0.1  # the steps went somewhere
    torch.testing.assert_close(both.image_syn, expected.image_syn, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.syn_lr, expected.syn_lr)
    rows = run.read_metrics()
    assert [row["iteration"] for row in rows] == list(range(21))  # written once
    losses = [[row["loss"] for row in each.read_metrics()[:-1]] for each in (run, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_sigterm_stops_all_and_resume_continues_bit_for_bit(whole):
    script = SUPPORT / "interrupted.py"
    status, _, err = torchrun(whole, f"{script} SIGTERM 3 distill {OPTIONS} --out parts")
    assert status != 0
    assert "mim4dd: stopped before iteration" in err
    assert not (whole / "parts" / "synthetic.safetensors").exists()
    finish(whole, "distill --resume parts", "test accuracy")
    assert leavings(whole / "parts") == leavings(whole / "whole")


def test_after_the_death_of_a_rank_torchrun_starts_all_again(whole):
    for death in range(DEATHS):
        run = RunDirectory(whole / f"death{death}")
        process = start(
            whole, f"--max-restarts 3 -m mim4dd distill {OPTIONS} --out {run.path.name}"
        )
        try:
            ranks = started(process, run)
            time.sleep(random.uniform(0, 1))
            os.kill(random.choice(ranks), signal.SIGKILL)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 0, err
        assert leavings(run.path) == leavings(whole / "whole")


def started(process, run):
    """The ranks of torchrun, once they distil."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        ranks = [int(pid) for pid in found.split()]
        if len(ranks) == 2 and run.checkpoint.exists():
            return ranks
        time.sleep(0.02)
    raise AssertionError("the ranks did not start")


def test_a_rank_that_diverges_stops_all(tmp_path):
    (first, first_err), (second, second_err) = run_ranks("diverges", tmp_path)
    assert first == second == 1  # neither waits for the other
    assert "FloatingPointError: the loss is not finite in iteration 3" in first_err
    assert "FloatingPointError: the loss of step 2 is nan in iteration 3" in second_err
    run = RunDirectory(tmp_path / "run")
    tensors, header = run.load_checkpoint()
    assert header["iteration"] == 2
    assert tensors["image_syn"].isfinite().all()

    # The second rank does not see that checkpoint, so would start anew.
    (first, first_err), (second, second_err) = run_ranks("blind", tmp_path)
    assert first == second == 1
    message = "all ranks must see the files of one run directory, but rank 1 is at iteration 0"
    assert message in second_err

    assert [status for status, _ in run_ranks("resumes", tmp_path)] == [0, 0]
    assert len(run.read_metrics()) == SETTINGS.iterations + 1


def test_every_rank_continues_with_the_networks_it_had(tmp_path):
    for scenario in ("dc whole 6", "dc parts 3", "dc parts 6"):
        assert [status for status, _ in run_ranks(scenario, tmp_path)] == [0, 0]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    (sets, rows), (of_whole, rows_of_whole) = leavings(parts), leavings(whole)
    assert rows == rows_of_whole
    # What they started from tells how many iterations were asked for then.
    assert sets["synthetic.safetensors"] == of_whole["synthetic.safetensors"]
    tensors, _ = RunDirectory(parts).load_checkpoint()
    assert not torch.equal(tensors["method.0.theta"], tensors["method.1.theta"])
    torch.manual_seed(0)  # as the ranks made it
    data = make_data()
    with pytest.raises(ValueError, match=r"the method's state on 2 ranks.*got 1"):
        distill(make_dc(data), data, SETTINGS, RunDirectory(parts), resume=True, from_iteration=5)


def test_ranks_that_are_stopped_amid_their_teachers_continue_bit_for_bit(tmp_path):
    """All train them alike, and the first one keeps them for all."""
    assert [status for status, _ in run_ranks("sre2l whole 0", tmp_path)] == [0, 0]
    for status, err in run_ranks("sre2l parts 9", tmp_path):
        assert status == 1
        assert "Interrupted: stopped before the first iteration" in err
    kept = tmp_path / "parts" / "preparation"
    assert [path.name[:12] for path in sorted(kept.iterdir())] == ["teacher_0000", "teacher_0001"]
    assert [status for status, _ in run_ranks("sre2l parts 0", tmp_path)] == [0, 0]
    assert leavings(tmp_path / "parts") == leavings(tmp_path / "whole")
    assert not kept.exists()


def test_one_gpu_for_all_ranks_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "device must be 'cuda' under torchrun, which numbers the GPUs, got 'cuda:1'"
    with pytest.raises(ValueError, match=message), joined_ranks("cuda:1"):
        pass
