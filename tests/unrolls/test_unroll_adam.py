"""unroll_adam: the steps of torch.optim, and exact gradients through them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from unrolls import test_unroll
from unrolls.test_unroll import terminal_loss

from mim4dd import flatten_parameters, reference, unroll_adam
from mim4dd._unroll.functional import FunctionalModel

OPTIONS = {
    "adam": {},
    "with decay": {"weight_decay": 0.02, "betas": (0.8, 0.95), "eps": 1e-3},
    "adamw": {"weight_decay": 0.02, "decoupled": True, "eps_root": 1e-6},
}


def make_inputs(device, num_steps, batch=6, **options):
    """Without a norm: before one a bias has no gradient but rounding, which Adam scales up."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Softplus(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).to(device, torch.float64)
    _, _, *inputs = test_unroll.make_inputs(device, num_steps, batch, **options)
    return model, flatten_parameters(model).requires_grad_(), *inputs


def naive_adam(
    model, theta, images, labels, batches, lr,
    betas=(0.9, 0.999), eps=1e-8, eps_root=0.0, weight_decay=0.0, decoupled=False,
):  # fmt: skip
    """The graph of all T steps."""
    call, mean, square = FunctionalModel(model), torch.zeros_like(theta), torch.zeros_like(theta)
    for step, rows in enumerate(batches):
        value = F.cross_entropy(call(theta, images[rows]), labels[rows])
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        theta, mean, square = reference.adam_step(
            theta, gradient, mean, square, lr[step] if lr.dim() else lr, step + 1,
            *betas, eps, eps_root, weight_decay, decoupled,
        )  # fmt: skip
    return theta


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("history", ["device", "checkpoints"])
@pytest.mark.parametrize("budget", [0, 10**9])
@pytest.mark.parametrize("lr_shape", ["scalar", "per step"])
def test_gradients_match_the_naive_graph(options, history, budget, lr_shape, device):
    inputs = make_inputs(device, 7, 4, soft=True, lr_shape=lr_shape)
    model, theta_0, image_syn, label_syn, batches, lr = inputs
    leaves = [theta_0, image_syn, label_syn, lr]
    actual = unroll_adam(
        model, theta_0, image_syn, label_syn, batches,
        lr=lr, history=history, memory_budget=budget, **options,
    )  # fmt: skip
    expected = naive_adam(*inputs, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    for ours, exact in zip(
        torch.autograd.grad(terminal_loss(actual), leaves),
        torch.autograd.grad(terminal_loss(expected), leaves),
        strict=True,
    ):
        assert (ours - exact).norm() <= 1e-9 * exact.norm()


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_steps_are_those_of_torch_optim(decoupled, device):
    model, theta_0, image_syn, label_syn, batches, _ = make_inputs(device, 5, 4)
    theta_T = unroll_adam(
        model, theta_0, image_syn, label_syn, batches,
        lr=0.01, weight_decay=0.1, decoupled=decoupled,
    )  # fmt: skip
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = kind(model.parameters(), 0.01, weight_decay=0.1)
    for rows in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(image_syn.detach()[rows]), label_syn[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(theta_T, flatten_parameters(model), rtol=1e-10, atol=1e-12)


def test_a_parameter_that_never_gets_a_gradient_gives_no_nan(device):
    """A dead unit: its moments stay 0, where the square root has no derivative."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 3)).to(
        device, torch.float64
    )
    with torch.no_grad():
        model[1].bias[0] = -1e6
    _, _, image_syn, label_syn, batches, lr = make_inputs(device, 4)
    theta_0 = flatten_parameters(model).requires_grad_()
    theta_T = unroll_adam(model, theta_0, image_syn, label_syn, batches, lr=lr)
    for gradient in torch.autograd.grad(terminal_loss(theta_T), [theta_0, image_syn, lr]):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_trajectories_side_by_side(device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 4, 3)
    starts = torch.stack([theta_0.detach(), 0.7 * theta_0.detach()]).requires_grad_()
    inputs = (image_syn, label_syn, batches)
    actual = unroll_adam(model, starts, *inputs, lr=lr)
    expected = torch.stack([unroll_adam(model, start, *inputs, lr=lr) for start in starts])
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
    weights = torch.rand_like(actual)
    torch.testing.assert_close(
        torch.autograd.grad((weights * actual).sum(), [starts, image_syn, lr]),
        torch.autograd.grad((weights * expected).sum(), [starts, image_syn, lr]),
        rtol=1e-7,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": (1.0, 0.9)}, r"betas\[0\] must lie in \[0, 1\)"),
        ({"betas": (0.9, -0.1)}, r"betas\[1\] must lie in"),
        ({"eps": -1.0}, r"eps must lie in"),
        ({"eps_root": -1.0}, r"eps_root must lie in"),
        ({"weight_decay": -1.0}, r"weight_decay must lie in"),
    ],
)
def test_bad_input(change, message):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs("cpu", 2)
    with pytest.raises(ValueError, match=message):
        unroll_adam(model, theta_0, image_syn, label_syn, batches, lr=lr, **change)
