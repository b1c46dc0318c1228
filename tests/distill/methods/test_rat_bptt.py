"""RaT-BPTT against its definition: a naive unroll by Adam whose first steps are constants."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from naive_bptt import make_set, naive_adam
from tiny import (
    at_once,
    doubled,
    make_data,
    make_network,
    maker,
    same_after_a_stop,
    stream,
)

from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.loop import LoopSettings
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.rat_bptt import RaTBPTT, RaTBPTTSettings
from mim4dd.distill.training.network import seeded_network
from mim4dd.unroll import flatten_parameters

SETTINGS = RaTBPTTSettings(syn_steps=6, window=3, inner_lr=0.01, batch_syn=4, batch_target=7)
SEED = 0


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("num_networks", [1, 2])
@pytest.mark.parametrize("as_on_gpu", [False, True])
def test_the_loss_is_the_definition(norm, num_networks, as_on_gpu, monkeypatch):
    monkeypatch.setattr("mim4dd.distill.training.passes._PIXELS", 3 * 8 * 8)
    if as_on_gpu:
        monkeypatch.setattr("mim4dd.distill.methods.rat_bptt.for_each_network", at_once)
    data = doubled(make_data())
    make = maker(data, norm)
    image_syn, label_syn = make_set(data)
    settings = dataclasses.replace(SETTINGS, num_networks=num_networks)
    outcome = RaTBPTT(make, settings).loss(
        image_syn, label_syn, torch.tensor(0.1), RealData(data, stream(SEED))
    )

    real = RealData(data, stream(SEED))
    networks = [make(real.seed()) for _ in range(num_networks)]
    num_steps = 3 + real.integer(4)
    assert num_steps > 3  # or the window would be all
    batches = settings.schedule(len(image_syn), num_steps, real.generator)
    real.seed()
    images, labels = real.sample(7)
    expected = 0
    for network, compared in zip(networks, outcome.compared, strict=True):
        call = FunctionalModel(network)
        theta = naive_adam(call, flatten_parameters(network), image_syn, label_syn, batches, 3)
        torch.testing.assert_close(compared.theta_syn, theta)
        expected = expected + F.cross_entropy(call(theta, images), labels) / num_networks
    torch.testing.assert_close(outcome.value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(outcome.value, (image_syn, label_syn)),
        torch.autograd.grad(expected, (image_syn, label_syn)),
        rtol=1e-6,
        atol=1e-9,
    )


def test_the_window_ends_anywhere_it_fits(monkeypatch):
    data = make_data()
    seen = set()

    def no_training(model, theta_0, images, labels, batches, *, window, **_):
        assert window == 3
        seen.add(len(batches))
        return theta_0

    monkeypatch.setattr("mim4dd.distill.methods.rat_bptt.unroll_adam", no_training)
    images, labels = data.sample(1, stream())
    method = RaTBPTT(lambda seed: make_network(data), SETTINGS)
    for seed in range(60):
        method.loss(images, labels, torch.tensor(0.1), RealData(data, stream(seed)))
    assert seen == {3, 4, 5, 6}


def test_without_a_window_the_gradient_is_exact():
    data = doubled(make_data())
    image_syn, label_syn = make_set(data)
    settings = dataclasses.replace(SETTINGS, window=None)
    value = RaTBPTT(maker(data), settings).loss(
        image_syn, label_syn, torch.tensor(0.1), RealData(data, stream())
    )
    whole = dataclasses.replace(SETTINGS, window=6)
    same = RaTBPTT(maker(data), whole).loss(
        image_syn, label_syn, torch.tensor(0.1), RealData(data, stream())
    )
    gradients = [torch.autograd.grad(each.value, image_syn)[0] for each in (value, same)]
    assert torch.equal(*gradients)


def test_a_stopped_run_continues_bit_for_bit(tmp_path):
    data = make_data()
    settings = LoopSettings(iterations=5, checkpoint_every=2, optimizer_img="adam", lr_img=0.01)

    def make():
        return RaTBPTT(
            lambda seed: seeded_network(lambda: make_network(data), seed),
            dataclasses.replace(SETTINGS, batch_syn=None, dsa_strategy="crop_scale"),
        )

    assert same_after_a_stop(make, data, settings, tmp_path)


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match="window must be at most syn_steps, 6, got 7"):
        RaTBPTT(lambda seed: None, dataclasses.replace(SETTINGS, window=7))
    for change, message in (
        ({"window": 0}, "window must be at least 1"),
        ({"batch_target": 0}, "batch_target must be at least 1"),
        ({"inner_lr": 0.0}, "inner_lr must be"),
        ({"syn_steps": 0}, "syn_steps must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SETTINGS, **change)
