"""3×3 convolutions of few channels and their gradients: values, layouts, threads, refusals."""

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_no_worse, assert_norm_no_worse
from torch.library import opcheck

import mim4dd.ops.conv3x3_narrow  # noqa: F401  defines the operators

OPS = torch.ops.mim4dd
DTYPES = [torch.float32, torch.float64]

# (B, C, O, H, W): the shapes of use; channels and pixels that fill no vector; a row, a column, a
# pixel; more columns than one tile has, by one and by many; as many channels as a wide one has;
# more images than there are chunks of them.
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
    (35, 1, 16, 3, 8),
]


def make_inputs(shape, dtype=torch.float32):
    """grad_out, input and weight, channels-last."""
    batch, channels, out, *size = shape
    shapes = (batch, out, *size), (batch, channels, *size), (out, channels, 3, 3)
    tensors = (torch.randn(each, dtype=dtype) for each in shapes)
    return [tensor.to(memory_format=torch.channels_last) for tensor in tensors]


def run(grad_out, input, weight):
    """The output, and both gradients."""
    bias = torch.linspace(-1, 1, len(weight), dtype=weight.dtype)
    output = OPS.conv3x3_narrow(input, weight, bias)
    return output, *OPS.conv3x3_narrow_bwd(grad_out, input, weight, [True, True])


def plain(grad_out, input, weight):
    bias = torch.linspace(-1, 1, len(weight), dtype=weight.dtype)
    input, weight = input.detach().requires_grad_(), weight.detach().requires_grad_()
    output = F.conv2d(input, weight, bias, padding=1)
    return output.detach(), *torch.autograd.grad(output, (input, weight), grad_out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, dtype):
    inputs = make_inputs(shape, dtype)
    of_torch, exact = plain(*inputs), plain(*(tensor.double() for tensor in inputs))
    output, grad_input, grad_weight = run(*inputs)
    for each in (output, grad_input, grad_weight):
        assert each.is_contiguous(memory_format=torch.channels_last)
    assert_no_worse(output, of_torch[0], exact[0])
    assert_no_worse(grad_input, of_torch[1], exact[1])
    assert_norm_no_worse(grad_weight, of_torch[2], exact[2])


def test_without_a_bias_and_one_gradient_at_a_time():
    grad_out, input, weight = make_inputs(SHAPES[2], torch.float64)
    _, grad_input, grad_weight = plain(grad_out, input, weight)
    without = OPS.conv3x3_narrow(input, weight, None)
    torch.testing.assert_close(without, F.conv2d(input, weight, padding=1))
    for mask in ([True, False], [False, True], [False, False]):
        found = OPS.conv3x3_narrow_bwd(grad_out, input, weight, mask)
        for actual, expected, is_wanted in zip(found, (grad_input, grad_weight), mask, strict=True):
            if is_wanted:
                torch.testing.assert_close(actual, expected)
            else:
                assert actual is None


@pytest.mark.parametrize("shape", [(1, 3, 24, 19, 300), (5, 3, 24, 11, 8)], ids=str)
def test_the_number_of_threads_changes_no_bit(shape):
    """It decides where images are cut into tiles."""
    inputs = make_inputs(shape)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7, 32):
            torch.set_num_threads(threads)
            results.append(run(*inputs))
    finally:
        torch.set_num_threads(before)
    for result in results:
        assert all(map(torch.equal, result, results[0]))


def test_any_layout():
    inputs = make_inputs(SHAPES[6])
    expected = run(*inputs)
    assert all(map(torch.equal, run(*(tensor.contiguous() for tensor in inputs)), expected))
    strided = [torch.stack([t, t], -1).contiguous()[..., 1] for t in inputs]
    assert all(map(torch.equal, run(*strided), expected))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_its_neighbours_and_no_others(value):
    grad_out, input, weight = make_inputs(SHAPES[0])
    touched = torch.zeros(3, 1, 32, 32, dtype=torch.bool)
    touched[1, :, 1:4, 30:] = True
    for tensor, place in ((grad_out, 1), (input, 0)):
        inputs = [each.clone(memory_format=torch.preserve_format) for each in (grad_out, input)]
        changed = inputs[0] if tensor is grad_out else inputs[1]
        changed[1, 2, 2, 31] = value
        actual, expected = run(*inputs, weight), plain(*inputs, weight)
        assert torch.equal(actual[place].isfinite(), ~touched.expand_as(actual[place]))
        for mine, theirs in zip(actual[:2], expected[:2], strict=True):
            assert torch.equal(mine.isnan(), theirs.isnan())
        # Ours multiplies the zeros around an image too, which make NaN of what is not finite.
        assert not (actual[2].isfinite() & ~expected[2].isfinite()).any()


@pytest.mark.parametrize("shape", [(0, 3, 6, 5, 5), (2, 3, 6, 0, 5), (2, 3, 6, 5, 0)], ids=str)
def test_no_pixels(shape):
    batch, channels, out, *size = shape
    output, grad_input, grad_weight = run(*make_inputs(shape))
    assert output.shape == (batch, out, *size)
    assert grad_input.shape == (batch, channels, *size)
    assert torch.equal(grad_weight, torch.zeros(out, channels, 3, 3))


def test_registration():
    grad_out, input, weight = make_inputs((2, 3, 5, 4, 4))
    opcheck(OPS.conv3x3_narrow.default, (input, weight, torch.ones(5)))
    opcheck(OPS.conv3x3_narrow_bwd.default, (grad_out, input, weight, [True, True]))


def test_a_derivative_of_the_bare_ops_raises():
    grad_out, input, weight = make_inputs((1, 2, 2, 2, 2))
    weight.requires_grad_()
    with pytest.raises(RuntimeError, match=r"is not differentiable: an autograd\.Function"):
        OPS.conv3x3_narrow(input, weight, None).sum().backward()
    with pytest.raises(RuntimeError, match=r"is not differentiable: an autograd\.Function"):
        OPS.conv3x3_narrow_bwd(grad_out, input, weight, [True, False])[0].sum().backward()


def test_the_bare_ops_read_nothing_out_of_bounds():
    grad_out, input, weight = make_inputs((2, 4, 6, 5, 5))
    for inputs, message in (
        ((input[0], weight, None), r"input must be \(B, C, H, W\)"),
        ((input, weight[..., :2], None), r"weight \(O, C, 3, 3\)"),
        ((input, weight[:, :3], None), r"weight \(O, C, 3, 3\)"),
        ((input[:, :0], weight[:, :0], None), "at least one"),
        ((input, weight.double(), None), "share a dtype"),
        ((input, weight, torch.ones(5)), r"bias must be \(O,\)"),
        ((input, weight, torch.ones(6).double()), "share a dtype"),
        ((input.half(), weight.half(), None), "not implemented for 'Half'"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.conv3x3_narrow(*inputs)
    for inputs, message in (
        ((grad_out[0], input, weight), r"grad_out must be \(B, O, H, W\)"),
        ((grad_out[:, :5], input, weight), r"grad_out must be \(B, O, H, W\)"),
        ((grad_out[..., 1:], input, weight), r"grad_out must be \(B, O, H, W\)"),
        ((grad_out, input[:1], weight), r"grad_out must be \(B, O, H, W\)"),
        ((grad_out, input, weight[:, :3]), r"weight \(O, C, 3, 3\)"),
        ((grad_out.double(), input, weight), "share a dtype"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.conv3x3_narrow_bwd(*inputs, [True, True])
    with pytest.raises(RuntimeError, match="mask must be 2 flags"):
        OPS.conv3x3_narrow_bwd(grad_out, input, weight, [True])
