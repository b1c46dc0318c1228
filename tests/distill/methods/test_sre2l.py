"""SRe2L against its definition: cross entropy and the statistics at the input of each BatchNorm."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from recovered import by_hand, maker
from tiny import at_once, doubled, make_data, make_set, same_after_a_stop, stream

from mim4dd import MIM4DDLoss
from mim4dd.distill.add_ons.mutual_information import MIM4DD
from mim4dd.distill.loop import LoopSettings, distill
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.sre2l import SRe2L, SRe2LSettings
from mim4dd.distill.runs import RunDirectory

SETTINGS = SRe2LSettings(squeeze_epochs=3, squeeze_batch=16, r_bn=0.3, jitter=2)


@pytest.mark.parametrize("num_networks", [1, 2])
@pytest.mark.parametrize("as_on_gpu", [False, True])
def test_the_loss_is_the_definition(num_networks, as_on_gpu, monkeypatch):
    """For each group of one image per class: CE + r Σ_l c_l (‖Δμ‖ + ‖Δσ²‖), and their mean."""
    if as_on_gpu:
        monkeypatch.setattr("mim4dd.distill.methods.sre2l.for_each_network", at_once)
    data = doubled(make_data())
    image_syn, label_syn = make_set(data, ipc=2)
    settings = dataclasses.replace(SETTINGS, num_networks=num_networks)
    method = SRe2L(maker(data), data, 0, settings)
    outcome = method.loss(image_syn, label_syn, torch.tensor(0.1), RealData(data, stream()))

    real = RealData(data, stream())
    down, right = real.integer(3), real.integer(3)
    expected = 0
    for teacher in method.teachers.networks:
        assert not teacher.training
        for group in range(2):
            rows = torch.tensor([0, 2, 4]) + group  # the set is ordered by class
            images = torch.roll(image_syn[rows], (down, right), (2, 3))
            logits, inputs = by_hand(teacher, images)
            loss = F.cross_entropy(logits, label_syn[rows])
            for layer, (norm, values) in enumerate(inputs):
                pixels = values.transpose(0, 1).flatten(1)  # (channels, 3 * H * W)
                mean = pixels.mean(1)
                variance = ((pixels - mean[:, None]) ** 2).mean(1)
                distance = (mean - norm.running_mean).norm() + (variance - norm.running_var).norm()
                loss = loss + 0.3 * (10 if layer == 0 else 1) * distance
            expected = expected + loss / 2 / num_networks
    torch.testing.assert_close(outcome.value, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, image_syn)[0] for value in (outcome.value, expected))
    )
    assert len(outcome.compared) == num_networks


def test_teachers_are_trained_once_and_differ():
    data = make_data()
    image_syn, label_syn = make_set(data)
    method = SRe2L(maker(data), data, 0, dataclasses.replace(SETTINGS, num_networks=2))
    assert method.state() == {}
    method.loss(image_syn, label_syn, torch.tensor(0.1), RealData(data, stream()))
    before = {name: tensor.clone() for name, tensor in method.state().items()}
    method.loss(image_syn, label_syn, torch.tensor(0.1), RealData(data, stream()))
    method.relabel(image_syn.detach())
    after = method.state()
    assert all(torch.equal(before[name], after[name]) for name in before | after)
    assert not torch.equal(after["0.blocks.0.0.weight"], after["1.blocks.0.0.weight"])
    labels = data.label_train
    assert (method.relabel(data.image_train).argmax(1) == labels).double().mean() > 0.9


@pytest.mark.parametrize("add_on", [False, True])
def test_the_result_has_the_labels_of_the_teachers(add_on, tmp_path):
    data = make_data()
    method = base = SRe2L(maker(data), data, 0, dataclasses.replace(SETTINGS, num_networks=2))
    if add_on:
        method = MIM4DD(base, MIM4DDLoss(), weight=0.1, num_keys=12)
    run = RunDirectory(tmp_path / "run")
    run.create({})
    result = distill(method, data, LoopSettings(iterations=2, lr_img=0.1), run)
    teachers = [teacher.eval() for teacher in base.teachers.networks]
    with torch.no_grad():
        expected = (sum(teacher(result.image_syn) for teacher in teachers) / 2).softmax(1)
    torch.testing.assert_close(result.label_syn, expected)
    assert result.class_syn.tolist() == [0, 1, 2]


def test_a_stopped_run_continues_bit_for_bit(tmp_path):
    data = make_data()
    settings = LoopSettings(iterations=5, checkpoint_every=2, optimizer_img="adam", lr_img=0.01)

    def make():
        return SRe2L(maker(data), data, 0, dataclasses.replace(SETTINGS, dsa_strategy="crop_scale"))

    assert same_after_a_stop(make, data, settings, tmp_path)


def test_a_resumed_run_takes_the_teachers_of_the_checkpoint():
    data = make_data()
    image_syn, _ = make_set(data)
    first, second = (SRe2L(maker(data), data, seed, SETTINGS) for seed in (0, 1))
    expected = first.relabel(image_syn.detach())
    second.restore(first.state())
    assert torch.equal(second.relabel(image_syn.detach()), expected)
    more = SRe2L(maker(data), data, 0, dataclasses.replace(SETTINGS, num_networks=2))
    with pytest.raises(ValueError, match="the checkpoint must hold 2 teachers"):
        more.restore(first.state())


def test_what_cannot_be_used_is_refused():
    data = make_data()
    with pytest.raises(ValueError, match=r"method 'sre2l' needs .* BatchNorm: --norm batch"):
        SRe2L(maker(data, "instance"), data, 0, SETTINGS)
    diverging = SRe2L(maker(data), data, 0, dataclasses.replace(SETTINGS, squeeze_lr=1e30))
    image_syn, label_syn = make_set(data)
    with pytest.raises(FloatingPointError, match="teacher 0 diverged: lower its step size"):
        diverging.loss(image_syn, label_syn, torch.tensor(0.1), RealData(data, stream()))
    for change, message in (
        ({"squeeze_epochs": 0}, "squeeze_epochs must be at least 1"),
        ({"squeeze_lr": 0.0}, "squeeze_lr must be"),
        ({"r_bn": -1.0}, "r_bn must be at least 0"),
        ({"jitter": -1}, "jitter must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SETTINGS, **change)
