"""norm_relu_pool: values, two derivatives, layouts, bounds of memory, errors."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_no_worse, sum_rounding

from mim4dd import norm_relu_pool, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
OPS = torch.ops.mim4dd
HUGE = (5, 2**31, 2**62)  # windows larger than the maps


class Case(NamedTuple):
    batch: int
    channels: int
    height: int
    width: int
    num_groups: int
    pool: int

    def __str__(self):
        return f"{self.batch}x{self.channels}x{self.height}x{self.width}-{self[4]}-{self[5]}"

    @property
    def options(self):
        return {"num_groups": self.num_groups, "pool": self.pool}


CASES = [
    Case(2, 8, 32, 32, 8, 2),  # instance norm
    Case(2, 5, 16, 16, 5, 2),  # widths with a path of their own
    Case(3, 5, 8, 8, 5, 2),
    Case(1, 6, 5, 7, 2, 2),  # what windows leave over
    Case(3, 37, 9, 4, 37, 2),  # odd channels: rests of vectors
    Case(2, 24, 7, 8, 1, 3),  # layer norm, a window without a path of its own
    Case(2, 40, 6, 6, 4, 1),  # no pooling
    Case(1, 3, 70, 130, 3, 2),  # a plane longer than the scratch for a chunk is wide
    Case(2, 2, 131, 128, 1, 4),  # several chunks and several planes per group
    Case(1, 3, 17, 16, 3, 8),  # windows too large to load at once
    Case(2, 4, 11, 10, 2, 5),
]


def make(case, dtype=torch.float64, device="cpu", layout=torch.contiguous_format, offset=0.0):
    """input, weight, bias, and the cotangents of the output and of the three gradients."""
    wide = {"dtype": torch.promote_types(dtype, torch.float32), "device": device}
    shape = case[:4]
    out_shape = (*shape[:2], case.height // case.pool, case.width // case.pool)
    images = [torch.randn(shape, **wide) * 1.7 + offset, torch.randn(out_shape, **wide)]
    images.append(torch.randn(shape, **wide))
    x, grad_out, along = (t.to(dtype).contiguous(memory_format=layout) for t in images)
    weight, bias, along_w, along_b = (torch.randn(case.channels, **wide).to(dtype) for _ in "1234")
    return [x, weight, bias], grad_out, [along, along_w, along_b]


def make_off_the_kink(case, dtype, device, layout):
    """The same, drawn again while rounding could decide what the ReLU lets through."""
    while True:
        drawn = make(case, dtype, device, layout)
        x, weight, bias = (t.double() for t in drawn[0])
        if F.group_norm(x, case.num_groups, weight, bias).abs().amin() > 1e-5:
            return drawn


def plain(input, weight, bias, *, num_groups, pool):
    return F.avg_pool2d(F.group_norm(input, num_groups, weight, bias).relu(), pool)


def derivatives(function, inputs, grad_out, tangents, options):
    """The value, both orders of gradients, and which inputs they are of."""
    leaves = [t.detach().clone().requires_grad_() for t in (*inputs, grad_out)]
    value = function(*leaves[:3], **options)
    first = torch.autograd.grad(value, leaves[:3], leaves[3], create_graph=True)
    second = torch.autograd.grad(first, leaves, tangents)
    return [value.detach(), *(t.detach() for t in first), *second]


def of_double(function, inputs, grad_out, tangents, options):
    wide = [[t.double() for t in part] for part in (inputs, [grad_out], tangents)]
    return derivatives(function, wide[0], wide[1][0], wide[2], options)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_both_derivatives(case, dtype, layout, device):
    inputs, grad_out, tangents = make_off_the_kink(case, dtype, device, layout)
    ours = derivatives(norm_relu_pool, inputs, grad_out, tangents, case.options)
    # In half precision the plain operators round every intermediate; the definition does not.
    function = plain if dtype in DTYPES[:2] else reference_of
    theirs = derivatives(function, inputs, grad_out, tangents, case.options)
    exact, rounding = exact_and_rounding(case, dtype, inputs, grad_out, tangents)
    for actual, of_torch, right, off in zip(ours, theirs, exact, rounding, strict=True):
        scale = right.abs().amax().clamp(min=1)
        narrow = scale.to(dtype)
        assert_no_worse(actual / narrow, of_torch / narrow, right / scale, off / scale)


def exact_and_rounding(case, dtype, inputs, grad_out, tangents):
    """Float64 results, and what the sums behind those of weight and bias may round off.

    A weight of every pixel's own has the terms of such a sum for a gradient.
    """

    def of_every_pixel(tensor):
        return tensor[:, None, None].expand(case[:4]) if tensor.ndim == 1 else tensor

    def plain_of_pixels(input, weight, bias, *, num_groups, pool):
        return F.avg_pool2d((F.group_norm(input, num_groups) * weight + bias).relu(), pool)

    spread = [[of_every_pixel(t) for t in part] for part in (inputs, tangents)]
    terms = of_double(plain_of_pixels, spread[0], grad_out, spread[1], case.options)
    # In the order of derivatives(): of weight and bias, first and second.
    exact, rounding = list(terms), [0.0] * len(terms)
    for i in (2, 3, 5, 6):
        exact[i] = terms[i].sum((0, 2, 3))
        rounding[i] = sum_rounding(terms[i], (0, 2, 3), dtype)
    return exact, rounding


def reference_of(input, weight, bias, *, num_groups, pool):
    return reference.norm_relu_pool(input, weight, bias, num_groups, pool, 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_a_mean_far_above_the_deviation(offset, layout, device):
    """E[x²] − E[x]² would have no digit left."""
    case = Case(2, 32, 16, 16, 32, 2)
    inputs, *_ = make(case, torch.float32, device, layout, offset)
    wide = inputs[0].double()
    exact = plain(*(t.double() for t in inputs), **case.options)
    # The mean is a number of the same size, and rounded: two units in its last place.
    largest = (inputs[1].abs() / wide.std((2, 3))).amax()
    error = (norm_relu_pool(*inputs, **case.options) - exact).abs().amax()
    assert error <= 2 * offset * 2**-23 * largest + 1e-5
    # No deviation at all: eps alone divides, and nothing of the mean is left.
    constant = [torch.full_like(inputs[0], offset), *inputs[1:]]
    expected = inputs[2].clamp(min=0)[:, None, None].expand(2, -1, 8, 8)
    torch.testing.assert_close(norm_relu_pool(*constant, **case.options), expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layout_and_strides(layout, device):
    case = Case(2, 8, 6, 6, 4, 2)
    inputs, grad_out, _ = make(case, torch.float32, device, layout)
    leaf = inputs[0].requires_grad_()
    out = norm_relu_pool(leaf, *inputs[1:], **case.options)
    assert out.is_contiguous(memory_format=layout)
    other = LAYOUTS[layout == LAYOUTS[0]]
    (grad,) = torch.autograd.grad(out, leaf, grad_out.contiguous(memory_format=other))
    assert grad.is_contiguous(memory_format=layout)
    # Every second pixel of a larger map, and a gradient that is one number expanded.
    strided = torch.zeros(2, 8, 6, 12, device=device)
    strided[..., ::2] = leaf.detach()
    assert torch.equal(
        norm_relu_pool(strided[..., ::2], *inputs[1:], **case.options),
        norm_relu_pool(leaf.detach().contiguous(), *inputs[1:], **case.options),
    )
    one = torch.ones((), device=device).expand_as(grad_out)
    expected = torch.autograd.grad(plain(leaf, *inputs[1:], **case.options), leaf, one)
    actual = torch.autograd.grad(norm_relu_pool(leaf, *inputs[1:], **case.options), leaf, one)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("case", [Case(2, 4, 5, 4, 2, 2), Case(1, 3, 4, 4, 3, 1)], ids=str)
def test_derivatives_by_finite_differences(case, affine, layout, device):
    (x, weight, bias), *_ = make(case, torch.float64, device, layout)
    inputs = tuple(t.requires_grad_() for t in ((x, weight, bias) if affine else (x,)))
    none = () if affine else (None, None)

    def call(*given):
        return norm_relu_pool(*given, *none, **case.options)

    # Small steps: a larger one crosses the kink of a ReLU.
    assert torch.autograd.gradcheck(call, inputs, eps=1e-7, atol=1e-5)
    assert torch.autograd.gradgradcheck(call, inputs, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("present", range(1, 8))
def test_any_cotangents_and_any_wanted(present, layout, device):
    """Each of the three cotangents there or not; each result alone."""
    case = Case(2, 6, 6, 5, 3, 2)
    inputs, grad_out, tangents = make(case, torch.float64, device, layout)
    leaves = [t.requires_grad_() for t in (*inputs, grad_out)]
    there = [bool(present >> i & 1) for i in range(3)]

    def second(function, wanted):
        value = function(*leaves[:3], **case.options)
        first = torch.autograd.grad(value, leaves[:3], leaves[3], create_graph=True)
        kept = [(a, t) for a, t, has in zip(first, tangents, there, strict=True) if has]
        outputs, cotangents = zip(*kept, strict=True)
        return torch.autograd.grad(
            outputs, wanted, cotangents, allow_unused=True, materialize_grads=True
        )

    expected = second(plain, leaves)
    torch.testing.assert_close(second(norm_relu_pool, leaves), expected)
    for leaf, alone in zip(leaves, expected, strict=True):
        torch.testing.assert_close(second(norm_relu_pool, [leaf])[0], alone)


@pytest.mark.parametrize("wanted", range(1, 8))
def test_only_the_gradients_that_are_needed(wanted, device):
    case = Case(2, 4, 4, 4, 4, 2)
    inputs, grad_out, _ = make(case, torch.float64, device)
    leaves = [t.requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(inputs)]
    needed = [leaf for leaf in leaves if leaf.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(norm_relu_pool(*leaves, **case.options), needed, grad_out),
        torch.autograd.grad(plain(*leaves, **case.options), needed, grad_out),
    )


def test_unwanted_results_are_empty(device):
    case = Case(2, 4, 4, 4, 2, 2)
    inputs, grad_out, tangents = make(case, torch.float32, device)
    _, mean, rstd = OPS.norm_relu_pool(*inputs, 2, 2, 1e-5)
    saved = (grad_out, *inputs, mean, rstd, 2, 2)
    assert [t.numel() for t in OPS.norm_relu_pool_bwd(*saved, False, False, False)] == [0, 0, 0]
    results = OPS.norm_relu_pool_bwd_bwd(*tangents, *saved, False, True, False)
    assert [t.numel() for t in results] == [0, inputs[0].numel(), 0]


def test_a_third_derivative_is_refused(device):
    case = Case(1, 2, 4, 4, 2, 2)
    (x, weight, bias), grad_out, (along, *_) = make(case, torch.float64, device)
    x.requires_grad_()
    value = norm_relu_pool(x, weight, bias, **case.options)
    (first,) = torch.autograd.grad(value, x, grad_out, create_graph=True)
    (second,) = torch.autograd.grad(first, x, along, create_graph=True)
    with pytest.raises(RuntimeError, match="has two derivatives, and a third"):
        torch.autograd.grad(second.sum(), x)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nan_and_inf_stay_visible(layout, device):
    case = Case(2, 3, 4, 4, 3, 2)
    (x, weight, bias), *_ = make(case, torch.float32, device, layout)
    x[0, 0, 0, 0], x[0, 1, 3, 3] = torch.nan, torch.inf
    out = norm_relu_pool(x, weight, bias, **case.options)
    assert out[0, :2].isnan().all()
    assert out[0, 2].isfinite().all()
    assert out[1].isfinite().all()


def test_the_derivative_of_relu_at_zero_is_zero(device):
    x = torch.tensor([-1.0, 0.0, 0.0, 1.0], device=device).view(1, 1, 2, 2).requires_grad_()
    bias = torch.zeros(1, device=device, requires_grad=True)
    out = norm_relu_pool(x, None, bias, num_groups=1, pool=1)
    (grad,) = torch.autograd.grad(out.sum(), bias)
    assert grad.item() == 1


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_same_bits_on_any_number_of_threads(layout):
    case = Case(5, 48, 12, 12, 16, 2)
    inputs, grad_out, tangents = make(case, torch.float32, "cpu", layout)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(derivatives(norm_relu_pool, inputs, grad_out, tangents, case.options))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_float32_parameters_of_half_precision_maps(device):
    case = Case(2, 4, 6, 6, 4, 2)
    (x, weight, bias), grad_out, _ = make(case, torch.bfloat16, device)
    weight, bias = weight.float().requires_grad_(), bias.float().requires_grad_()
    out = norm_relu_pool(x, weight, bias, **case.options)
    grads = torch.autograd.grad(out, (weight, bias), grad_out)
    assert out.dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_no_samples(device):
    x = torch.zeros(0, 4, 6, 6, device=device, requires_grad=True)
    weight = torch.ones(4, device=device, requires_grad=True)
    out = norm_relu_pool(x, weight, None, num_groups=4)
    assert out.shape == (0, 4, 3, 3)
    grads = torch.autograd.grad(out.sum(), (x, weight))
    assert grads[0].shape == x.shape
    assert torch.equal(grads[1], torch.zeros_like(weight))


def assert_nothing_is_read_out_of_bounds(ops, device):
    inputs, grad_out, (along, *_) = make(Case(2, 4, 4, 4, 2, 2), torch.float32, device)
    _, mean, rstd = ops.norm_relu_pool(*inputs, 2, 2, 1e-5)
    with pytest.raises(RuntimeError, match="weight must have 4 elements"):
        ops.norm_relu_pool(inputs[0], inputs[1][:3], inputs[2], 2, 2, 1e-5)
    with pytest.raises(RuntimeError, match="num_groups must divide 4"):
        ops.norm_relu_pool(*inputs, 3, 2, 1e-5)
    with pytest.raises(RuntimeError, match="pool must be positive"):
        ops.norm_relu_pool(*inputs, 2, 0, 1e-5)
    with pytest.raises(RuntimeError, match="grad_out must be"):
        ops.norm_relu_pool_bwd(grad_out[:1], *inputs, mean, rstd, 2, 2, True, True, True)
    with pytest.raises(RuntimeError, match="mean must have 4 elements"):
        ops.norm_relu_pool_bwd(grad_out, *inputs, mean[:1], rstd, 2, 2, True, True, True)
    rest = (grad_out, *inputs, mean, rstd, 2, 2, True, True, True)
    with pytest.raises(RuntimeError, match="tangent_input must be"):
        ops.norm_relu_pool_bwd_bwd(along.double(), None, None, *rest)


def test_the_bare_op_reads_nothing_out_of_bounds(device):
    assert_nothing_is_read_out_of_bounds(OPS, device)


def assert_zeros_of_a_window_that_fits_nowhere(ops, pool, layout, device):
    inputs, *_ = make(Case(2, 4, 4, 4, 2, 1), torch.float32, device, layout)
    out, mean, rstd = ops.norm_relu_pool(*inputs, 2, pool, 1e-5)
    assert out.shape == (2, 4, 0, 0)
    for gradient in ops.norm_relu_pool_bwd(out, *inputs, mean, rstd, 2, pool, *(True,) * 3):
        assert (gradient == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("pool", HUGE)
def test_the_bare_op_with_a_window_that_fits_nowhere(pool, layout, device):
    assert_zeros_of_a_window_that_fits_nowhere(OPS, pool, layout, device)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": torch.zeros(4, 6, 6)}, ValueError, "input must be 4-d"),
        ({"input": torch.zeros(2, 4, 6, 6).int()}, TypeError, "input must be one of float32"),
        ({"weight": torch.zeros(3)}, ValueError, "weight must have one element for each"),
        ({"bias": torch.zeros(1, 4)}, ValueError, "bias must be 1-d"),
        ({"bias": torch.zeros(4).double()}, TypeError, "bias must be torch.float32"),
        ({"weight": torch.zeros(4, device="meta")}, ValueError, "one device"),
        ({"num_groups": 3}, ValueError, "num_groups must divide the 4 channels, got 3"),
        ({"num_groups": 0}, ValueError, "num_groups must divide"),
        ({"pool": 0}, ValueError, "pool must be from 1 to"),
        ({"pool": 7}, ValueError, r"pool must be from 1 to min\(H, W\) = 6, got 7"),
        ({"pool": 2.0}, ValueError, "pool must be from 1 to"),
        ({"eps": 0.0}, ValueError, "eps must be positive"),
        ({"backend": "triton"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {
        "input": torch.zeros(2, 4, 6, 6),
        "weight": torch.ones(4),
        "bias": None,
        "num_groups": 2,
    }
    with pytest.raises(error, match=message):
        norm_relu_pool(**(arguments | change))
