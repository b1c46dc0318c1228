"""Weight decay by parameter tensor, and torch.optim.SGD's parameter groups as options."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from unrolls.test_unroll import (
    assert_same_gradients,
    jitter,
    make_inputs,
    make_model,
    naive_sgd,
    step_draws,
    terminal_loss,
)
from unrolls.test_unroll_options import naive_table, spread

from mim4dd import UnrollDiagnostics, flatten_parameters, unroll_sgd
from mim4dd.adapters.torch_optim import sgd_options

DECAYS = [0.0, 0.3, 0.05, 0.0, 0.2, 0.01]
PLAIN = {"momentum": 0.0, "nesterov": False}
MOMENTUM = {"momentum": 0.9, "nesterov": False}
NESTEROV = {"momentum": 0.9, "nesterov": True}


def by_parameter(decays, model):
    """(P,)"""
    return torch.cat(
        [torch.full_like(p, w).flatten() for p, w in zip(model.parameters(), decays, strict=True)]
    ).detach()


@pytest.mark.parametrize("options", [PLAIN, MOMENTUM, NESTEROV], ids=["sgd", "heavy", "nesterov"])
@pytest.mark.parametrize("history", ["device", "checkpoints"])
@pytest.mark.parametrize("budget", [0, 400_000, 10**9])
@pytest.mark.parametrize("num_steps", [1, 7])
def test_decay_by_tensor_is_the_naive_graph(num_steps, budget, history, options, device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, num_steps, 4, soft=True)
    table = lr.expand(num_steps, theta_0.numel())
    expected = naive_table(
        model, theta_0, image_syn, label_syn, batches, table,
        weight_decay=by_parameter(DECAYS, model), **options,
    )  # fmt: skip
    actual = unroll_sgd(
        model, theta_0, image_syn, label_syn, batches, lr=lr, weight_decay=DECAYS,
        memory_budget=budget, history=history, **options,
    )  # fmt: skip
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    assert_same_gradients(actual, expected, [theta_0, image_syn, label_syn, lr])


def test_decay_by_tensor_under_augmentation_and_step_sizes(device):
    model, theta_0, image_syn, label_syn, batches, _ = make_inputs(device, 5, 4)
    lr = torch.rand(theta_0.shape, dtype=torch.float64, device=device).mul_(0.1).requires_grad_()
    actual = unroll_sgd(
        model, theta_0, image_syn, label_syn, batches, lr=lr, weight_decay=DECAYS, augment=jitter,
        seed=3,
    )  # fmt: skip
    expected = naive_sgd(
        model, theta_0, image_syn, label_syn, batches, lr,
        weight_decay=by_parameter(DECAYS, model), augment=step_draws(3, 5),
    )  # fmt: skip
    assert_same_gradients(actual, expected, [theta_0, image_syn, lr])


def test_decay_by_tensor_matches_central_differences(device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 3, 4)

    def loss(theta_0, image_syn, lr):
        theta_T = unroll_sgd(
            model, theta_0, image_syn, label_syn, batches, lr=lr, weight_decay=DECAYS, **NESTEROV
        )
        return terminal_loss(theta_T)

    leaves = (theta_0, image_syn, lr)
    assert torch.autograd.gradcheck(loss, leaves, eps=1e-5, atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("options", [PLAIN, NESTEROV], ids=["sgd", "nesterov"])
def test_decay_by_tensor_of_trajectories_and_a_window(options, device):
    """Of K rows at once what each has alone; and λ of the window is λ of all steps, its end."""
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 5, 4)
    starts = torch.stack([theta_0.detach(), 0.7 * theta_0.detach()])

    def norms_and_gradients(theta_0, window):
        diagnostics = UnrollDiagnostics()
        theta_T = unroll_sgd(
            model, theta_0, image_syn, label_syn, batches, lr=lr, weight_decay=DECAYS,
            window=window, diagnostics=diagnostics, **options,
        )  # fmt: skip
        gradients = torch.autograd.grad(theta_T.sin().sum(), [image_syn, lr])
        return diagnostics.adjoint_norms, gradients

    norms, gradients = norms_and_gradients(starts, None)
    alone = [norms_and_gradients(start, None) for start in starts]
    torch.testing.assert_close(norms, torch.stack([each[0] for each in alone], dim=1))
    sums = tuple(sum(each) for each in zip(alone[0][1], alone[1][1], strict=True))
    torch.testing.assert_close(gradients, sums)
    windowed, _ = norms_and_gradients(starts, 3)
    torch.testing.assert_close(windowed[1:], norms[3:])


def test_equal_decays_are_one_decay(device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 3)
    inputs = (model, theta_0, image_syn, label_syn, batches)
    one = unroll_sgd(*inputs, lr=lr, weight_decay=0.1)
    assert torch.equal(unroll_sgd(*inputs, lr=lr, weight_decay=[0.1] * 6), one)
    plain = unroll_sgd(*inputs, lr=lr, method="tesla")
    assert torch.equal(unroll_sgd(*inputs, lr=lr, method="tesla", weight_decay=[0.0] * 6), plain)


def test_frozen_parameters_have_no_decay(device):
    model = make_model(device)
    model[1].requires_grad_(False)
    _, _, image_syn, label_syn, batches, lr = make_inputs(device, 3)
    decays = [0.1, 0.0, 0.3, 0.2]  # of the convolution and the linear map
    optimizer = torch.optim.SGD(
        [
            {"params": parameter, "weight_decay": decay}
            for parameter, decay in zip(
                [*model[0].parameters(), *model[5].parameters()], decays, strict=True
            )
        ],
        lr=lr.item(),
    )
    theta_T = unroll_sgd(
        model, flatten_parameters(model), image_syn, label_syn, batches, lr=lr, weight_decay=decays
    )
    train(model, optimizer, image_syn.detach(), label_syn, batches)
    torch.testing.assert_close(theta_T, flatten_parameters(model), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("decay", "error", "message"),
    [
        ([0.1] * 5, ValueError, "one for each of the L = 6 parameter tensors, got 5"),
        ([], ValueError, "got 0"),
        ([0.1] * 5 + [-1.0], ValueError, r"weight_decay\[5\] must lie in \[0, inf\)"),
        ([float("nan")] + [0.1] * 5, ValueError, r"weight_decay\[0\] must lie"),
        (torch.zeros(6), TypeError, "a number or a sequence of them, got Tensor"),
    ],
)
def test_a_bad_decay_is_refused(decay, error, message):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs("cpu", 2)
    with pytest.raises(error, match=message):
        unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=lr, weight_decay=decay)


def test_tesla_takes_no_decay_by_tensor():
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs("cpu", 2)
    with pytest.raises(ValueError, match="'tesla' is for plain SGD"):
        unroll_sgd(
            model, theta_0, image_syn, label_syn, batches, lr=lr, weight_decay=DECAYS,
            method="tesla",
        )  # fmt: skip


def train(model, optimizer, images, labels, batches):
    for rows in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()


def two_groups(model, **options):
    """Matrices decay; the others, listed first, do not, and have a step size of their own."""
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    groups = [{"params": vectors, "lr": 0.2}, {"params": matrices, "weight_decay": 0.3}]
    return torch.optim.SGD(groups, lr=0.07, **options)


@pytest.mark.parametrize("options", [PLAIN, MOMENTUM, NESTEROV], ids=["sgd", "heavy", "nesterov"])
def test_two_groups_are_those_of_torch_optim(options, device):
    model, theta_0, image_syn, label_syn, batches, _ = make_inputs(device, 5, 4)
    optimizer = two_groups(model, **options)
    found = sgd_options(optimizer, model)
    assert found["lr"].shape == (1, 6)
    assert found["weight_decay"] == [0.3, 0.0, 0.0, 0.0, 0.3, 0.0]
    theta_T = unroll_sgd(model, theta_0, image_syn, label_syn, batches, **found)
    train(model, optimizer, image_syn.detach(), label_syn, batches)
    torch.testing.assert_close(theta_T, flatten_parameters(model), rtol=1e-12, atol=1e-14)
    expected = naive_table(
        model, theta_0, image_syn, label_syn, batches, spread(found["lr"], model).expand(5, -1),
        weight_decay=by_parameter(found["weight_decay"], model), **options,
    )  # fmt: skip
    assert_same_gradients(theta_T, expected, [theta_0, image_syn])


def test_a_step_size_that_is_a_tensor_gets_its_gradient(device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    theta_T = unroll_sgd(
        model, theta_0, image_syn, label_syn, batches, **sgd_options(optimizer, model)
    )
    expected = naive_sgd(model, theta_0, image_syn, label_syn, batches, lr)
    assert_same_gradients(theta_T, expected, [lr, image_syn])


def test_options_are_in_the_dtype_of_the_parameters(device):
    model = make_model(device).float()
    lr = sgd_options(torch.optim.SGD(model.parameters(), lr=0.1), model)["lr"]
    assert (lr.dtype, lr.device.type) == (torch.float32, device)


def test_frozen_parameters_may_be_in_the_optimizer():
    model = make_model("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].requires_grad_(False)
    assert sgd_options(optimizer, model)["lr"].shape == (1, 4)


MODEL = make_model("cpu")
OTHER = nn.Linear(2, 2)


class Ascent(torch.optim.SGD):
    """A step of its own."""


@pytest.mark.parametrize(
    ("optimizer", "error", "message"),
    [
        (torch.optim.Adam(MODEL.parameters()), TypeError, "torch.optim.SGD, got Adam"),
        (Ascent(MODEL.parameters(), 0.1), TypeError, "torch.optim.SGD, got Ascent"),
        (two_groups(MODEL, momentum=0.9, dampening=0.1), ValueError, "dampening 0, got 0.1"),
        (two_groups(MODEL, maximize=True), ValueError, "must minimise"),
        (
            torch.optim.SGD(
                [
                    {"params": MODEL[0].parameters(), "momentum": 0.9},
                    {"params": MODEL[1].parameters()},
                    {"params": MODEL[5].parameters()},
                ],
                0.1,
            ),
            ValueError,
            r"one momentum in all groups, got 0.9 .* and 0",
        ),
        (
            torch.optim.SGD(
                [
                    {"params": MODEL[0].parameters(), "nesterov": True},
                    {"params": MODEL[1].parameters()},
                    {"params": MODEL[5].parameters()},
                ],
                0.1,
                momentum=0.9,
            ),
            ValueError,
            r"one momentum in all groups, got 0.9 \(nesterov=True\) and 0.9 \(nesterov=False\)",
        ),
        (torch.optim.SGD(MODEL[0].parameters(), 0.1), ValueError, "1.weight is not"),
        (
            torch.optim.SGD([*MODEL.parameters(), *OTHER.parameters()], 0.1),
            ValueError,
            "parameters of model alone, got 2 of another",
        ),
    ],
)
def test_what_the_unroll_cannot_do_is_refused(optimizer, error, message):
    with pytest.raises(error, match=message):
        sgd_options(optimizer, MODEL)


def test_a_velocity_from_earlier_steps_is_refused():
    model, _, image_syn, label_syn, batches, _ = make_inputs("cpu", 1)
    optimizer = two_groups(model, momentum=0.9)
    sgd_options(optimizer, model)
    train(model, optimizer, image_syn.detach(), label_syn, batches)
    with pytest.raises(ValueError, match="momentum from earlier steps"):
        sgd_options(optimizer, model)
