"""Truncated back-propagation through Adam as its definition has it, for RaT-BPTT and AT-BPTT."""

import tiny
import torch
import torch.nn.functional as F


def make_set(data):
    """With soft labels, which are learned."""
    images, labels = tiny.make_set(data)
    labels = F.one_hot(labels, 3) * 0.7 + 0.1
    return images, labels.double().requires_grad_()


def naive_adam(call, theta, image_syn, label_syn, batches, window):
    """Adam, as Kingma and Ba write it, with create_graph in the last steps.

    ε stands after the bias correction, as in torch.optim.Adam. The published code has it so before
    the window alone: within, its library `higher` adds ε to the root of the uncorrected moment.
    """
    first = second = torch.zeros_like(theta)
    for step, rows in enumerate(batches, start=1):
        if step == len(batches) - window + 1:
            theta, first, second = theta.detach(), first.detach(), second.detach()
        if not theta.requires_grad:
            theta = theta.requires_grad_()
        loss = F.cross_entropy(call(theta, image_syn[rows]), label_syn[rows])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        # Where every gradient was 0 the root has no derivative; the clamp sends 0, not NaN.
        root = (second.clamp(min=1e-300) / (1 - 0.999**step)).sqrt()
        theta = theta - 0.01 * first / (1 - 0.9**step) / (root + 1e-8)
    return theta
