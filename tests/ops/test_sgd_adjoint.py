"""sgd_adjoint: against autograd through the steps, values, registration, errors."""

import pytest
import torch
from inner_training import make_training
from tolerance import assert_no_worse, assert_sum_no_worse
from torch.library import opcheck

from mim4dd import reference, sgd_step
from mim4dd.ops import sgd_adjoint  # noqa: F401  registers the op

SIZES = [1, 7, 1000, 70_001]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPTIONS = {
    "plain": (0.0, 0.0, False),
    "decay": (0.0, 0.1, False),
    "momentum": (0.9, 0.0, False),
    "momentum-decay": (0.9, 0.1, False),
    "nesterov": (0.9, 0.1, True),
}
op = torch.ops.mim4dd.sgd_adjoint


def make_inputs(size, dtype, device, options, lr_shape=(), later=True):
    """What a step in the middle of a walk gets; the last step has nothing ``later``."""
    vectors = torch.randn(6, size, dtype=dtype, device=device)
    adjoint, velocity_adjoint, product, theta, gradient, velocity = vectors
    lr = torch.rand(lr_shape, dtype=dtype, device=device)
    has_momentum = options[0] > 0
    return (
        adjoint,
        velocity_adjoint if has_momentum and later else None,
        product if later else None,
        theta,
        gradient,
        velocity if has_momentum else None,
        lr,
        *options,
    )


def double(inputs):
    return [value.double() if isinstance(value, torch.Tensor) else value for value in inputs]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("lr_per_parameter", [False, True])
@pytest.mark.parametrize("adjoint", [op, reference.sgd_adjoint], ids=["mim4dd", "reference"])
def test_walking_back_is_autograd_through_the_steps(options, lr_per_parameter, adjoint, device):
    training = make_training(lr_per_parameter, device)
    momentum, weight_decay, nesterov = options
    theta_0, lr = training.theta.clone().requires_grad_(), training.lr.clone().requires_grad_()
    graph = training._replace(lr=lr)
    theta, velocity = theta_0, torch.zeros_like(theta_0)
    states = []
    for step in range(training.num_steps):
        before = theta
        if momentum:
            theta, velocity = reference.sgd_step(
                theta, graph.gradient(step, theta), graph.step_size(step), velocity, *options
            )
        else:
            theta = reference.sgd_step(
                theta,
                graph.gradient(step, theta),
                graph.step_size(step),
                weight_decay=weight_decay,
            )
        states.append((before.detach(), velocity.detach() if momentum else None))
    theta_T_adjoint = torch.randn_like(theta)
    expected_theta, expected_lr = torch.autograd.grad(theta, (theta_0, lr), theta_T_adjoint)

    carried, of_velocity, product, of_lr = theta_T_adjoint, None, None, torch.zeros_like(lr)
    for step in reversed(range(training.num_steps)):
        before, velocity = states[step]
        gradient, multiply = training.linearize(step, before)
        whole = carried if product is None else carried + product
        carried, of_velocity, cotangent, of_step, squared_norm = adjoint(
            carried, of_velocity, product, before, gradient, velocity, training.step_size(step),
            momentum, weight_decay, nesterov,
        )  # fmt: skip
        torch.testing.assert_close(squared_norm, whole.square().sum())
        of_velocity = of_velocity if momentum else None
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
    lr_shape = (size,) if lr_per_parameter else ()
    inputs = make_inputs(size, dtype, device, options, lr_shape, later)
    results = op(*inputs), reference.sgd_adjoint(*inputs), reference.sgd_adjoint(*double(inputs))
    triples = list(zip(*results, strict=True))
    if not lr_per_parameter:
        actual, plain, _ = triples.pop(-2)
        *vectors, lr = double(inputs)[: -len(options)]
        terms = reference.sgd_adjoint(*vectors, lr.expand(size), *options)[-2]
        assert_sum_no_worse(actual, plain, terms)
    for actual, plain, exact in triples:
        if actual.numel() or exact.numel():
            assert_no_worse(actual, plain, exact)


