"""Small inner trainings for the adjoints: smooth functions with random Hessians, in float64."""

from typing import NamedTuple

import torch


class Training(NamedTuple):
    """T steps down functions ℓ_t(θ) of their own."""

    matrices: torch.Tensor  # (T, P, P)
    theta: torch.Tensor  # (P,)
    lr: torch.Tensor  # (T,) or (P,)

    @property
    def num_steps(self):
        return len(self.matrices)

    def step_size(self, step):
        return self.lr[step] if self.lr.numel() == self.num_steps else self.lr

    def gradient(self, step, theta):
        """∇ℓ_t with its graph, of ℓ_t(θ) = Σ log cosh(A_t θ)."""
        return self.matrices[step].T @ torch.tanh(self.matrices[step] @ theta)

    def linearize(self, step, theta):
        """∇ℓ_t and the function that multiplies by its Hessian."""
        theta = theta.detach().requires_grad_()
        with torch.enable_grad():
            gradient = self.gradient(step, theta)
        return gradient.detach(), lambda cotangent: torch.autograd.grad(gradient, theta, cotangent)


def make_training(lr_per_parameter, device, num_steps=5, size=12):
    def random(*shape):
        return torch.randn(shape, dtype=torch.float64, device=device)

    lr = 0.05 + 0.1 * torch.rand(size if lr_per_parameter else num_steps, device=device).double()
    return Training(random(num_steps, size, size) / size**0.5, random(size), lr)
