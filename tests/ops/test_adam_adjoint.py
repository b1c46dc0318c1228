"""adam_adjoint: against autograd through the steps, values, registration, errors."""

import pytest
import torch
from inner_training import make_training
from tolerance import assert_no_worse, assert_sum_no_worse
from torch.library import opcheck

from mim4dd import reference
from mim4dd.ops import adam_step  # noqa: F401  registers both ops

SIZES = [1, 7, 1000, 70_001]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPTIONS = {
    "adam": {},
    "root": {"eps_root": 1e-3, "beta1": 0.5},
    "l2": {"weight_decay": 0.1, "eps": 1e-3},
    "adamw": {"weight_decay": 0.1, "decoupled": True, "beta2": 0.9},
}
op = torch.ops.mim4dd.adam_adjoint


def make_inputs(size, dtype, device, lr_shape=(), later=True):
    """What a step in the middle of a walk gets; the last step has nothing ``later``."""
    vectors = torch.randn(7, size, dtype=dtype, device=device)
    adjoint, of_mean, of_square, product, theta, gradient, mean = vectors
    square = 0.1 + torch.rand(size, dtype=dtype, device=device)
    lr = torch.rand(lr_shape, dtype=dtype, device=device)
    carried = (of_mean, of_square, product) if later else (None, None, None)
    return adjoint, *carried, theta, gradient, mean, square, lr, 3


def double(inputs):
    return [value.double() if isinstance(value, torch.Tensor) else value for value in inputs]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("lr_per_parameter", [False, True])
@pytest.mark.parametrize("adjoint", [op, reference.adam_adjoint], ids=["mim4dd", "reference"])
def test_walking_back_is_autograd_through_the_steps(options, lr_per_parameter, adjoint, device):
    training = make_training(lr_per_parameter, device)
    theta_0, lr = training.theta.clone().requires_grad_(), training.lr.clone().requires_grad_()
    graph = training._replace(lr=lr)
    theta, mean, square = theta_0, torch.zeros_like(theta_0), torch.zeros_like(theta_0)
    states = []
    for step in range(training.num_steps):
        before, gradient = theta, graph.gradient(step, theta)
        theta, mean, square = reference.adam_step(
            theta, gradient, mean, square, graph.step_size(step), step + 1, **options
        )
        states.append([tensor.detach() for tensor in (before, mean, square)])
    theta_T_adjoint = torch.randn_like(theta)
    expected_theta, expected_lr = torch.autograd.grad(theta, (theta_0, lr), theta_T_adjoint)

    carried, of_mean, of_square, product = theta_T_adjoint, None, None, None
    of_lr = torch.zeros_like(lr)
    for step in reversed(range(training.num_steps)):
        before, mean, square = states[step]
        gradient, multiply = training.linearize(step, before)
        whole = carried if product is None else carried + product
        carried, of_mean, of_square, cotangent, of_step, squared_norm = adjoint(
            *(carried, of_mean, of_square, product, before, gradient, mean, square),
            *(training.step_size(step), step + 1),
            **options,
        )
        torch.testing.assert_close(squared_norm, whole.square().sum())
        (product,) = multiply(cotangent)
        if lr_per_parameter:
            of_lr += of_step
        else:
            of_lr[step] = of_step
    torch.testing.assert_close(carried + product, expected_theta, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(of_lr, expected_lr, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lr_per_parameter", [False, True])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values(size, dtype, lr_per_parameter, later, options, device):
    inputs = make_inputs(size, dtype, device, (size,) if lr_per_parameter else (), later)
    results = (
        op(*inputs, **options),
        reference.adam_adjoint(*inputs, **options),
        reference.adam_adjoint(*double(inputs), **options),
    )
    triples = list(zip(*results, strict=True))
    if not lr_per_parameter:
        actual, plain, _ = triples.pop(-2)
        *exact, lr, step = double(inputs)
        terms = reference.adam_adjoint(*exact, lr.expand(size), step, **options)[-2]
        assert_sum_no_worse(actual, plain, terms)
    for triple in triples:
        assert_no_worse(*triple)


def test_bits_do_not_depend_on_the_number_of_threads():
    inputs = make_inputs(300_001, torch.float32, "cpu")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(op(*inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


def test_a_parameter_that_never_had_a_gradient_gives_no_nan(device):
    inputs = list(make_inputs(7, torch.float64, device))
    inputs[5][:4] = inputs[6][:4] = inputs[7][:4] = 0  # gradient and both moments
    adjoint, of_mean, of_square, product, *_, lr, _ = inputs
    _, new_of_mean, new_of_square, cotangent, *_ = op(*inputs)
    whole = of_mean - lr * (adjoint + product) / (1e-8 * (1 - 0.9**3))
    torch.testing.assert_close(new_of_mean[:4], 0.9 * whole[:4])
    torch.testing.assert_close(new_of_square[:4], 0.999 * of_square[:4])
    torch.testing.assert_close(cotangent[:4], 0.1 * whole[:4])


def test_nan_stays_visible(device):
    inputs = make_inputs(100, torch.float32, device)
    inputs[0][7] = torch.nan
    *vectors, of_lr, squared_norm = op(*inputs)
    for vector in vectors:
        assert vector.isnan().nonzero().tolist() == [[7]]
    assert of_lr.isnan()
    assert squared_norm.isnan()
    inputs = make_inputs(100, torch.float32, device)
    inputs[7][3] = torch.nan  # s'
    _, of_mean, of_square, cotangent, of_lr, _ = op(*inputs)
    for vector in (of_mean, of_square, cotangent):
        assert vector.isnan().nonzero().tolist() == [[3]]
    assert of_lr.isnan()


def test_strided_inputs_and_no_parameters(device):
    inputs = make_inputs(1002, torch.float64, device, (1002,))
    strided = [value[::2] if isinstance(value, torch.Tensor) else value for value in inputs]
    for actual, expected in zip(op(*strided), reference.adam_adjoint(*strided), strict=True):
        torch.testing.assert_close(actual, expected)
    *vectors, of_lr, squared_norm = op(*make_inputs(0, torch.float32, device))
    assert all(vector.shape == (0,) for vector in vectors)
    assert of_lr == 0
    assert squared_norm == 0


@pytest.mark.parametrize("lr_shape", [(), (6,)])
@pytest.mark.parametrize("later", [False, True])
def test_registration(lr_shape, later, device):
    opcheck(op.default, make_inputs(6, torch.float32, device, lr_shape, later))


def test_a_derivative_is_refused(device):
    inputs = make_inputs(6, torch.float64, device)
    inputs[5].requires_grad_()
    with pytest.raises(RuntimeError, match="adam_adjoint is not differentiable"):
        op(*inputs)[0].sum().backward()


def test_bad_input(device):
    inputs = make_inputs(100, torch.float32, device)
    names = ["mean_adjoint", "square_adjoint", "product", "theta", "gradient", "mean", "square"]
    for index, name in enumerate(names, start=1):
        short = [*inputs]
        short[index] = short[index][1:]
        with pytest.raises(RuntimeError, match=f"{name} must have 100 elements, got 99"):
            op(*short)
    with pytest.raises(RuntimeError, match="must both be given"):
        op(inputs[0], None, *inputs[2:])