def test_a_large_vector(device):
    """Many chunks, and an odd rest: sums in float64 have the digits of float64."""
    inputs = make_inputs(1_000_003, torch.float32, device, OPTIONS["nesterov"])
    *_, of_lr, squared_norm = op(*inputs)
    *_, exact_of_lr, exact_squared_norm = reference.sgd_adjoint(*double(inputs))
    torch.testing.assert_close(of_lr.double(), exact_of_lr, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(squared_norm, exact_squared_norm, rtol=1e-7, atol=0)


def test_bits_do_not_depend_on_the_number_of_threads():
    inputs = make_inputs(300_001, torch.float32, "cpu", OPTIONS["momentum"])
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


def test_strided_inputs(device):
    inputs = make_inputs(1002, torch.float64, device, OPTIONS["nesterov"], (1002,))
    strided = [value[::2] if isinstance(value, torch.Tensor) else value for value in inputs]
    for actual, expected in zip(op(*strided), reference.sgd_adjoint(*strided), strict=True):
        torch.testing.assert_close(actual, expected)


def test_no_parameters(device):
    *vectors, of_lr, squared_norm = op(*make_inputs(0, torch.float32, device, OPTIONS["momentum"]))
    assert all(vector.shape == (0,) for vector in vectors)
    assert of_lr == 0
    assert squared_norm == 0


def test_nan_stays_visible(device):
    inputs = make_inputs(100, torch.float32, device, OPTIONS["momentum"])
    inputs[0][7] = torch.nan
    carried, of_velocity, cotangent, of_lr, squared_norm = op(*inputs)
    for vector in (carried, of_velocity, cotangent):
        assert vector.isnan().nonzero().tolist() == [[7]]
    assert of_lr.isnan()
    assert squared_norm.isnan()


@pytest.mark.parametrize("lr_shape", [(), (6,)])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_registration(lr_shape, later, options, device):
    opcheck(op.default, make_inputs(6, torch.float32, device, options, lr_shape, later))


def test_a_derivative_is_refused(device):
    inputs = make_inputs(6, torch.float64, device, OPTIONS["momentum"])
    inputs[0].requires_grad_()
    with pytest.raises(RuntimeError, match="sgd_adjoint is not differentiable"):
        op(*inputs)[0].sum().backward()


def test_it_is_the_backward_of_sgd_step(device):
    theta, gradient, velocity = torch.randn(3, 50, dtype=torch.float64, device=device)
    lr = torch.rand((), dtype=torch.float64, device=device)
    leaves = [tensor.requires_grad_() for tensor in (theta, gradient, lr, velocity)]
    new_theta, new_velocity = sgd_step(
        theta, gradient, lr, velocity=velocity, momentum=0.9, weight_decay=0.1
    )
    upstream = torch.randn_like(new_theta), torch.randn_like(new_velocity)
    of_theta, of_gradient, of_lr, of_velocity = torch.autograd.grad(
        (new_theta, new_velocity), leaves, upstream
    )
    with torch.no_grad():
        results = op(*upstream, None, theta, gradient, new_velocity, lr, 0.9, 0.1)
    expected = of_theta, of_velocity, of_gradient, of_lr
    assert all(torch.equal(*pair) for pair in zip(results[:4], expected, strict=True))


def test_bad_input(device):
    inputs = make_inputs(100, torch.float32, device, OPTIONS["momentum"])
    names = ["theta_adjoint", "velocity_adjoint", "product", "theta", "gradient", "velocity"]
    for index, name in enumerate(names[1:], start=1):
        short = [*inputs]
        short[index] = short[index][1:]
        with pytest.raises(RuntimeError, match=f"{name} must have 100 elements, got 99"):
            op(*short)
        other = [*inputs]
        other[index] = other[index].double()
        with pytest.raises(RuntimeError, match=f"{name} must have the dtype"):
            op(*other)
    with pytest.raises(RuntimeError, match="lr must have 1 or 100 elements"):
        op(*inputs[:6], torch.zeros(2, device=device))
    with pytest.raises(RuntimeError, match="needs the velocity"):
        op(*inputs[:5], None, *inputs[6:])
