"""unroll_sgd beyond the plain recursion: trajectories, step sizes, history, window, TESLA."""

import gc

import pytest
import torch
import torch.nn.functional as F
from peak_memory import peak_memory
from torch import nn
from unrolls.test_unroll import (
    assert_same_gradients,
    make_inputs,
    make_model,
    naive_sgd,
    terminal_loss,
)

from mim4dd import UnrollDiagnostics, flatten_parameters, unroll_sgd
from mim4dd._unroll.functional import FunctionalModel
from mim4dd._unroll.step_gradient import StepLoss
from mim4dd.distill.networks import ConvNet

MOMENTUM = {"momentum": 0.9, "weight_decay": 0.02, "nesterov": True}


def jitter(images, generator):
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype, device=images.device)
    return images * (0.5 + noise)


def naive_table(model, theta, images, labels, batches, lr, momentum, weight_decay, nesterov):
    """The graph of all steps with a step size (T, P), and a batch for each."""
    velocity = torch.zeros_like(theta)
    for rows, step_size in zip(batches, lr, strict=True):
        value = F.cross_entropy(FunctionalModel(model)(theta, images[rows]), labels[rows])
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        gradient = gradient + weight_decay * theta
        velocity = momentum * velocity + gradient
        theta = theta - step_size * (gradient + momentum * velocity if nesterov else velocity)
    return theta


def spread(lr, model):
    """A table (rows, 1 | L | P) as (rows, P)."""
    sizes = torch.tensor([parameter.numel() for parameter in model.parameters()])
    if lr.shape[1] == len(sizes):
        return lr.repeat_interleave(sizes.to(lr.device), dim=1)
    return lr.expand(-1, int(sizes.sum()))


@pytest.mark.parametrize("options", [{}, MOMENTUM], ids=["plain", "nesterov"])
@pytest.mark.parametrize("columns", ["1", "L", "P"])
@pytest.mark.parametrize("rows", ["1", "T"])
@pytest.mark.parametrize("budget", [0, 10**9])
def test_step_sizes_by_step_and_parameter(rows, columns, options, budget, device):
    model, theta_0, image_syn, label_syn, batches, _ = make_inputs(device, 4)
    shape = ({"1": 1, "T": 4}[rows], {"1": 1, "L": 4, "P": theta_0.numel()}[columns])
    if columns == "L":
        shape = (shape[0], len(list(model.parameters())))
    lr = (0.05 + 0.1 * torch.rand(shape, dtype=torch.float64, device=device)).requires_grad_()
    table = spread(lr, model).expand(4, -1)
    zeros = {"momentum": 0.0, "weight_decay": 0.0, "nesterov": False}
    expected = naive_table(
        model, theta_0, image_syn, label_syn, batches, table, **(zeros | options)
    )
    actual = unroll_sgd(
        model, theta_0, image_syn, label_syn, batches, lr=lr, memory_budget=budget, **options
    )
    assert_same_gradients(actual, expected, [theta_0, image_syn, lr])


def test_an_ambiguous_step_size_is_refused(device):
    model, theta_0, image_syn, label_syn, batches, _ = make_inputs(device, 6)
    six = torch.full((6,), 0.1, dtype=torch.float64, device=device)  # 6 steps, 6 tensors
    assert len(list(model.parameters())) == 6
    with pytest.raises(ValueError, match=r"ambiguous with T = 6 steps, L = 6"):
        unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=six)
    unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=six[:, None])


@pytest.mark.parametrize("own_batches", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("augment", [None, jitter], ids=["plain", "augmented"])
@pytest.mark.parametrize("options", [{}, MOMENTUM], ids=["sgd", "nesterov"])
@pytest.mark.parametrize("budget", [0, 10**9])
@pytest.mark.parametrize("batched", [False, True], ids=["as the device does", "batched"])
def test_trajectories_side_by_side(
    own_batches, augment, options, budget, batched, device, monkeypatch
):
    """K at once give what K calls give, and their gradients add up."""
    if batched:  # as on a GPU
        monkeypatch.setattr(StepLoss, "_one_after_another", StepLoss._side_by_side)
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 4, 3, soft=True)
    starts = torch.stack([theta_0.detach() * scale for scale in (1.0, 0.7, 1.2)]).requires_grad_()
    if own_batches:
        batches = torch.randint(6, (4, 3, 3), device=device)
        augment = None  # draws differ where the samples of a call do
    leaves = [starts, image_syn, label_syn, lr]

    def unroll(theta, batches):
        return unroll_sgd(
            model, theta, image_syn, label_syn, batches,
            lr=lr, augment=augment, memory_budget=budget, **options,
        )  # fmt: skip

    actual = unroll(starts, batches)
    expected = torch.stack(
        [unroll(start, batches[:, k] if own_batches else batches) for k, start in enumerate(starts)]
    )
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    weights = torch.rand_like(actual)
    gradients = torch.autograd.grad((weights * actual.sin()).sum(), leaves)
    for ours, theirs in zip(
        gradients, torch.autograd.grad((weights * expected.sin()).sum(), leaves), strict=True
    ):
        assert (ours - theirs).norm() <= 1e-11 * theirs.norm()


