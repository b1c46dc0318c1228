"""unroll_sgd on the field's ConvNet, against the graph of all steps that it replaces."""

from functools import cache
from typing import NamedTuple

import torch

from mim4dd import flatten_parameters, reference, unroll_sgd
from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.networks import ConvNet


class Case(NamedTuple):
    num_steps: int
    width: int
    depth: int
    image_size: int
    batch: int = 10

    def __str__(self) -> str:
        size = f"{self.image_size}x{self.image_size}"
        return f"T={self.num_steps} ConvNet-{self.depth} width={self.width} {size} B={self.batch}"


CASES = {
    "tiny": [Case(2, 4, 2, 8)],
    "full": [Case(num_steps, 128, 3, 32) for num_steps in (5, 10, 40)],
}


def kept(model, *inputs, lr):
    return unroll_sgd(model, *inputs, lr=lr, memory_budget=8 * 2**30)


def graph(model, *inputs, lr):
    return reference.unroll_sgd(FunctionalModel(model), *inputs, lr)


PROVIDERS = {"mim4dd": unroll_sgd, "mim4dd, all kept": kept, "graph": graph}


def gradients(provider, model, theta_0, image_syn, lr, labels, batches):
    """Gradients of images, step size and θ_0 through the distance to where θ would not move."""
    theta_T = provider(model, theta_0, image_syn, labels, batches, lr=lr)
    loss = (theta_T - theta_0.detach()).square().sum()
    return torch.autograd.grad(loss, (image_syn, lr, theta_0))


@cache
def problem(case, device):
    """Inputs in float32, with the gradients in float64 and how far the plain graph is from them."""
    torch.manual_seed(0)
    model = ConvNet(10, 3, case.width, case.depth, case.image_size).to(device)
    images = torch.randn(case.batch, 3, case.image_size, case.image_size, device=device)
    labels = torch.arange(case.batch, device=device) % 10
    batches = torch.arange(case.batch, device=device).expand(case.num_steps, -1)
    lr = torch.tensor(0.01, device=device)
    leaves = [tensor.requires_grad_() for tensor in (flatten_parameters(model), images, lr)]
    doubles = [tensor.detach().double().requires_grad_() for tensor in leaves]
    exact = gradients(graph, model.double(), *doubles, labels, batches)
    plain = gradients(graph, model.float(), *leaves, labels, batches)
    return model, leaves, labels, batches, exact, relative_errors(plain, exact)


def relative_errors(actual, exact):
    return [
        float((ours - truth).norm() / truth.norm())
        for ours, truth in zip(actual, exact, strict=True)
    ]


def bench_unroll_sgd(case, provider, device, measure):
    model, leaves, labels, batches, exact, plain_errors = problem(case, device)

    def check(actual):
        # A ReLU on the other side of its kink in float32 moves a gradient by chance, in the plain
        # graph as in ours: a factor of two tells that from a dropped term.
        for error, plain in zip(relative_errors(actual, exact), plain_errors, strict=True):
            assert error <= 2 * plain + 1e-5, f"relative error {error:.1e}, plain {plain:.1e}"

    measure(lambda: gradients(PROVIDERS[provider], model, *leaves, labels, batches), check)
