"""CONTRIBUTING's optimiser of the unroll: four members in plain PyTorch give exact gradients."""

import torch
import torch.nn.functional as F
from torch import nn

from mim4dd import flatten_parameters
from mim4dd._unroll.functional import FunctionalModel
from mim4dd._unroll.optimizers import Seed
from mim4dd.unroll import _unroll


def u(gradient):
    return gradient + 0.5 * gradient**3


class Cubic:
    """θ' = θ − η u(g)."""

    num_moments = 0

    def start(self, theta):
        return (theta,)

    def step(self, number, state, gradient, lr):
        return (state[0] - lr * u(gradient),)

    def step_back(self, adjoint, product, step):
        a = adjoint[0] if product is None else adjoint[0] + product
        slope = 1 + 1.5 * step.gradient**2
        seed = Seed(-step.lr * a * slope, -(a * u(step.gradient)).sum(), (a * a).sum())
        return (a,), seed


def test_an_optimiser_as_contributing_describes_it_is_exact():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    theta_0 = flatten_parameters(model).requires_grad_()
    image_syn = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    label_syn, batches = torch.randint(3, (8,)), torch.randint(8, (6, 4))
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    call, leaves = FunctionalModel(model), [theta_0, image_syn, lr]
    actual = _unroll(
        Cubic(), call, theta_0, image_syn, label_syn, batches, lr, loss=F.cross_entropy,
        augment=None, seed=0, window=None, tesla=False, memory_budget=0, history="device",
        step_graphs=None, diagnostics=None,
    )  # fmt: skip
    theta = theta_0
    for rows in batches:
        loss = F.cross_entropy(call(theta, image_syn[rows]), label_syn[rows])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - lr * u(gradient)
    torch.testing.assert_close(actual, theta)
    of_actual, of_loop = (
        torch.autograd.grad(value.square().sum(), leaves) for value in (actual, theta)
    )
    torch.testing.assert_close(of_actual, of_loop)