@pytest.mark.parametrize("history", ["host", "checkpoints"])
@pytest.mark.parametrize("budget", [0, 400_000, 10**9])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 10])
def test_history_changes_no_bit(history, budget, num_steps, device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, num_steps, 4)
    leaves = [theta_0, image_syn, lr]

    def gradients(**options):
        theta_T = unroll_sgd(
            model, theta_0, image_syn, label_syn, batches, lr=lr, augment=jitter, **MOMENTUM,
            **options,
        )  # fmt: skip
        return torch.autograd.grad(terminal_loss(theta_T), leaves)

    # With its graph, a gradient is computed by other kernels than without: the same budget.
    expected = gradients(memory_budget=budget)
    for ours, theirs in zip(
        gradients(history=history, memory_budget=budget), expected, strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("history", ["device", "checkpoints"])
@pytest.mark.parametrize("budget", [0, 10**9])
@pytest.mark.parametrize("options", [{}, MOMENTUM], ids=["plain", "nesterov"])
def test_a_window_is_the_exact_gradient_from_a_constant(history, budget, options, device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 6)
    theta_0 = theta_0.detach()
    actual = unroll_sgd(
        model, theta_0, image_syn, label_syn, batches,
        lr=lr, window=4, history=history, memory_budget=budget, **options,
    )  # fmt: skip
    zeros = {"momentum": 0.0, "weight_decay": 0.0, "nesterov": False}
    table = lr.expand(6, theta_0.numel())
    options = zeros | options
    velocity = torch.zeros_like(theta_0)
    theta = theta_0.requires_grad_()
    for step, rows in enumerate(batches):
        if step == 2:
            theta, velocity = theta.detach().requires_grad_(), velocity.detach()
            image_leaf, lr_leaf = image_syn, lr
        value = F.cross_entropy(FunctionalModel(model)(theta, image_syn[rows]), label_syn[rows])
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        gradient = gradient + options["weight_decay"] * theta
        velocity = options["momentum"] * velocity + gradient
        use = gradient + options["momentum"] * velocity if options["nesterov"] else velocity
        theta = theta - table[step] * use
    assert_same_gradients(actual, theta, [image_leaf, lr_leaf])


def test_tesla_is_the_recursion_without_its_hessians(device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 5, 4)
    call = FunctionalModel(model)
    theta_T = unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=lr, method="tesla")
    gradients = torch.autograd.grad(terminal_loss(theta_T), [image_syn, lr])
    # As in the paper's code: the sum of the gradients, each a function of its images alone.
    theta, steps = theta_0.detach().requires_grad_(), []
    for rows in batches:
        value = F.cross_entropy(call(theta, image_syn[rows]), label_syn[rows])
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        steps.append(gradient)
        theta = (theta - lr * gradient).detach().requires_grad_()
    end = (theta_0.detach() - lr * sum(steps)).detach().requires_grad_()
    (lambda_T,) = torch.autograd.grad(terminal_loss(end), end)
    images = torch.autograd.grad(sum(steps), image_syn, -lr * lambda_T, retain_graph=True)[0]
    torch.testing.assert_close(gradients, (images, -lambda_T @ sum(steps)))
    exact = naive_sgd(model, theta_0, image_syn, label_syn, batches, lr)
    (exact_images,) = torch.autograd.grad(terminal_loss(exact), image_syn)
    assert (images - exact_images).norm() > 1e-4 * exact_images.norm()


def test_diagnostics_are_losses_and_norms(device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 4)
    diagnostics = UnrollDiagnostics()
    theta_T = unroll_sgd(
        model, theta_0, image_syn, label_syn, batches, lr=lr, diagnostics=diagnostics
    )
    call = FunctionalModel(model)
    first = F.cross_entropy(call(theta_0, image_syn[batches[0]]), label_syn[batches[0]])
    torch.testing.assert_close(diagnostics.losses[0], first.detach())
    assert diagnostics.losses.shape == (4,)
    theta_T.retain_grad()
    terminal_loss(theta_T).backward()
    assert diagnostics.adjoint_norms.shape == (4,)
    torch.testing.assert_close(diagnostics.adjoint_norms[-1], theta_T.grad.norm())
    inputs = (image_syn, label_syn, batches[:1], lr)
    theta_1 = naive_sgd(model, theta_0.detach().requires_grad_(), *inputs).detach().requires_grad_()
    rest = naive_sgd(model, theta_1, image_syn, label_syn, batches[1:], lr)
    (lambda_1,) = torch.autograd.grad(terminal_loss(rest), theta_1)
    torch.testing.assert_close(diagnostics.adjoint_norms[0], lambda_1.norm())


