"""The gradient to the input of a narrow 3×3 convolution: values, layouts, threads, refusals."""

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_no_worse
from torch.library import opcheck

import mim4dd.ops.conv3x3_narrow  # noqa: F401  defines the operator

OP = torch.ops.mim4dd.conv3x3_narrow_bwd
DTYPES = [torch.float32, torch.float64]

# (B, C, O, H, W): the shapes of use; channels and pixels that fill no vector; a row, a column, a
# pixel; more columns than one tile has, by one and by many; as many channels as a wide one has.
SHAPES = [
    (3, 3, 128, 32, 32),
    (2, 1, 64, 28, 28),
    (1, 3, 5, 7, 9),
    (1, 1, 1, 1, 1),
    (3, 2, 17, 1, 11),
    (2, 3, 33, 6, 1),
    (2, 8, 20, 3, 31),
    (1, 7, 130, 5, 13),
    (1, 3, 6, 4, 500),
    (2, 21, 9, 3, 5),
]


def make_inputs(shape, dtype=torch.float32):
    """grad_out and weight, channels-last."""
    batch, channels, out, *size = shape
    grad_out = torch.randn(batch, out, *size, dtype=dtype)
    weight = torch.randn(out, channels, 3, 3, dtype=dtype)
    return [tensor.to(memory_format=torch.channels_last) for tensor in (grad_out, weight)]


def plain(grad_out, weight):
    return F.conv_transpose2d(grad_out, weight, padding=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, dtype):
    inputs = make_inputs(shape, dtype)
    actual = OP(*inputs)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert_no_worse(actual, plain(*inputs), plain(*(tensor.double() for tensor in inputs)))


def test_it_is_the_gradient_of_conv2d():
    grad_out, weight = make_inputs(SHAPES[2], torch.float64)
    input = torch.randn(1, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(F.conv2d(input, weight, padding=1), input, grad_out)
    torch.testing.assert_close(OP(grad_out, weight), expected)


@pytest.mark.parametrize("shape", [(1, 3, 24, 19, 300), (5, 3, 24, 11, 8)], ids=str)
def test_the_number_of_threads_changes_no_bit(shape):
    """It decides where images are cut into tiles."""
    inputs = make_inputs(shape)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7, 32):
            torch.set_num_threads(threads)
            results.append(OP(*inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_any_layout():
    inputs = make_inputs(SHAPES[6])
    expected = OP(*inputs)
    assert torch.equal(OP(*(tensor.contiguous() for tensor in inputs)), expected)
    strided = [torch.stack([t, t], -1).contiguous()[..., 1] for t in inputs]
    assert torch.equal(OP(*strided), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_its_neighbours_and_no_others(value):
    grad_out, weight = make_inputs(SHAPES[0])
    grad_out[1, 7, 2, 31] = value
    actual = OP(grad_out, weight)
    touched = torch.zeros(3, 1, 32, 32, dtype=torch.bool)
    touched[1, :, 1:4, 30:] = True
    assert torch.equal(actual.isfinite(), ~touched.expand_as(actual))
    assert torch.equal(actual.isnan(), plain(grad_out, weight).isnan())


@pytest.mark.parametrize("shape", [(0, 3, 6, 5, 5), (2, 3, 6, 0, 5), (2, 3, 6, 5, 0)], ids=str)
def test_no_pixels(shape):
    batch, channels, _, *size = shape
    assert OP(*make_inputs(shape)).shape == (batch, channels, *size)


def test_registration():
    opcheck(OP.default, tuple(make_inputs((2, 3, 5, 4, 4))))


def test_a_derivative_of_the_bare_op_raises():
    grad_out, weight = make_inputs((1, 2, 2, 2, 2))
    weight.requires_grad_()
    with pytest.raises(RuntimeError, match="is not differentiable: it is a derivative"):
        OP(grad_out, weight).sum().backward()


def test_the_bare_op_reads_nothing_out_of_bounds():
    grad_out, weight = make_inputs((2, 4, 6, 5, 5))
    for inputs, message in (
        ((grad_out[0], weight), r"grad_out must be \(B, O, H, W\)"),
        ((grad_out, weight[..., :2]), r"weight \(O, C, 3, 3\)"),
        ((grad_out[:, :5], weight), r"weight \(O, C, 3, 3\)"),
        ((grad_out, weight[:, :0]), "at least one"),
        ((grad_out[:, :0], weight[:0]), "at least one"),
        ((grad_out, weight.double()), "share a dtype"),
        ((grad_out.half(), weight.half()), "not implemented for 'Half'"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OP(*inputs)
