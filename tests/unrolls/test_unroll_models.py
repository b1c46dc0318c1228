"""What a model may be for unroll_sgd: buffers, shared and frozen parameters, functional calls."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint
from unrolls.test_unroll import TiedTwice, assert_same_gradients

from mim4dd import flatten_parameters, unroll_sgd
from mim4dd._unroll.step_gradient import StepLoss


class Generated(nn.Module):
    """Weights made by a map, put into a template by a functional call in the forward pass."""

    def __init__(self):
        super().__init__()
        self.template = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        self.template.requires_grad_(False)
        self.code = nn.Parameter(torch.randn(2))
        self.maps = nn.ParameterList(
            nn.Parameter(0.5 * torch.randn(2, each.numel())) for each in self.template.parameters()
        )

    def forward(self, images):
        named = self.template.named_parameters()
        state = {
            name: each + (self.code @ made).view_as(each)
            for (name, each), made in zip(named, self.maps, strict=True)
        }
        return functional_call(self.template, state, (images,))


class SharedBuffer(nn.Module):
    """One module writes a buffer in its forward pass, and another that shares it reads it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.first.register_buffer("scale", torch.ones(4))
        self.second.register_buffer("scale", self.first.scale)

    def forward(self, images):
        hidden = self.first(images).tanh()
        with torch.no_grad():
            self.first.scale.mul_(0.5).add_(images.std(0))
        return self.second(hidden * self.second.scale)


class Centred(nn.Module):
    """A parametrization, torch's way to compute a weight from another."""

    def forward(self, weight):
        return weight - weight.mean(1, keepdim=True)


def parametrized():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    register_parametrization(model[0], "weight", Centred())
    return model


class Attention(nn.Module):
    """Of PyTorch's attention kernels one has a second derivative: the unroll chooses it."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        tokens = torch.stack([images, images.sin(), images.cos()], dim=1)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head(mixed.mean(1))


def normalized(**options):
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, **options), nn.Tanh(), nn.Linear(5, 3))


def with_statistics(model):
    nn.init.uniform_(model[1].running_mean)
    nn.init.uniform_(model[1].running_var, 1, 2)
    return model


def frozen(model, *names):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(names))
    return model


MODELS = {
    "functional call": Generated,
    "shared": TiedTwice,
    "shared and frozen": lambda: frozen(TiedTwice(), "layers.0.weight"),
    "frozen end": lambda: frozen(normalized(), "3"),
    "frozen norm": lambda: frozen(with_statistics(normalized()), "1"),
    "BatchNorm": lambda: with_statistics(normalized()),
    "BatchNorm in eval mode": lambda: with_statistics(normalized()).eval(),
    "BatchNorm without statistics": lambda: normalized(track_running_stats=False).eval(),
    "BatchNorm that averages all": lambda: with_statistics(normalized(momentum=None)),
    "shared buffer": SharedBuffer,
    "parametrized": parametrized,
    "spectral norm": lambda: nn.Sequential(spectral_norm(nn.Linear(4, 5)), nn.Linear(5, 3)),
    "attention": Attention,
}
# What torch.vmap refuses: a Python number of a buffer, and an operation with out=.
ONE_AT_A_TIME = {"BatchNorm that averages all": "vmap", "spectral norm": "Batching rule"}


def make(name, device):
    model = MODELS[name]().to(device, torch.float64)
    if isinstance(model, SharedBuffer):
        model.second.scale = model.first.scale  # which to() has parted
    images = torch.randn(6, 4, dtype=torch.float64, device=device, requires_grad=True)
    labels = torch.arange(6, device=device) % 3
    batches = torch.stack([torch.randperm(6, device=device)[:4] for _ in range(4)])
    lr = torch.tensor(0.1, dtype=torch.float64, device=device, requires_grad=True)
    return model, images, labels, batches, lr


def by_name(model, theta, images, labels, batches, lr):
    """θ_T by the graph of all steps, parameters and buffers by torch's own names and ties."""
    trainable = {name: each for name, each in model.named_parameters() if each.requires_grad}
    parts = theta.split([each.numel() for each in trainable.values()])
    state = {
        name: part.view_as(each)
        for (name, each), part in zip(trainable.items(), parts, strict=True)
    }
    for rows in batches:
        # A fresh copy, since a functional call leaves what its model writes to buffers in it.
        with sdpa_kernel(SDPBackend.MATH):
            output = functional_call(copy.deepcopy(model), state, (images[rows],))
        value = F.cross_entropy(output, labels[rows])
        gradients = torch.autograd.grad(value, list(state.values()), create_graph=True)
        state = {
            name: each - lr * gradient
            for (name, each), gradient in zip(state.items(), gradients, strict=True)
        }
    return torch.cat([each.flatten() for each in state.values()])


