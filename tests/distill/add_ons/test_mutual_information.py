"""The MIM4DD add-on: any base method, features at both parameters, gradients by both ways."""

import pytest
import torch
from tiny import make_data, make_network

from mim4dd import MIM4DDLoss, flatten_parameters
from mim4dd.distill.add_ons.mutual_information import MIM4DD, MIM4DDSettings, layer_features
from mim4dd.distill.methods.base import BaseMethod, ComparedNetwork, Objective, RealData


class ToyMethod(BaseMethod):
    """A base method of a user's own: the parameters depend on the images."""

    def __init__(self, network):
        self.network = network
        self.theta = flatten_parameters(network)

    def loss(self, image_syn, label_syn, syn_lr, real):
        theta_syn = self.theta * (1 + syn_lr * image_syn.square().mean())
        compared = ComparedNetwork(self.network, theta_syn, self.theta)
        return Objective(image_syn.abs().mean(), [compared], {"toy": 1.0})


@pytest.fixture
def task():
    data = make_data()
    images, labels = data.sample(2, torch.Generator().manual_seed(0))
    return data, ToyMethod(make_network(data)), images.clone().requires_grad_(), labels


def test_features_are_the_blocks_outputs():
    data = make_data()
    network = make_network(data)
    images = data.image_train[:4]
    first, second = layer_features(
        network, flatten_parameters(network), images, network.feature_layers
    )
    torch.testing.assert_close(first, network.blocks[0](images))
    torch.testing.assert_close(second, network.blocks(images))
    assert not network.blocks[0]._forward_hooks
    with pytest.raises(ValueError, match=r"got \['blocks.9'\]; it has: blocks, blocks.0"):
        layer_features(network, flatten_parameters(network), images, ["blocks.9"])


def test_the_total_is_base_plus_weight_times_contrast(task):
    data, base, image_syn, label_syn = task
    syn_lr = torch.tensor(0.1, requires_grad=True)
    criterion = MIM4DDLoss(layer_decay=0.5)
    method = MIM4DD(base, criterion, weight=0.25, num_keys=12)
    outcome = method.loss(image_syn, label_syn, syn_lr, RealData(data, torch.Generator()))

    image_real, label_real = RealData(data, torch.Generator()).sample(12)
    base_outcome = base.loss(image_syn, label_syn, syn_lr, None)
    (compared,) = base_outcome.compared
    layers = base.network.feature_layers
    contrast = MIM4DDLoss(layer_decay=0.5)(
        layer_features(base.network, compared.theta_syn, image_syn, layers),
        layer_features(base.network, compared.theta_real, image_real, layers),
        label_syn,
        label_real,
    )
    torch.testing.assert_close(outcome.value, base_outcome.value + 0.25 * contrast)
    assert outcome.metrics["toy"] == 1.0
    assert outcome.metrics["contrastive_loss"] == pytest.approx(contrast.item())
    bounds = [outcome.metrics[f"mi_lower_bound/{layer}"] for layer in range(2)]
    assert outcome.metrics["mi_lower_bound"] == bounds[-1]

    # Through the parameters as well as directly: the step size is reached only through θ.
    (gradient,) = torch.autograd.grad(outcome.value, syn_lr)
    assert gradient != 0


def test_layers_and_projection_from_settings(task):
    data, base, image_syn, label_syn = task
    settings = MIM4DDSettings(layers="blocks.1", projection=5, critic="nce", num_keys=9)
    method = MIM4DD.from_settings(base, settings, base.network, data.image_train, seed=1)
    (head,) = method.criterion.projection
    assert (head.in_features, head.out_features) == (8 * 2 * 2, 5)
    assert not any(parameter.requires_grad for parameter in head.parameters())
    again = MIM4DD.from_settings(base, settings, base.network, data.image_train, seed=1)
    assert torch.equal(again.criterion.projection[0].weight, head.weight)
    outcome = method.loss(
        image_syn, label_syn, torch.tensor(0.1), RealData(data, torch.Generator())
    )
    outcome.value.backward()
    assert image_syn.grad.isfinite().all()


def test_the_real_batch_is_drawn_independently():
    """With replacement and without regard to the class: what the MI bound asks of its keys."""
    data = make_data()
    images, labels = RealData(data, torch.Generator().manual_seed(0)).sample(3000)
    assert images.shape[0] == 3000
    assert ((labels.bincount() / 3000 - 1 / 3).abs() < 0.05).all()
    assert labels.bincount().unique().numel() > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": -1.0}, "weight must be at least 0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"critic": "clip"}, "critic must be one of"),
        ({"layer_decay": 2.0}, "layer_decay must lie in"),
        ({"num_keys": 0}, "num_keys must be at least 1"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        MIM4DDSettings(**change)
