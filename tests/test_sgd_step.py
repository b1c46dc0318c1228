"""sgd_step: values, gradients, registration, errors."""

import pytest
import torch
from tolerance import assert_no_worse
from torch.library import opcheck

from mim4dd import _library, reference, sgd_step

SIZES = [1, 7, 1000, 70_001]  # the last is more than one thread's share
DTYPES = [torch.float32, torch.float64]


def make_inputs(size, dtype, device, lr_shape=()):
    theta, direction = torch.randn(2, size, dtype=dtype, device=device)
    return theta, direction, torch.rand(lr_shape, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lr_per_parameter", [False, True])
def test_values(size, dtype, lr_per_parameter, device):
    inputs = make_inputs(size, dtype, device, (size,) if lr_per_parameter else ())
    theta, direction, lr = (tensor.double() for tensor in inputs)
    exact = theta - lr * direction
    assert_no_worse(sgd_step(*inputs), reference.sgd_step(*inputs), exact)


def test_no_parameters(device):
    assert sgd_step(*make_inputs(0, torch.float32, device)).shape == (0,)


def test_strided_inputs(device):
    theta, direction, lr = make_inputs(2 * 501, torch.float32, device)
    torch.testing.assert_close(
        sgd_step(theta[::2], direction.flip(0)[1::2], lr),
        theta[::2] - lr * direction.flip(0)[1::2],
    )


def test_inputs_are_left_alone(device):
    inputs = make_inputs(100, torch.float32, device)
    before = [tensor.clone() for tensor in inputs]
    sgd_step(*inputs)
    assert all(torch.equal(*pair) for pair in zip(inputs, before, strict=True))


@pytest.mark.parametrize("lr_shape", [(), (6,)])
def test_derivatives(lr_shape, device):
    inputs = make_inputs(6, torch.float64, device, lr_shape)
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(sgd_step, inputs)
    assert torch.autograd.gradgradcheck(sgd_step, inputs)


@pytest.mark.parametrize("lr_shape", [(), (6,)])
def test_registration(lr_shape, device):
    inputs = make_inputs(6, torch.float32, device, lr_shape)
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    opcheck(torch.ops.mim4dd.sgd_step.default, inputs)


def test_the_bare_op_reads_nothing_out_of_bounds(device):
    """It is called without the public checks by whoever finds it under torch.ops."""
    theta, direction, lr = make_inputs(100, torch.float32, device)
    expected = sgd_step(theta, direction, lr)
    assert torch.equal(torch.ops.mim4dd.sgd_step(theta, direction, lr.view(1)), expected)
    with pytest.raises(RuntimeError, match="must have P, P and 1 or P elements"):
        torch.ops.mim4dd.sgd_step(theta, direction, lr.expand(7))


def test_forward_ad_is_refused_and_the_reference_has_it():
    theta, direction, lr = make_inputs(6, torch.float64, "cpu")
    tangent = torch.randn_like(direction)
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(lambda d: sgd_step(theta, d, lr), (direction,), (tangent,))
    _, out = torch.func.jvp(
        lambda d: sgd_step(theta, d, lr, backend="reference"), (direction,), (tangent,)
    )
    torch.testing.assert_close(out, -lr * tangent)


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
        ({"theta": torch.zeros(4).half()}, TypeError, "theta must be float32 or float64"),
        ({"direction": torch.zeros(3)}, ValueError, "direction must have the shape of theta"),
        ({"direction": torch.zeros(4).double()}, TypeError, "share a dtype"),
        ({"lr": torch.zeros(3)}, ValueError, "lr must be 0-d"),
        ({"lr": torch.zeros((), device="meta")}, ValueError, "one device"),
        ({"backend": "triton"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"theta": torch.zeros(4), "direction": torch.zeros(4), "lr": torch.tensor(0.1)}
    with pytest.raises(error, match=message):
        sgd_step(**(arguments | change))
