"""sgd_step: values, gradients, registration, errors."""

import pytest
import torch
from tolerance import assert_no_worse
from torch.library import opcheck

from mim4dd import _library, reference, sgd_step

SIZES = [1, 7, 1000, 70_001]  # the last is more than one thread's share
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
}


def make_inputs(size, dtype, device, lr_shape=()):
    theta, gradient = torch.randn(2, size, dtype=dtype, device=device)
    return theta, gradient, torch.rand(lr_shape, dtype=dtype, device=device)


def step_of(options, step=sgd_step, **more):
    """The step as a function of tensors alone, with a tuple as its result."""

    def call(theta, gradient, lr, *velocity):
        tensors = {"velocity": velocity[0]} if velocity else {}
        result = step(theta, gradient, lr, **tensors, **options, **more)
        return result if velocity else (result,)

    return call


def velocity_like(theta, options):
    return [torch.randn_like(theta)] if "momentum" in options else []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lr_per_parameter", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values(size, dtype, lr_per_parameter, options, device):
    inputs = make_inputs(size, dtype, device, (size,) if lr_per_parameter else ())
    inputs += (*velocity_like(inputs[0], options),)
    actual = step_of(options)(*inputs)
    plain = step_of(options, reference.sgd_step)(*inputs)
    exact = step_of(options, reference.sgd_step)(*(tensor.double() for tensor in inputs))
    for triple in zip(actual, plain, exact, strict=True):
        assert_no_worse(*triple)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_is_the_step_of_torch_optim(options, device):
    theta = torch.randn(40, dtype=torch.float64, device=device)
    parameter = torch.nn.Parameter(theta.clone())
    optimizer = torch.optim.SGD([parameter], lr=0.2, **options)
    lr = theta.new_tensor(0.2)
    state = [torch.zeros_like(theta)] if "momentum" in options else []
    for _ in range(4):
        parameter.grad = torch.randn_like(theta)
        optimizer.step()
        theta, *state = step_of(options)(theta, parameter.grad, lr, *state)
        torch.testing.assert_close(theta, parameter.detach(), rtol=1e-14, atol=1e-15)


def test_no_parameters(device):
    assert sgd_step(*make_inputs(0, torch.float32, device)).shape == (0,)


def test_strided_inputs(device):
    theta, gradient, lr = make_inputs(2 * 501, torch.float32, device)
    torch.testing.assert_close(
        sgd_step(theta[::2], gradient.flip(0)[1::2], lr),
        theta[::2] - lr * gradient.flip(0)[1::2],
    )


def test_inputs_are_left_alone(device):
    inputs = make_inputs(100, torch.float32, device)
    before = [tensor.clone() for tensor in inputs]
    sgd_step(*inputs)
    assert all(torch.equal(*pair) for pair in zip(inputs, before, strict=True))


