"""trajectory_loss with the gradient of theta_T: one pass for each, against plain PyTorch."""

import torch
from flat import CASES, assert_all_no_worse, double  # noqa: F401

from mim4dd import reference, trajectory_loss

PROVIDERS = {"mim4dd": trajectory_loss, "torch": reference.trajectory_loss}


def loss_and_gradient(loss, theta_T, *others):
    theta_T = theta_T.detach().requires_grad_()
    value = loss(theta_T, *others)
    return value.detach(), *torch.autograd.grad(value, theta_T)


def bench_trajectory_loss(case, provider, device, measure):
    inputs = torch.randn(3, case.num_parameters, device=device).unbind()
    plain = loss_and_gradient(reference.trajectory_loss, *inputs)
    exact = loss_and_gradient(reference.trajectory_loss, *double(inputs))
    measure(
        lambda: loss_and_gradient(PROVIDERS[provider], *inputs),
        lambda actual: assert_all_no_worse(actual, plain, exact),
        moved_bytes=6 * inputs[0].nbytes,  # three reads; then two and a write
    )
