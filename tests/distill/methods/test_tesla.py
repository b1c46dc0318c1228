"""TESLA: the gradient of its loss with every θ_t constant, and where its published code differs."""

import pytest
import torch
import torch.nn.functional as F
from tiny import make_data, make_experts, make_network

from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.config.presets import preset
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.mtt import MTT, MTTSettings
from mim4dd.distill.methods.tesla import TESLA
from mim4dd.distill.training.augment import augmentation


@pytest.fixture
def task(tmp_path):
    data = make_data()
    return data, make_network(data), make_experts(data, tmp_path)


class Trajectory:
    """The draws of an iteration, and the θ_t that the student passes through."""

    def __init__(self, task, settings, image_syn, label_syn, syn_lr):
        data, network, experts = task
        stream, self.call = RealData(data, torch.Generator()), FunctionalModel(network)
        expert, start = stream.integer(2), stream.integer(settings.max_start_epoch)
        self.start, self.target = experts.segment(expert, start, settings.expert_epochs)
        self.schedule = [
            torch.randperm(len(image_syn), generator=stream.generator)[: settings.batch_syn]
            for _ in range(settings.syn_steps)
        ]
        seeds = torch.Generator().manual_seed(stream.seed())
        self.seeds = torch.randint(2**63 - 1, (settings.syn_steps,), generator=seeds)
        self.augment = augmentation(settings.dsa_strategy)
        self.label_syn = label_syn
        self.thetas = [self.start]
        for step in range(settings.syn_steps):
            gradient = self.gradient(step, image_syn).detach()
            self.thetas.append(self.thetas[-1] - syn_lr.detach() * gradient)

    def gradient(self, step, image_syn):
        """g_t, differentiable in the images; θ_t is a constant."""
        rows = self.schedule[step]
        images = image_syn[rows]
        if self.augment is not None:
            images = self.augment(images, torch.Generator().manual_seed(int(self.seeds[step])))
        theta = self.thetas[step].clone().requires_grad_()
        loss = F.cross_entropy(self.call(theta, images), self.label_syn[rows])
        return torch.autograd.grad(loss, theta, create_graph=True)[0]

    def loss(self, image_syn, syn_lr):
        """‖θ_0 − η Σ_t g_t − θ*‖² / ‖θ_0 − θ*‖², which autograd can differentiate as it stands."""
        gradients = [self.gradient(step, image_syn) for step in range(len(self.schedule))]
        left = (self.start - syn_lr * sum(gradients) - self.target).square().sum()
        return left / (self.start - self.target).square().sum()


def make_set(task):
    images, label_syn = task[0].sample(2, torch.Generator().manual_seed(1))
    return images.clone().requires_grad_(), label_syn, torch.tensor(0.1, requires_grad=True)


def gradients_of(method, task, settings, image_syn, label_syn, syn_lr):
    data, network, experts = task
    outcome = method(network, experts, settings).loss(
        image_syn, label_syn, syn_lr, RealData(data, torch.Generator())
    )
    return outcome.value.detach(), *torch.autograd.grad(outcome.value, (image_syn, syn_lr))


@pytest.mark.parametrize("strategy", ["none", "crop_scale"])
def test_value_and_gradients_are_those_of_its_loss(strategy, task):
    settings = MTTSettings(syn_steps=6, max_start_epoch=3, batch_syn=4, dsa_strategy=strategy)
    synthetic = image_syn, _, syn_lr = make_set(task)
    value = Trajectory(task, settings, *synthetic).loss(image_syn, syn_lr)
    expected = value.detach(), *torch.autograd.grad(value, (image_syn, syn_lr))
    found = gradients_of(TESLA, task, settings, *synthetic)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    # So that the test can tell the two apart: the exact gradient is another one.
    _, exact, _ = gradients_of(MTT, task, settings, *synthetic)
    assert (exact - found[1]).norm() > 1e-2 * exact.norm()


def test_the_published_code_descends_along_half_of_it(task):
    """It doubles a tuple, `2 * autograd.grad(…)`, which repeats it, and takes the first entry.

    So its images get the gradients of the bare products ⟨η (θ* − θ_0) + η² Σ g, g_t⟩ / D, whose
    factor 2 is lost; its step size gets that of the loss.
    """
    settings = MTTSettings(syn_steps=6, max_start_epoch=3, batch_syn=4)
    synthetic = image_syn, _, syn_lr = make_set(task)
    trajectory = Trajectory(task, settings, *synthetic)
    start, target, eta = trajectory.start, trajectory.target, syn_lr.detach()
    moved = start - trajectory.thetas[-1]  # η Σ g
    weight = eta * (target - start + moved) / (start - target).square().sum()
    products = [weight @ trajectory.gradient(step, image_syn) for step in range(6)]
    (published,) = torch.autograd.grad(sum(products), image_syn)
    _, by_image, _ = gradients_of(TESLA, task, settings, *synthetic)
    torch.testing.assert_close(by_image, 2 * published, rtol=1e-4, atol=1e-6)


# `--lr_img 1000` in the readme's commands, along half of our gradient. SGD with momentum is linear
# in the gradient, so half the step size is the same step.
@pytest.mark.parametrize(("data", "ipc"), [("cifar10", 1), ("cifar100", 50)])
def test_the_presets_step_as_far_as_the_published_commands(data, ipc):
    assert preset(data, "tesla", ipc)["lr_img"] == 1000 / 2