@pytest.mark.parametrize("lr_shape", [(), (6,)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_derivatives(lr_shape, options, device):
    inputs = make_inputs(6, torch.float64, device, lr_shape)
    inputs += (*velocity_like(inputs[0], options),)
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(step_of(options), inputs)
    assert torch.autograd.gradgradcheck(step_of(options), inputs)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_are_the_same_with_and_without_a_graph(options, device):
    inputs = make_inputs(70_001, torch.float64, device)
    inputs += (*velocity_like(inputs[0], options),)
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    results = step_of(options)(*inputs)
    upstream = tuple(torch.randn_like(result) for result in results)
    fused = torch.autograd.grad(results, inputs, upstream, retain_graph=True)
    plain = torch.autograd.grad(results, inputs, upstream, create_graph=True)
    for pair in zip(fused, plain, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lr_shape", [(), (6,)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_registration(lr_shape, options, device):
    inputs = make_inputs(6, torch.float32, device, lr_shape)
    inputs += (*velocity_like(inputs[0], options),)
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    opcheck(torch.ops.mim4dd.sgd_step.default, inputs, options)


def test_what_is_not_finite_stays_visible(device):
    theta, gradient, lr = make_inputs(100, torch.float32, device)
    gradient[3], theta[5] = torch.nan, torch.inf
    result, velocity = sgd_step(theta, gradient, lr, velocity=theta, momentum=0.9, weight_decay=0.1)
    assert result[3].isnan()
    assert velocity[3].isnan()
    assert velocity[5] == torch.inf
    assert result.isfinite().sum() == 98
    # Without decay the parameter does not enter the direction, as 0 · inf it would.
    assert sgd_step(theta, gradient, lr)[5] == torch.inf


def test_the_bare_op_reads_nothing_out_of_bounds(device):
    """It is called without the public checks by whoever finds it under torch.ops."""
    theta, gradient, lr = make_inputs(100, torch.float32, device)
    expected = sgd_step(theta, gradient, lr)
    assert torch.equal(torch.ops.mim4dd.sgd_step(theta, gradient, lr.view(1))[0], expected)
    with pytest.raises(RuntimeError, match="lr must have 1 or 100 elements, got 7"):
        torch.ops.mim4dd.sgd_step(theta, gradient, lr.expand(7))
    with pytest.raises(RuntimeError, match="velocity must have 100 elements, got 99"):
        torch.ops.mim4dd.sgd_step(theta, gradient, lr, theta[1:], 0.9)
    with pytest.raises(RuntimeError, match="momentum needs a velocity"):
        torch.ops.mim4dd.sgd_step(theta, gradient, lr, None, 0.9)


def test_a_step_size_on_the_cpu_goes_with_parameters_anywhere():
    theta = torch.ones(3, device="meta")
    assert sgd_step(theta, theta, torch.tensor(0.1)).device == theta.device
    with pytest.raises(ValueError, match="theta and lr must be on one device"):
        sgd_step(theta, theta, torch.ones(3))


def test_compiles(device):
    inputs = make_inputs(100, torch.float32, device)
    compiled = torch.compile(sgd_step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), sgd_step(*inputs))


def test_a_missing_kernel_names_the_cure(monkeypatch):
    lib = torch.library.Library("mim4dd_test", "FRAGMENT")
    lib.define("absent(Tensor x) -> Tensor")
    monkeypatch.setattr(_library, "LIB", lib)
    monkeypatch.setitem(_library.LOAD_ERRORS, "CPU", ImportError("undefined symbol: foo"))
    _library.expect_compiled("absent", "CPU")
    with pytest.raises(RuntimeError, match=r"undefined symbol: foo.*pip install"):
        torch.ops.mim4dd_test.absent(torch.zeros(1))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"theta": torch.zeros(2, 2)}, ValueError, "theta must be 1-d"),
        ({"theta": torch.zeros(4).long()}, TypeError, "theta must be float16, bfloat16, float32"),
        ({"gradient": torch.zeros(3)}, ValueError, "gradient must have the shape of theta"),
        ({"gradient": torch.zeros(4).double()}, TypeError, "share a dtype"),
        ({"lr": torch.zeros(3)}, ValueError, "lr must be 0-d"),
        ({"lr": torch.zeros((), device="meta")}, ValueError, "one device"),
        ({"velocity": torch.zeros(3)}, ValueError, "velocity must have the shape of theta"),
        ({"momentum": 0.9}, ValueError, "needs a velocity"),
        ({"momentum": -0.1}, ValueError, "momentum must be at least 0"),
        ({"weight_decay": float("nan")}, ValueError, "weight_decay must be at least 0"),
        ({"nesterov": True}, ValueError, "nesterov needs momentum"),
        ({"backend": "triton"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"theta": torch.zeros(4), "gradient": torch.zeros(4), "lr": torch.tensor(0.1)}
    with pytest.raises(error, match=message):
        sgd_step(**(arguments | change))
