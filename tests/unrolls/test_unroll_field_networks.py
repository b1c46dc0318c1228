"""The field's networks in an unroll: the gradients of the naive graph, fused and under DSA too."""

import copy

import pytest
import torch
import torch.nn.functional as F
from field_networks import CLASSES, NETWORKS

from mim4dd import flatten_parameters, fuse, reference, unroll_sgd
from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.training.augment import FAMILIES, Augmentation

RELATIVE_ERROR = 1e-9
FUSED = [  # those with a norm, a ReLU and perhaps an average pooling in one Sequential
    name
    for name in NETWORKS
    if name.startswith(("VGG", "ConvNet", "AlexNet of"))
    and not name.endswith(("BN", "LN", "NN", "AS", "AL", "Swish"))
]


def make(name, device):
    """The network, θ_0, images, labels and step size."""
    model = NETWORKS[name].build().to(device, torch.float64)
    for module in model.modules():  # else all of so few units may be dead
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and module.bias is not None:
            torch.nn.init.constant_(module.bias, 0.5)
    size = NETWORKS[name].size
    images = torch.randn(3, 3, size, size, dtype=torch.float64, device=device, requires_grad=True)
    lr = torch.tensor(0.02, dtype=torch.float64, device=device, requires_grad=True)
    labels = torch.arange(3, device=device) % CLASSES
    return model, flatten_parameters(model).requires_grad_(), images, labels, lr


def loss(output, labels):
    logits = output[0] if isinstance(output, tuple) else output
    return F.cross_entropy(logits, labels)


def every_family(images, generator):
    """All of DSA in one step; the last one is that which indexes around the channels."""
    for family in sorted(FAMILIES, key=lambda name: name == "crop"):
        images = Augmentation(family)(images, generator)
    return images


def step_seeds(seed, num_steps):
    """As unroll_sgd documents them."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(2**63 - 1, (num_steps,), generator=draws).tolist()


def check(name, device, fused=False, augment=None):
    """Two steps of two of three images: gradients of images, step size and start."""
    exact, theta_0, images, labels, lr = make(name, device)
    model = copy.deepcopy(exact)
    if fused:
        assert fuse(model)
    batches = torch.stack([torch.randperm(3, device=device)[:2] for _ in range(2)])

    def draws(images, step):
        generator = torch.Generator(device).manual_seed(step_seeds(7, len(batches))[step])
        return augment(images, generator)

    expected = reference.unroll_sgd(
        FunctionalModel(exact), theta_0, images, labels, batches, lr,
        loss=loss, augment=draws if augment else None,
    )  # fmt: skip
    actual = unroll_sgd(
        model, theta_0, images, labels, batches, lr=lr, loss=loss, augment=augment, seed=7
    )
    weights = torch.randn_like(theta_0)
    leaves = [theta_0, images, lr]
    for ours, theirs in zip(
        torch.autograd.grad((weights * actual.sin()).sum(), leaves),
        torch.autograd.grad((weights * expected.sin()).sum(), leaves),
        strict=True,
    ):
        assert theirs.norm() > 0
        assert (ours - theirs).norm() <= RELATIVE_ERROR * theirs.norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_as_it_is(name, device):
    check(name, device)


@pytest.mark.parametrize("name", FUSED)
def test_fused(name, device):
    check(name, device, fused=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_under_dsa(name, device):
    check(name, device, fused=name in FUSED, augment=every_family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["MLP", "LeNet", "ConvNet", "ConvNetBN"])
def test_under_one_family(name, family, device):
    check(name, device, augment=Augmentation(family))


def test_fused_are_all_that_can_be():
    assert [name for name in NETWORKS if fuse(NETWORKS[name].build())] == FUSED
