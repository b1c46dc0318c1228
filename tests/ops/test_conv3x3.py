"""The 3×3 convolutions by Winograd's algorithm: values, derivatives, layouts, refusals."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_norm_no_worse
from torch.library import opcheck

import mim4dd.ops.conv3x3  # noqa: F401  defines the operators

OPS = torch.ops.mim4dd
DTYPES = [torch.float32, torch.float64]

# (B, C, O, H, W): whole tiles and vectors; pixels, channels and tiles that fill none.
SHAPES = [
    (2, 128, 128, 8, 8),
    (10, 32, 64, 4, 4),
    (1, 3, 5, 7, 9),
    (1, 1, 1, 1, 1),
    (3, 17, 33, 1, 5),
    (2, 48, 20, 6, 1),
    (5, 130, 7, 3, 2),
]


def make_inputs(shape, dtype=torch.float32, memory_format=torch.channels_last):
    """grad_out, input, weight, cotangent_input, cotangent_weight, bias."""
    batch, channels, out, *size = shape
    images = (batch, channels, *size)
    filters = (out, channels, 3, 3)
    shapes = ((batch, out, *size), images, filters, images, filters)
    tensors = [torch.randn(s, dtype=dtype).to(memory_format=memory_format) for s in shapes]
    return [*tensors, torch.randn(out, dtype=dtype)]


def adjoint(grad_out, input, weight):
    """Gradients of input and weight."""
    out = weight.shape[0]
    return torch.ops.aten.convolution_backward(
        grad_out,
        input,
        weight,
        [out],
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        1,
        [True, True, False],
    )[:2]


def second(cotangent_input, cotangent_weight, grad_out, input, weight):
    """What conv3x3_bwd_bwd returns, by its definition."""
    grad_grad_out = torch.zeros_like(grad_out)
    grad_input, grad_weight = torch.zeros_like(input), torch.zeros_like(weight)
    if cotangent_input is not None:
        grad_grad_out = grad_grad_out + F.conv2d(cotangent_input, weight, padding=1)
        grad_weight = adjoint(grad_out, cotangent_input, weight)[1]
    if cotangent_weight is not None:
        grad_grad_out = grad_grad_out + F.conv2d(input, cotangent_weight, padding=1)
        grad_input = adjoint(grad_out, input, cotangent_weight)[0]
    return grad_grad_out, grad_input, grad_weight


def doubled(*tensors):
    return [None if tensor is None else tensor.double() for tensor in tensors]


def assert_all_no_worse(actual, plain, exact, mask=None):
    mask = [True] * len(exact) if mask is None else mask
    for part, wanted, *answers in zip(actual, mask, plain, exact, strict=True):
        assert (part is not None) == wanted
        if wanted:
            assert part.is_contiguous(memory_format=torch.channels_last)
            assert_norm_no_worse(part, *answers)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_values(shape, dtype, with_bias):
    _, input, weight, _, _, bias = make_inputs(shape, dtype)
    bias = bias if with_bias else None
    assert_all_no_worse(
        [OPS.conv3x3(input, weight, bias)],
        [F.conv2d(input, weight, bias, padding=1)],
        [F.conv2d(*doubled(input, weight, bias), padding=1)],
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mask", list(itertools.product([False, True], repeat=2)), ids=str)
def test_gradients(shape, dtype, mask):
    inputs = make_inputs(shape, dtype)[:3]
    actual = OPS.conv3x3_bwd(*inputs, mask)
    assert_all_no_worse(actual, adjoint(*inputs), adjoint(*doubled(*inputs)), mask)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mask", list(itertools.product([False, True], repeat=3)), ids=str)
def test_second_gradients(shape, dtype, mask):
    grad_out, input, weight, *cotangents, _ = make_inputs(shape, dtype)
    inputs = *cotangents, grad_out, input, weight
    actual = OPS.conv3x3_bwd_bwd(*inputs, mask)
    assert_all_no_worse(actual, second(*inputs), second(*doubled(*inputs)), mask)


@pytest.mark.parametrize("absent", [0, 1])
def test_one_cotangent(absent):
    grad_out, input, weight, *cotangents, _ = make_inputs(SHAPES[2])
    cotangents[absent] = None
    inputs = *cotangents, grad_out, input, weight
    mask = [True, absent == 0, absent == 1]
    actual = OPS.conv3x3_bwd_bwd(*inputs, mask)
    assert_all_no_worse(actual, second(*inputs), second(*doubled(*inputs)), mask)
    with pytest.raises(RuntimeError, match="mask asks for what no cotangent gives"):
        OPS.conv3x3_bwd_bwd(*inputs, [False, absent == 1, absent == 0])


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(threads):
    """More threads make more partial sums of a weight gradient; each is used once."""
    inputs = make_inputs((9, 20, 36, 16, 16))[:3]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        actual, again = (OPS.conv3x3_bwd(*inputs, [True, True]) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(actual, again, strict=True))
    assert_all_no_worse(actual, adjoint(*inputs), adjoint(*doubled(*inputs)))


def test_any_layout():
    tensors = make_inputs(SHAPES[4])
    grad_out, input, weight, *cotangents, bias = tensors
    expected = (
        OPS.conv3x3(input, weight, bias),
        *OPS.conv3x3_bwd(grad_out, input, weight, [True, True]),
        *OPS.conv3x3_bwd_bwd(*cotangents, grad_out, input, weight, [True] * 3),
    )
    strided = [torch.stack([t, t], -1).contiguous()[..., 1] for t in tensors]
    for layout in ([t.contiguous() for t in tensors], strided):
        grad_out, input, weight, *cotangents, bias = layout
        actual = (
            OPS.conv3x3(input, weight, bias),
            *OPS.conv3x3_bwd(grad_out, input, weight, [True, True]),
            *OPS.conv3x3_bwd_bwd(*cotangents, grad_out, input, weight, [True] * 3),
        )
        assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(value):
    _, input, weight, _, _, bias = make_inputs(SHAPES[0])
    input[1, 7, 2, 5] = value
    actual, plain = OPS.conv3x3(input, weight, bias), F.conv2d(input, weight, bias, padding=1)
    assert not actual[~plain.isfinite()].isfinite().any()
    assert actual[0].isfinite().all()


def test_no_images():
    grad_out, input, weight, *_ = make_inputs((0, 4, 6, 5, 5))
    assert OPS.conv3x3(input, weight, None).shape == grad_out.shape
    grad_input, grad_weight = OPS.conv3x3_bwd(grad_out, input, weight, [True, True])
    assert grad_input.shape == input.shape
    assert torch.equal(grad_weight, torch.zeros_like(weight))


def test_registration():
    grad_out, input, weight, *cotangents, bias = make_inputs((2, 3, 5, 4, 4))
    opcheck(OPS.conv3x3.default, (input, weight, bias))
    opcheck(OPS.conv3x3.default, (input, weight, None))
    opcheck(OPS.conv3x3_bwd.default, (grad_out, input, weight, [True, True]))
    opcheck(OPS.conv3x3_bwd.default, (grad_out, input, weight, [False, True]))
    inputs = *cotangents, grad_out, input, weight
    opcheck(OPS.conv3x3_bwd_bwd.default, (*inputs, [True, True, True]))
    opcheck(OPS.conv3x3_bwd_bwd.default, (None, *inputs[1:], [True, True, False]))


def test_a_derivative_of_the_bare_op_raises():
    grad_out, input, weight, *cotangents, bias = make_inputs((1, 2, 2, 2, 2))
    weight.requires_grad_()
    for output in (
        OPS.conv3x3(input, weight, bias),
        OPS.conv3x3_bwd(grad_out, input, weight, [True, False])[0],
        OPS.conv3x3_bwd_bwd(*cotangents, grad_out, input, weight, [True, False, False])[0],
    ):
        with pytest.raises(RuntimeError, match="is not differentiable: an autograd"):
            output.sum().backward()


def test_the_bare_ops_read_nothing_out_of_bounds():
    grad_out, input, weight, *cotangents, bias = make_inputs((2, 4, 6, 5, 5))
    both, three = [True] * 2, [True] * 3
    for call, message in (
        (lambda: OPS.conv3x3(input[0], weight, bias), r"input must be \(B, C, H, W\)"),
        (lambda: OPS.conv3x3(input, weight[..., :2], bias), r"weight \(O, C, 3, 3\)"),
        (lambda: OPS.conv3x3(input[:, :3], weight, bias), r"weight \(O, C, 3, 3\)"),
        (lambda: OPS.conv3x3(input[:, :0], weight[:, :0], bias), "at least one"),
        (lambda: OPS.conv3x3(input, weight, bias[:5]), r"bias must be \(O,\)"),
        (lambda: OPS.conv3x3(input, weight.double(), bias), "share a dtype"),
        (lambda: OPS.conv3x3(input.half(), weight.half(), None), "not implemented for 'Half'"),
        (lambda: OPS.conv3x3_bwd(grad_out[:1], input, weight, both), "shape of the output"),
        (lambda: OPS.conv3x3_bwd(grad_out.double(), input, weight, both), "share a dtype"),
        (
            lambda: OPS.conv3x3_bwd_bwd(cotangents[0][1:], None, grad_out, input, weight, three),
            "mask asks|shape of its tensor",
        ),
        (
            lambda: OPS.conv3x3_bwd_bwd(*cotangents[::-1], grad_out, input, weight, three),
            "shape of its tensor",
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
