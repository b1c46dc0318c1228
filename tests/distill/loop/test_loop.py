"""The distillation loop: it improves, resumes bit for bit, and never keeps a bad state."""

import dataclasses
import math
import os
import signal

import pytest
import torch
from same_run import leavings
from tiny import make_data, make_experts, make_network

from mim4dd import MIM4DDLoss
from mim4dd.distill.add_ons.mutual_information import MIM4DD
from mim4dd.distill.evaluation.recipe import Accuracy
from mim4dd.distill.loop import Interrupted, LoopSettings, distill
from mim4dd.distill.methods.base import Objective
from mim4dd.distill.methods.mtt import MTT, MTTSettings
from mim4dd.distill.runs import RunDirectory, SyntheticSet

SETTINGS = LoopSettings(iterations=12, lr_img=5.0, lr_lr=1e-4, lr_teacher=0.05, checkpoint_every=5)


@pytest.fixture
def task(tmp_path):
    data = make_data()
    experts = make_experts(data, tmp_path / "experts")
    base = MTT(
        make_network(data),
        experts,
        MTTSettings(syn_steps=4, max_start_epoch=3, dsa_strategy="crop_scale"),
    )
    return data, MIM4DD(base, MIM4DDLoss(), weight=0.1, num_keys=12)


def start(path, settings=SETTINGS):
    run = RunDirectory(path)
    run.create(dataclasses.asdict(settings))
    return run


class Stops(MIM4DD):
    """A method that does something at one iteration, and says that it is the method alone."""

    def __init__(self, method, iteration, action):
        super().__init__(method, MIM4DDLoss(), weight=0)
        self.iteration, self.action, self.calls = iteration, action, 0

    def identity(self):
        return self.base.identity()

    def loss(self, *arguments):
        outcome = self.base.loss(*arguments)
        self.calls += 1
        return self.action(outcome) if self.calls == self.iteration + 1 else outcome


def with_value(value):
    return lambda outcome: Objective(outcome.value * value, outcome.compared, outcome.metrics)


def interrupt(outcome):
    os.kill(os.getpid(), signal.SIGINT)
    return outcome


def same_files(first, second):
    return leavings(first.path) == leavings(second.path)


def test_a_run_leaves_what_it_promises(task, tmp_path):
    data, method = task
    run = start(tmp_path / "run")
    judged = []

    def evaluate(synthetic):
        judged.append(synthetic.image_syn.clone())
        return Accuracy((0.25, 0.75))

    settings = dataclasses.replace(SETTINGS, eval_every=5)
    result = distill(method, data, settings, run, evaluate)
    stored = SyntheticSet.load(run.synthetic)
    assert torch.equal(stored.image_syn, result.image_syn)
    torch.testing.assert_close(data.normalization(stored.pixels), stored.image_syn)
    assert stored.class_names == data.class_names
    rows = run.read_metrics()
    assert [row["iteration"] for row in rows] == list(range(13))
    expected = {"loss", "syn_lr", "trajectory_loss", "contrastive_loss", "mi_lower_bound"}
    assert all(expected <= row.keys() for row in rows[:-1])
    assert [row["iteration"] for row in rows if "accuracy" in row] == [0, 5, 10, 12]
    assert torch.equal(judged[-1], result.image_syn)
    assert rows[-1]["accuracy"] == 0.5


def test_the_loss_falls(task, tmp_path):
    data, method = task
    mtt = MTT(method.base.network, method.base.experts, MTTSettings(syn_steps=8, max_start_epoch=3))
    settings = dataclasses.replace(SETTINGS, iterations=60, lr_img=100.0)
    run = start(tmp_path / "run", settings)
    distill(mtt, data, settings, run)
    losses = [row["loss"] for row in run.read_metrics()[:-1]]
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])


@pytest.mark.parametrize("iteration", [0, 4, 5, 7])
def test_an_interrupted_run_continues_bit_for_bit(iteration, task, tmp_path):
    data, method = task
    whole = start(tmp_path / "whole")
    distill(method, data, SETTINGS, whole)
    parts = start(tmp_path / "parts")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=rf"stopped before iteration {iteration + 1} of 12"):
        distill(Stops(method, iteration, interrupt), data, SETTINGS, parts)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not parts.finished
    distill(method, data, SETTINGS, parts, resume=True)
    assert same_files(whole, parts)