@pytest.mark.parametrize("budget", [0, 10**9])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_through_it(name, budget, device):
    model, images, labels, batches, lr = make(name, device)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    theta_0 = flatten_parameters(model).requires_grad_()
    actual = unroll_sgd(model, theta_0, images, labels, batches, lr=lr, memory_budget=budget)
    expected = by_name(model, theta_0, images, labels, batches, lr)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    assert_same_gradients(actual, expected, [theta_0, images, lr])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("batched", [False, True], ids=["as the device does", "batched"])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ONE_AT_A_TIME])
def test_trajectories_through_it(name, batched, device, monkeypatch):
    if batched:  # as on a GPU
        monkeypatch.setattr(StepLoss, "_one_after_another", StepLoss._side_by_side)
    model, images, labels, batches, lr = make(name, device)
    theta_0 = flatten_parameters(model)
    starts = torch.stack([theta_0, 0.8 * theta_0]).requires_grad_()
    actual = unroll_sgd(model, starts, images, labels, batches, lr=lr)
    expected = torch.stack([by_name(model, each, images, labels, batches, lr) for each in starts])
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    leaves = [starts, images, lr]
    for ours, theirs in zip(
        torch.autograd.grad(actual.sin().sum(), leaves),
        torch.autograd.grad(expected.sin().sum(), leaves),
        strict=True,
    ):
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm()


@pytest.mark.parametrize(("name", "message"), ONE_AT_A_TIME.items())
def test_what_vmap_cannot_do_is_an_error(name, message, device, monkeypatch):
    monkeypatch.setattr(StepLoss, "_one_after_another", StepLoss._side_by_side)  # as on a GPU
    model, images, labels, batches, lr = make(name, device)
    starts = flatten_parameters(model).expand(2, -1)
    with pytest.raises(RuntimeError, match=message):
        unroll_sgd(model, starts, images, labels, batches, lr=lr)


@pytest.mark.parametrize("norm", [nn.GroupNorm(16, 16), nn.InstanceNorm2d(16, affine=True)])
@pytest.mark.parametrize("padding", ["same", 1])
def test_one_image_through_the_norms_of_pytorch(norm, padding, device):
    """On a CPU their backward of one channels-last image reads beyond its gradient, or is wrong."""
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=padding, bias=False),
        copy.deepcopy(norm),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 3),
    ).to(device, torch.float64)
    images = torch.randn(3, 4, 2, 5, dtype=torch.float64, device=device, requires_grad=True)
    labels = torch.arange(3, device=device)
    batches = torch.tensor([[0], [2], [1]], device=device)
    lr = torch.tensor(0.1, dtype=torch.float64, device=device, requires_grad=True)
    theta_0 = flatten_parameters(model).requires_grad_()
    actual = unroll_sgd(model, theta_0, images, labels, batches, lr=lr)
    expected = by_name(model, theta_0, images, labels, batches, lr)
    assert_same_gradients(actual, expected, [theta_0, images, lr])


class Checkpointed(nn.Module):
    """PyTorch runs its body again in the backward, when the parameters are no longer those of θ."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)

    def forward(self, images):
        return self.head(checkpoint(self.body, images, use_reentrant=False))


@pytest.mark.parametrize("budget", [0, 10**9])
def test_a_model_that_is_run_again_in_the_backward_is_refused(budget, device):
    model = Checkpointed().to(device, torch.float64)
    _, images, labels, batches, lr = make("BatchNorm", device)
    with pytest.raises(
        RuntimeError, match="Sequential is run again in the backward pass, as torch"
    ):
        unroll_sgd(
            model, flatten_parameters(model), images, labels, batches, lr=lr, memory_budget=budget
        )
    assert not any(module._forward_pre_hooks for module in model.modules())
