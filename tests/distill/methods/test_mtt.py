"""MTT against its definition, written out with the naive graph."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tiny import make_data, make_experts, make_network

from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.mtt import MTT, MTTSettings

SETTINGS = MTTSettings(syn_steps=5, expert_epochs=2, max_start_epoch=3, batch_syn=2)


@pytest.fixture
def task(tmp_path):
    data = make_data()
    return data, make_network(data), make_experts(data, tmp_path)


def make_synthetic(data):
    images, labels = data.sample(1, torch.Generator().manual_seed(0))
    return images.clone().requires_grad_(), labels, torch.tensor(0.05, requires_grad=True)


@pytest.mark.parametrize("num_networks", [1, 2, 3])
def test_the_loss_is_the_definition(num_networks, task):
    """The mean of ‖θ_T − θ*‖² / ‖θ_0 − θ*‖² for the segments and batches that the stream draws."""
    data, network, experts = task
    image_syn, label_syn, syn_lr = make_synthetic(data)
    method = MTT(network, experts, dataclasses.replace(SETTINGS, num_networks=num_networks))
    outcome = method.loss(image_syn, label_syn, syn_lr, RealData(data, torch.Generator()))

    stream = RealData(data, torch.Generator())
    call, values = FunctionalModel(network), []
    assert len(outcome.compared) == num_networks
    for compared in outcome.compared:
        expert, start = stream.integer(2), stream.integer(3)
        first, target = experts.segment(expert, start, 2)
        theta = first.clone().requires_grad_()
        for _ in range(5):  # 3 samples hold one whole batch of 2: every step is a new permutation
            rows = torch.randperm(3, generator=stream.generator)[:2]
            loss = F.cross_entropy(call(theta, image_syn[rows]), label_syn[rows])
            theta = theta - syn_lr * torch.autograd.grad(loss, theta, create_graph=True)[0]
        values.append((theta - target).square().sum() / (first - target).square().sum())
        assert torch.equal(compared.theta_real, target)
        torch.testing.assert_close(compared.theta_syn, theta)
    expected = torch.stack(values).mean()
    torch.testing.assert_close(outcome.value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(outcome.value, (image_syn, syn_lr)),
        torch.autograd.grad(expected, (image_syn, syn_lr)),
        rtol=1e-4,
        atol=1e-6,
    )


def test_networks_side_by_side_send_gradients_through_their_features(task):
    """What an add-on reads of each network reaches the images, too."""
    data, network, experts = task
    image_syn, label_syn, syn_lr = make_synthetic(data)
    method = MTT(network, experts, dataclasses.replace(SETTINGS, num_networks=2))
    outcome = method.loss(image_syn, label_syn, syn_lr, RealData(data, torch.Generator()))
    for compared in outcome.compared:
        (gradient,) = torch.autograd.grad(
            compared.theta_syn.square().sum(), image_syn, retain_graph=True
        )
        assert gradient.abs().max() > 0


def test_batches_cover_the_set_before_they_repeat():
    schedule = SETTINGS.schedule(6, 5, torch.Generator().manual_seed(0))
    assert schedule.shape == (5, 2)
    assert sorted(schedule[:3].flatten().tolist()) == list(range(6))
    whole = dataclasses.replace(SETTINGS, batch_syn=None)
    assert whole.schedule(6, 5, torch.Generator()).shape == (5, 6)


def test_the_stream_alone_decides(task):
    data, network, experts = task
    settings = dataclasses.replace(SETTINGS, dsa_strategy="crop_scale")
    image_syn, label_syn, syn_lr = make_synthetic(data)

    def loss(seed):
        real = RealData(data, torch.Generator().manual_seed(seed))
        return MTT(network, experts, settings).loss(image_syn, label_syn, syn_lr, real).value.item()

    assert loss(0) == loss(0)
    assert len({loss(seed) for seed in range(5)}) > 1


def test_experts_that_do_not_fit_are_refused(task):
    data, _, experts = task
    with pytest.raises(ValueError, match="experts must be of the network to distil for"):
        MTT(torch.nn.Linear(3, 2), experts, SETTINGS)
    with pytest.raises(ValueError, match="must be within the experts' 4 epochs, got 5"):
        MTT(make_network(data), experts, dataclasses.replace(SETTINGS, max_start_epoch=4))
    with pytest.raises(ValueError, match="syn_steps must be at least 1"):
        dataclasses.replace(SETTINGS, syn_steps=0)
