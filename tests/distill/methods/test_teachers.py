"""Teachers are trained before the first step, and a stop at any moment costs a minute of it."""

import dataclasses
import os
import signal

import pytest
import torch
from recovered import maker
from same_run import leavings
from sgd_steps import acting_at
from tiny import make_data, with_loss

from mim4dd import MIM4DDLoss
from mim4dd.distill.add_ons.mutual_information import MIM4DD
from mim4dd.distill.loop import Interrupted, LoopSettings, distill
from mim4dd.distill.methods.edc import EDC, EDCSettings
from mim4dd.distill.methods.ncfm import NCFM, NCFMSettings
from mim4dd.distill.methods.rded import RDED, RDEDSettings
from mim4dd.distill.methods.sre2l import SRe2L, SRe2LSettings
from mim4dd.distill.methods.teachers import Teachers
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.training import kept

NUM_TEACHERS, EPOCHS, STEPS_PER_EPOCH = 2, 3, 3
SQUEEZE = {"squeeze_epochs": EPOCHS, "squeeze_batch": 16}
SETTINGS = LoopSettings(iterations=2, lr_img=0.1, checkpoint_every=1)


def make_ncfm(data):
    settings = NCFMSettings(num_pairs=NUM_TEACHERS, batch_real=5, num_frequencies=7, **SQUEEZE)
    return NCFM(maker(data, "instance"), data, 0, settings)


def make_sre2l(data):
    return SRe2L(maker(data), data, 0, SRe2LSettings(num_networks=NUM_TEACHERS, **SQUEEZE))


def make_edc(data):
    networks = [maker(data)(seed) for seed in range(NUM_TEACHERS)]
    return EDC(networks, data, 0, EDCSettings(**SQUEEZE))


def make_rded(data):
    """It starts from what its only teacher chooses; without an add-on it has nothing to stop at."""
    base = RDED(maker(data), data, 0, RDEDSettings(candidates=9, crops=3, **SQUEEZE))
    return MIM4DD(base, MIM4DDLoss(), weight=0.1, num_keys=12)


MAKERS = {"ncfm": make_ncfm, "sre2l": make_sre2l, "edc": make_edc, "rded": make_rded}


@pytest.fixture
def steps(monkeypatch):
    """Every step of every teacher, noted; each is written as if it took a minute."""
    monkeypatch.setattr(kept, "_SECONDS", 0.0)
    taken, step = [], torch.optim.SGD.step

    def noted(optimizer, *rest):
        # The images take their steps by SGD as well.
        if optimizer.param_groups[0]["weight_decay"]:
            taken.append(len(taken))
        return step(optimizer, *rest)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    return taken


def start(path):
    run = RunDirectory(path)
    run.create({})
    return run


def signal_at(monkeypatch, number, step):
    """Send it to this process once, in a step that then is lost."""
    stopped, _ = acting_at(step, lambda: os.kill(os.getpid(), number))
    monkeypatch.setattr(torch.optim.SGD, "step", stopped)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_costs_no_more_than_the_last_write(name, number, steps, tmp_path, monkeypatch):
    data = make_data()
    whole, parts = start(tmp_path / "whole"), start(tmp_path / "parts")
    distill(MAKERS[name](data), data, SETTINGS, whole)
    in_all = len(steps)
    steps.clear()
    with monkeypatch.context() as patched:
        signal_at(patched, number, in_all - 2)  # within the last epoch of the last teacher
        with pytest.raises(Interrupted, match=r"before the first iteration.*--resume") as caught:
            distill(MAKERS[name](data), data, SETTINGS, parts)
    assert caught.value.signal == number
    assert not parts.started
    before = len(steps)
    distill(MAKERS[name](data), data, SETTINGS, parts, resume=True)
    assert before < len(steps) <= in_all + 1
    assert leavings(whole.path) == leavings(parts.path)
    assert not (parts.path / "preparation").exists()


def test_a_kill_before_the_first_step_trains_nothing_again(steps, tmp_path):
    data, run = make_data(), start(tmp_path / "run")

    class Killed(Exception):
        pass

    def die(*_):
        raise Killed

    with pytest.raises(Killed):
        distill(with_loss(make_sre2l(data), die), data, SETTINGS, run)
    assert len(steps) == NUM_TEACHERS * EPOCHS * STEPS_PER_EPOCH
    assert run.load_checkpoint()[1]["iteration"] == 0
    assert not (run.path / "preparation").exists()
    distill(make_sre2l(data), data, SETTINGS, run, resume=True)
    assert len(steps) == NUM_TEACHERS * EPOCHS * STEPS_PER_EPOCH


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("change", ["settings", "data", "network"])
def test_teachers_of_another_training_are_refused(change, tmp_path, monkeypatch):
    data, run = make_data(), start(tmp_path / "run")
    with monkeypatch.context() as patched:
        signal_at(patched, signal.SIGTERM, 5)
        with pytest.raises(Interrupted):
            distill(make_sre2l(data), data, SETTINGS, run)
    settings = SRe2LSettings(num_networks=NUM_TEACHERS, **SQUEEZE)
    if change == "settings":
        settings = dataclasses.replace(settings, squeeze_lr=0.2)
    if change == "data":
        data = dataclasses.replace(data, image_train=data.image_train.flip(3))

    def make(seed):
        network = maker(data)(seed)
        return torch.nn.Sequential(network) if change == "network" else network

    other = SRe2L(make, data, 0, settings)
    with pytest.raises(ValueError, match=r"teacher_0000\.safetensors holds another training"):
        distill(other, data, SETTINGS, run, resume=True)


@pytest.mark.usefixtures("steps")
def test_a_teacher_that_diverges_leaves_nothing_to_go_on_from(tmp_path):
    data, run = make_data(), start(tmp_path / "run")
    bad = SRe2L(maker(data), data, 0, SRe2LSettings(squeeze_lr=1e30, **SQUEEZE))
    with pytest.raises(FloatingPointError, match="teacher 0 diverged"):
        distill(bad, data, SETTINGS, run)
    distill(make_sre2l(data), data, SETTINGS, run, resume=True)


def test_a_half_trained_teacher_is_trained_from_its_start(monkeypatch):
    """Also by who calls a method himself, with no folder to keep anything in."""
    data = make_data()
    method, other = make_sre2l(data), make_sre2l(data)

    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.SGD, "step", acting_at(5, stop)[0])
        with pytest.raises(Stopped):
            method.teachers.trained_on(data)
    assert method.state() == {}
    method.teachers.trained_on(data)
    other.teachers.trained_on(data)
    for name, tensor in other.state().items():
        assert torch.equal(method.state()[name], tensor), name


def test_a_link_out_of_the_run_is_not_followed(tmp_path):
    data, run = make_data(), start(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (run.path / "preparation").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((ValueError, OSError), match="preparation"):
        distill(make_sre2l(data), data, SETTINGS, run)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_they_are_trained_once(monkeypatch):
    data = make_data()
    method = make_sre2l(data)
    method.teachers.trained_on(data)
    monkeypatch.setattr(Teachers, "_train", lambda *_: pytest.fail("trained again"))
    method.teachers.trained_on(data)
