"""adam_step: against torch.optim, values, gradients, registration."""

import pytest
import torch
from tolerance import assert_no_worse
from torch.library import opcheck

from mim4dd import reference
from mim4dd.ops import adam_step  # noqa: F401  registers the op

SIZES = [1, 7, 1000, 70_001]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPTIONS = {
    "adam": {},
    "root": {"eps_root": 1e-6, "beta1": 0.5},
    "l2": {"weight_decay": 0.1},
    "adamw": {"weight_decay": 0.1, "decoupled": True, "eps": 1e-3},
}
op = torch.ops.mim4dd.adam_step


def make_inputs(size, dtype, device, lr_shape=()):
    theta, gradient, mean = torch.randn(3, size, dtype=dtype, device=device)
    # Away from 0, where the step has no second derivative.
    square = 0.1 + torch.rand(size, dtype=dtype, device=device)
    return theta, gradient, mean, square, torch.rand(lr_shape, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lr_per_parameter", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values(size, dtype, lr_per_parameter, options, device):
    inputs = make_inputs(size, dtype, device, (size,) if lr_per_parameter else ())
    plain = reference.adam_step(*inputs, 3, **options)
    exact = reference.adam_step(*(tensor.double() for tensor in inputs), 3, **options)
    for triple in zip(op(*inputs, 3, **options), plain, exact, strict=True):
        assert_no_worse(*triple)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"weight_decay": 0.1}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
    ],
)
@pytest.mark.parametrize("step", [op, reference.adam_step], ids=["mim4dd", "reference"])
def test_it_is_the_step_of_torch_optim(step, optimizer, options, device):
    theta = torch.randn(40, dtype=torch.float64, device=device)
    parameter = torch.nn.Parameter(theta.clone())
    theirs = optimizer([parameter], lr=0.2, betas=(0.8, 0.95), eps=1e-2, **options)
    mean, square, lr = torch.zeros_like(theta), torch.zeros_like(theta), theta.new_tensor(0.2)
    decoupled = optimizer is torch.optim.AdamW
    for index in range(1, 6):
        parameter.grad = torch.randn_like(theta)
        theirs.step()
        moments = step(
            *(theta, parameter.grad, mean, square, lr, index, 0.8, 0.95, 1e-2),
            decoupled=decoupled,
            **options,
        )
        theta, mean, square = moments
        torch.testing.assert_close(theta, parameter.detach(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("lr_shape", [(), (6,)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_derivatives(lr_shape, options, device):
    inputs = make_inputs(6, torch.float64, device, lr_shape)
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)

    def step(*tensors):
        return op(*tensors, 2, **options)

    assert torch.autograd.gradcheck(step, inputs)
    assert torch.autograd.gradgradcheck(step, inputs)


def test_a_gradient_of_zero_gives_no_nan(device):
    """The square root has an infinite slope at 0: through it plain autograd returns NaN."""
    theta, gradient, mean, square, lr = make_inputs(6, torch.float64, device)
    gradient[:3] = mean[:3] = square[:3] = 0
    leaves = tuple(tensor.requires_grad_() for tensor in (theta, gradient, mean, square, lr))
    weights = torch.randn_like(theta)
    (reference.adam_step(*leaves, 1)[0] * weights).sum().backward()
    assert gradient.grad[:3].isnan().all()
    plain = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    (op(*leaves, 1)[0] * weights).sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    for leaf, expected in zip(leaves[:4], plain[:4], strict=True):
        torch.testing.assert_close(leaf.grad[3:], expected[3:])
    # What comes through the mean stays: −η / eps · (1 − β1) / (1 − β1).
    torch.testing.assert_close(gradient.grad[:3], -lr.detach() * weights[:3] / 1e-8)


def test_what_is_not_finite_stays_visible(device):
    theta, gradient, mean, square, lr = make_inputs(100, torch.float32, device)
    gradient[3], square[4], theta[5] = torch.nan, -1, torch.inf
    new_theta, new_mean, new_square = op(theta, gradient, mean, square, lr, 1)
    assert new_theta[3:5].isnan().all()
    assert new_mean[3].isnan()
    assert new_square[3].isnan()
    assert new_theta[5] == torch.inf
    assert new_mean[5].isfinite()


def test_strided_inputs_and_no_parameters(device):
    inputs = make_inputs(1002, torch.float64, device, (1002,))
    strided = [tensor[1::2] for tensor in inputs]
    for pair in zip(op(*strided, 1), reference.adam_step(*strided, 1), strict=True):
        torch.testing.assert_close(*pair)
    empty = op(*make_inputs(0, torch.float32, device), 1)
    assert [tensor.shape for tensor in empty] == [(0,)] * 3


@pytest.mark.parametrize("lr_shape", [(), (6,)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_registration(lr_shape, options, device):
    inputs = make_inputs(6, torch.float32, device, lr_shape)
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    opcheck(op.default, (*inputs, 2), options)


def test_bad_input(device):
    inputs = make_inputs(100, torch.float32, device)
    for index, name in enumerate(["gradient", "mean", "square"], start=1):
        short = [*inputs]
        short[index] = short[index][1:]
        with pytest.raises(RuntimeError, match=f"{name} must have 100 elements, got 99"):
            op(*short, 1)
    with pytest.raises(RuntimeError, match="step must count from 1, got 0"):
        op(*inputs, 0)