class Drifting(nn.Module):
    """Writes into its own parameters, as some spectral norms do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(36, 3)

    def forward(self, images):
        output = self.linear(images.flatten(1)).square()
        with torch.no_grad():
            self.linear.bias.mul_(0.9)
        return output


def test_a_model_that_changes_its_parameters_is_refused(device):
    model = Drifting().to(device, torch.float64)
    _, _, image_syn, label_syn, batches, lr = make_inputs(device, 3)
    with pytest.raises(RuntimeError, match="changes its parameters in place"):
        unroll_sgd(model, flatten_parameters(model), image_syn, label_syn, batches, lr=lr)


def test_frozen_parameters_are_constants(device):
    model = make_model(device)
    model[0].requires_grad_(False)
    theta_0 = flatten_parameters(model).requires_grad_()
    assert theta_0.numel() == sum(p.numel() for p in model[1:].parameters())
    _, _, image_syn, label_syn, batches, lr = make_inputs(device, 3)
    inputs = (theta_0, image_syn, label_syn, batches)
    actual = unroll_sgd(model, *inputs, lr=lr)
    assert_same_gradients(actual, naive_sgd(model, *inputs, lr), [theta_0, image_syn, lr])


def test_batch_norm_reads_its_buffers_and_leaves_them(device):
    """By the batch in train mode, by the running statistics in eval mode; K at once too."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(64, 3)
    ).to(device, torch.float64)
    model[1].running_mean.fill_(0.3)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    _, _, image_syn, label_syn, batches, lr = make_inputs(device, 3)
    theta_0 = flatten_parameters(model)
    found = []
    for mode in (True, False):
        model.train(mode)
        one = unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=lr)
        expected = naive_sgd(model, theta_0.requires_grad_(), image_syn, label_syn, batches, lr)
        assert_same_gradients(one, expected, [image_syn, lr])
        two = unroll_sgd(
            model, theta_0.detach().expand(2, -1), image_syn, label_syn, batches, lr=lr
        )
        torch.testing.assert_close(two, one.expand(2, -1), rtol=1e-12, atol=1e-14)
        found.append(one.detach())
    assert not torch.allclose(*found)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("history", ["device", "checkpoints"])
def test_memory_does_not_grow_with_the_number_of_steps(history, device):
    """Beyond the stored θ_t; with checkpoints there are about 2 √T of those at once."""
    model = ConvNet(10, width=32).to(device)
    theta_0 = flatten_parameters(model)
    image_syn = torch.randn(10, 3, 32, 32, device=device, requires_grad=True)
    labels = torch.arange(10, device=device)

    def peak(num_steps):
        batches = labels.expand(num_steps, 10)

        def run():
            theta_T = unroll_sgd(
                model, theta_0, image_syn, labels, batches, lr=0.01, history=history
            )
            torch.autograd.grad(theta_T.square().sum(), image_syn)

        run()
        stored = num_steps if history == "device" else 2 * num_steps**0.5
        return peak_memory(run, device) - stored * theta_0.nbytes

    assert peak(50) <= 1.15 * peak(5)


def test_kept_steps_are_freed_without_a_backward(device):
    """Saved outputs must not hold their own graph, which no garbage collector would see."""
    inputs = make_inputs(device, 3)
    *tensors, lr = inputs

    def alive():
        gc.collect()
        return sum(type(each) is torch.Tensor for each in gc.get_objects())

    unroll_sgd(*tensors, lr=lr, memory_budget=10**9)
    before = alive()
    for _ in range(3):
        unroll_sgd(*tensors, lr=lr, memory_budget=10**9)
    assert alive() <= before


def test_without_grad_mode_no_state_waits(device):
    model = nn.Linear(1000, 3).to(device)
    theta_0 = flatten_parameters(model).requires_grad_()
    images = torch.randn(4, 1000, device=device)
    labels = torch.arange(4, device=device) % 3
    batches = labels.expand(50, -1) % 3

    def run():
        with torch.no_grad():
            unroll_sgd(model, theta_0, images, labels, batches, lr=0.01, memory_budget=10**9)

    assert peak_memory(run, device) < 15 * theta_0.nbytes
