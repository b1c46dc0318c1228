"""DWA against its definition: ascent of every group's own teacher, then SRe2L's loss from it."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from recovered import by_hand, maker
from tiny import doubled, make_data, make_set, same_after_a_stop, stream

from mim4dd.distill.loop import LoopSettings
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.dwa import DWA, DWASettings
from mim4dd.distill.methods.sre2l import SRe2L, SRe2LSettings

SETTINGS = DWASettings(
    squeeze_epochs=2, squeeze_batch=16, r_bn=0.3, jitter=2, ascent_steps=3, ascent_length=0.5,
    variance_weight=4.0,
)  # fmt: skip
LR = torch.tensor(0.1)


def climbed(teacher, images, labels):
    """A copy of the teacher after the ascent."""
    teacher = copy.deepcopy(teacher)
    for _ in range(3):
        parameters = list(teacher.parameters())
        logits, _ = by_hand(teacher, images)
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels), parameters)
        length = sum(gradient.square().sum() for gradient in gradients).sqrt()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter += 0.5 / 3 * gradient / (length + 1e-12)
    return teacher


def expected_loss(teacher, images, labels):
    logits, inputs = by_hand(teacher, images)
    loss = F.cross_entropy(logits, labels)
    for layer, (norm, values) in enumerate(inputs):
        pixels = values.transpose(0, 1).flatten(1)
        mean, variance = pixels.mean(1), pixels.var(1, correction=0)
        distance = (mean - norm.running_mean).norm() + 4 * (variance - norm.running_var).norm()
        loss = loss + 0.3 * (10 if layer == 0 else 1) * distance
    return loss


@pytest.mark.parametrize("num_networks", [1, 2])
def test_the_loss_is_the_definition(num_networks):
    data = doubled(make_data())
    image_syn, label_syn = make_set(data, ipc=2)
    settings = dataclasses.replace(SETTINGS, num_networks=num_networks)
    method = DWA(maker(data), data, 0, settings)
    real = RealData(data, stream())
    expected_stream = RealData(data, stream())
    teachers = None
    for iteration in range(2):
        images = (image_syn + 0.1 * iteration).detach().requires_grad_()
        outcome = method.loss(images, label_syn, LR, real)
        shifts = expected_stream.integer(3), expected_stream.integer(3)
        rolled = torch.roll(images, shifts, (2, 3))
        groups = [torch.tensor([0, 2, 4]) + group for group in range(2)]
        if teachers is None:  # once, by the first images
            teachers = [
                [climbed(teacher, rolled[rows].detach(), label_syn[rows]) for rows in groups]
                for teacher in method.teachers.networks
            ]
        expected = sum(
            expected_loss(teacher, rolled[rows], label_syn[rows]) / 2 / num_networks
            for of_groups in teachers
            for teacher, rows in zip(of_groups, groups, strict=True)
        )
        torch.testing.assert_close(outcome.value, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(value, images)[0] for value in (outcome.value, expected))
        )
    # The teachers themselves, which label the set, stay as they are.
    assert len(outcome.compared) == num_networks
    for teacher, other in zip(
        method.teachers.networks,
        SRe2L(maker(data), data, 0, SRe2LSettings(
            squeeze_epochs=2, squeeze_batch=16, num_networks=num_networks
        )).teachers.trained_on(data),
        strict=True,
    ):  # fmt: skip
        for mine, theirs in zip(teacher.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_without_ascent_it_is_sre2l():
    data = doubled(make_data())
    image_syn, label_syn = make_set(data, ipc=2)
    still = dataclasses.replace(SETTINGS, ascent_length=0.0, variance_weight=1.0)
    own = {field.name: getattr(still, field.name) for field in dataclasses.fields(SRe2LSettings)}
    values = [
        kind(maker(data), data, 0, settings).loss(
            image_syn, label_syn, LR, RealData(data, stream())
        ).value
        for kind, settings in ((DWA, still), (SRe2L, SRe2LSettings(**own)))
    ]  # fmt: skip
    torch.testing.assert_close(*values)


def test_a_stopped_run_continues_bit_for_bit(tmp_path):
    data = make_data()
    settings = LoopSettings(
        iterations=5, checkpoint_every=2, ipc=2, optimizer_img="adam", lr_img=0.01
    )

    def make():
        return DWA(maker(data), data, 0, dataclasses.replace(SETTINGS, dsa_strategy="crop_scale"))

    assert same_after_a_stop(make, data, settings, tmp_path)


def test_a_checkpoint_holds_images_and_no_weights_of_groups():
    data = make_data()
    image_syn, label_syn = make_set(data)
    method = DWA(maker(data), data, 0, SETTINGS)
    before = method.identity()
    assert method.state() == {}
    method.loss(image_syn, label_syn, LR, RealData(data, stream()))
    assert method.identity() == before
    state = method.state()
    assert state["start"].shape == image_syn.shape
    other = DWA(maker(data), data, 0, SETTINGS)
    other.restore(state)
    moved = image_syn.detach() + 0.1
    values = [
        each.loss(moved, label_syn, LR, RealData(data, stream())).value for each in (method, other)
    ]
    assert torch.equal(*values)


def test_what_cannot_be_used_is_refused():
    data = make_data()
    with pytest.raises(ValueError, match=r"method 'dwa' needs .* BatchNorm: --norm batch"):
        DWA(maker(data, "instance"), data, 0, SETTINGS)
    with pytest.raises(ValueError, match="one number for all classes with DWA"):
        DWA(maker(data), data, 0, SETTINGS).require_per_class((1, 2, 1))
    for change in ({"ascent_steps": 0}, {"ascent_length": -1.0}, {"variance_weight": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(change))} must be at least"):
            dataclasses.replace(SETTINGS, **change)
