"""DM against its definition: the squared distance of mean embeddings, class by class."""

import copy
import dataclasses

import pytest
import torch
from tiny import (
    all_classes_at_once,
    at_once,
    doubled,
    make_data,
    make_network,
    make_set,
    maker,
    same_after_a_stop,
    stream,
)
from torch import nn

from mim4dd.distill.loop import LoopSettings
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.dm import DM, DMSettings
from mim4dd.distill.training.network import seeded_network

SETTINGS = DMSettings(batch_real=5)


def embeddings(network, images):
    """The features before the classifier, in ConvNet's own words."""
    return network.blocks(images).flatten(1)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("num_networks", [1, 3])
@pytest.mark.parametrize("as_on_gpu", [False, True])
def test_the_loss_is_the_definition(norm, num_networks, as_on_gpu, monkeypatch):
    """Σ_c ‖mean ψ(real_c) − mean ψ(syn_c)‖², in the mean over the networks."""
    monkeypatch.setattr("mim4dd.distill.training.passes._PIXELS", 4 * 8 * 8)
    if as_on_gpu:
        monkeypatch.setattr("mim4dd.distill.methods.dm.for_each_network", at_once)
        monkeypatch.setattr("mim4dd.distill.methods.dm.sum_over_classes", all_classes_at_once)
    data = doubled(make_data())
    make = maker(data, norm)
    image_syn, label_syn = make_set(data)
    settings = dataclasses.replace(SETTINGS, num_networks=num_networks)
    outcome = DM(make, settings).loss(
        image_syn, label_syn, torch.tensor(0.1), RealData(data, stream())
    )

    real = RealData(data, stream())
    networks = [make(real.seed()) for _ in range(num_networks)]
    batches = []
    for label in range(3):
        batches.append(real.sample_class(label, 5))
        real.seed()
    expected = 0
    for network in networks:
        # With BatchNorm all classes are one batch, as in the published code.
        of_real = embeddings(copy.deepcopy(network), torch.cat(batches)).detach()
        of_syn = embeddings(copy.deepcopy(network), image_syn)
        for label in range(3):
            mean_real = of_real[5 * label : 5 * label + 5].mean(0)
            mean_syn = of_syn[2 * label : 2 * label + 2].mean(0)
            expected = expected + ((mean_real - mean_syn) ** 2).sum() / num_networks
    torch.testing.assert_close(outcome.value, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, image_syn)[0] for value in (outcome.value, expected))
    )
    assert len(outcome.compared) == num_networks
    for compared, network in zip(outcome.compared, networks, strict=True):
        weights = torch.cat([part.detach().flatten() for part in network.parameters()])
        assert torch.equal(compared.theta_syn, weights)
        assert torch.equal(compared.theta_real, weights)


def test_real_and_synthetic_images_are_augmented_alike():
    """Sets that are the same images stay at distance 0 under any transformation."""
    data = doubled(make_data())
    image_syn = torch.cat([data.image_train[data.label_train == label] for label in range(3)])
    label_syn = torch.arange(3).repeat_interleave(len(image_syn) // 3)
    settings = DMSettings(batch_real=1000, dsa_strategy="crop_scale_rotate")
    for seed in range(4):
        real = RealData(data, torch.Generator().manual_seed(seed))
        outcome = DM(maker(data), settings).loss(image_syn, label_syn, torch.tensor(0.1), real)
        torch.testing.assert_close(outcome.value, torch.zeros((), dtype=torch.float64))


def test_every_step_has_fresh_networks():
    data = doubled(make_data())
    image_syn, label_syn = make_set(data)
    thetas = [
        DM(maker(data), SETTINGS)
        .loss(
            image_syn,
            label_syn,
            torch.tensor(0.1),
            RealData(data, torch.Generator().manual_seed(seed)),
        )
        .compared[0]
        .theta_syn
        for seed in (0, 0, 1)
    ]
    assert torch.equal(thetas[0], thetas[1])
    assert not torch.equal(thetas[0], thetas[2])


def test_a_stopped_run_continues_bit_for_bit(tmp_path):
    data = make_data()
    settings = LoopSettings(iterations=5, checkpoint_every=2)

    def make():
        return DM(
            lambda seed: seeded_network(lambda: make_network(data), seed),
            DMSettings(batch_real=4, dsa_strategy="crop_scale", num_networks=2),
        )

    assert same_after_a_stop(make, data, settings, tmp_path)


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match="network must have a linear layer"):
        DM(lambda seed: nn.Sequential(nn.Flatten()), SETTINGS)
    with pytest.raises(ValueError, match="batch_real must be at least 1"):
        DMSettings(batch_real=0)
    with pytest.raises(ValueError, match="num_networks must be at least 1"):
        DMSettings(num_networks=0)
    with pytest.raises(ValueError, match="strategy must join"):
        DMSettings(dsa_strategy="mirror")