def test_who_watches_sees_every_iteration_and_changes_nothing(task, tmp_path):
    data, method = task
    alone, watched, moments = start(tmp_path / "alone"), start(tmp_path / "watched"), []
    distill(method, data, SETTINGS, alone)

    def watch(moment):
        torch.rand(3)  # as a program's own work may draw
        assert moment.row == watched.read_metrics()[-1]
        moments.append((moment.iteration, moment.result().image_syn))

    distill(method, data, SETTINGS, watched, watch=watch)
    assert [iteration for iteration, _ in moments] == list(range(1, 13))
    assert torch.equal(moments[-1][1], watched.load_result().image_syn)
    assert not torch.equal(moments[-2][1], moments[-1][1])
    assert same_files(alone, watched)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_by_which_signal(number, task, tmp_path):
    data, method = task

    def stop(outcome):
        os.kill(os.getpid(), number)
        return outcome

    with pytest.raises(Interrupted) as caught:
        distill(Stops(method, 1, stop), data, SETTINGS, start(tmp_path / "run"))
    assert caught.value.signal == number


@pytest.mark.parametrize("iteration", [3, 8])
def test_a_killed_run_continues_from_its_checkpoint_bit_for_bit(iteration, task, tmp_path):
    data, method = task
    whole = start(tmp_path / "whole")
    distill(method, data, SETTINGS, whole)
    parts = start(tmp_path / "parts")

    class Killed(Exception):
        pass

    def die(_):
        raise Killed

    with pytest.raises(Killed):
        distill(Stops(method, iteration, die), data, SETTINGS, parts)
    with parts.metrics.open("a") as file:  # a crash can cut a line in half
        file.write('{"iteration": 99, "lo')
    distill(method, data, SETTINGS, parts, resume=True)
    assert same_files(whole, parts)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    value, task, tmp_path
):
    data, method = task
    run = start(tmp_path / "run")
    message = r"the loss is not finite in iteration 7.*last good state, of iteration 6, is kept in"
    with pytest.raises(FloatingPointError, match=message):
        distill(Stops(method, 7, with_value(value)), data, SETTINGS, run)
    tensors, header = run.load_checkpoint()
    assert header["iteration"] == 6
    assert tensors["image_syn"].isfinite().all()
    assert not run.finished
    # What is kept is good: the run goes on from it, to where it would have come.
    distill(method, data, SETTINGS, run, resume=True)
    whole = start(tmp_path / "whole")
    distill(method, data, SETTINGS, whole)
    assert same_files(whole, run)


def test_the_first_step_can_fail_too(task, tmp_path):
    data, method = task
    run = start(tmp_path / "run")
    with pytest.raises(FloatingPointError, match="not finite in iteration 0"):
        distill(Stops(method, 0, with_value(math.nan)), data, SETTINGS, run)
    assert not run.checkpoint.exists()


def test_an_update_that_overflows_is_never_saved(task, tmp_path):
    data, method = task
    settings = dataclasses.replace(SETTINGS, lr_img=1e38)
    run = start(tmp_path / "run", settings)
    huge = Stops(method, 1, with_value(1e30))
    with pytest.raises(FloatingPointError, match="not finite"):
        distill(huge, data, settings, run)
    if run.checkpoint.exists():
        assert all(part.isfinite().all() for part in run.load_checkpoint()[0].values())
    assert not run.finished


def test_a_step_size_below_zero_stops_the_run(task, tmp_path):
    data, method = task
    settings = dataclasses.replace(SETTINGS, lr_lr=100.0)
    with pytest.raises(FloatingPointError, match=r"learned step size fell to|not finite"):
        distill(method, data, settings, start(tmp_path / "run", settings))


def test_noise_and_real_initialisation(task, tmp_path):
    data, method = task
    settings = dataclasses.replace(SETTINGS, iterations=1, lr_img=0.0, ipc=2)
    real = distill(method, data, settings, start(tmp_path / "real")).image_syn
    train = {image.numpy().tobytes() for image in data.image_train}
    assert all(image.numpy().tobytes() in train for image in real)
    noisy = dataclasses.replace(settings, init="noise")
    noise = distill(method, data, noisy, start(tmp_path / "noise")).image_syn
    assert noise.shape == real.shape
    assert not any(image.numpy().tobytes() in train for image in noise)
    unit = dataclasses.replace(settings, init="unit_noise")
    scaled = distill(method, data, unit, start(tmp_path / "unit")).image_syn
    lengths = noise.flatten(1).norm(dim=1)
    torch.testing.assert_close(scaled, noise / lengths.view(-1, 1, 1, 1))


def test_bad_settings(task, tmp_path):
    data, method = task
    settings = dataclasses.replace(SETTINGS, ipc=1000)
    with pytest.raises(ValueError, match="ipc must be at most the size of the smallest class"):
        distill(method, data, settings, start(tmp_path / "run"))
    with pytest.raises(ValueError, match="already holds a run"):
        start(tmp_path / "run")
    for change, message in (
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"lr_img": math.nan}, "lr_img must be at least 0 and finite"),
        ({"init": "zeros"}, "init must be one of 'real', 'noise', 'unit_noise'"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SETTINGS, **change)
