"""TESLA against its own algorithm: two passes, every θ_t and the sum of gradients constants."""

import pytest
import torch
import torch.nn.functional as F
from tiny import make_data, make_experts, make_network

from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.augment import augmentation
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.mtt import MTT, MTTSettings
from mim4dd.distill.methods.tesla import TESLA


@pytest.fixture
def task(tmp_path):
    data = make_data()
    return data, make_network(data), make_experts(data, tmp_path)


def teslas_gradients(task, settings, image_syn, label_syn, syn_lr):
    """Value, image gradient, step-size gradient, as the two passes of its code give them."""
    data, network, experts = task
    stream, call = RealData(data, torch.Generator()), FunctionalModel(network)
    expert, start = stream.integer(2), stream.integer(settings.max_start_epoch)
    theta_0, target = experts.segment(expert, start, settings.expert_epochs)
    schedule = [
        torch.randperm(len(image_syn), generator=stream.generator)[: settings.batch_syn]
        for _ in range(settings.syn_steps)
    ]
    step_seeds = torch.randint(
        2**63 - 1, (settings.syn_steps,), generator=torch.Generator().manual_seed(stream.seed())
    )
    augment = augmentation(settings.dsa_strategy)

    def batch(step):
        images = image_syn[schedule[step]]
        if augment is None:
            return images
        return augment(images, torch.Generator().manual_seed(int(step_seeds[step])))

    def gradient(theta, step, create_graph):
        theta = theta.clone().requires_grad_()
        loss = F.cross_entropy(call(theta, batch(step)), label_syn[schedule[step]])
        return torch.autograd.grad(loss, theta, create_graph=create_graph)[0]

    alpha, distance = syn_lr.detach(), (theta_0 - target).square().sum()
    thetas, total = [theta_0], torch.zeros_like(theta_0)
    for step in range(settings.syn_steps):
        found = gradient(thetas[-1], step, create_graph=False)
        thetas.append(thetas[-1] - alpha * found)
        total += found
    by_image = torch.zeros_like(image_syn)
    for step in range(settings.syn_steps):
        term = (alpha * (target - theta_0) + alpha**2 * total) @ gradient(thetas[step], step, True)
        by_image += 2 * torch.autograd.grad(term / distance, image_syn)[0]
    loss = (theta_0 - syn_lr * total - target).square().sum() / distance
    return loss.detach(), by_image, torch.autograd.grad(loss, syn_lr)[0]


@pytest.mark.parametrize("strategy", ["none", "crop_scale"])
def test_value_and_gradients_are_those_of_its_algorithm(strategy, task):
    data, network, experts = task
    settings = MTTSettings(syn_steps=6, max_start_epoch=3, batch_syn=4, dsa_strategy=strategy)
    images, label_syn = data.sample(2, torch.Generator().manual_seed(1))
    image_syn = images.clone().requires_grad_()
    syn_lr = torch.tensor(0.1, requires_grad=True)
    expected = teslas_gradients(task, settings, image_syn, label_syn, syn_lr)
    found, exact = (
        method(network, experts, settings)
        .loss(image_syn, label_syn, syn_lr, RealData(data, torch.Generator()))
        .value
        for method in (TESLA, MTT)
    )
    gradients = torch.autograd.grad(found, (image_syn, syn_lr))
    torch.testing.assert_close((found.detach(), *gradients), expected, rtol=1e-4, atol=1e-6)
    # So that the test can tell the two apart: the exact gradient is another one.
    by_image, _ = torch.autograd.grad(exact, (image_syn, syn_lr))
    assert (by_image - gradients[0]).norm() > 1e-2 * by_image.norm()
