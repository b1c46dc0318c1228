"""The Triton launchers of norm_relu_pool against plain PyTorch in float64."""

import pytest
import torch
from ops.test_norm_relu_pool import (
    DTYPES,
    HUGE,
    LAYOUTS,
    Case,
    assert_nothing_is_read_out_of_bounds,
    assert_zeros_of_a_window_that_fits_nowhere,
    make,
    of_double,
    plain,
    reference_of,
)
from ops.test_norm_relu_pool import derivatives as of_autograd
from tolerance import assert_no_worse

CASES = [
    Case(2, 5, 8, 8, 5, 2),  # instance norm
    Case(2, 6, 5, 7, 2, 2),  # what windows leave over
    Case(1, 37, 4, 6, 37, 2),  # more channels than a tile
    Case(2, 34, 4, 4, 1, 2),  # layer norm, several tiles per group
    Case(1, 4, 7, 8, 2, 3),
    Case(2, 3, 5, 5, 3, 1),  # no pooling
    Case(1, 2, 50, 48, 2, 2),  # several steps over a plane
]
# Every case in float32, and two in each other dtype: rests, and several tiles.
CASES_OF_DTYPES = [(case, torch.float32) for case in CASES]
CASES_OF_DTYPES += [(CASES[i], dtype) for dtype in DTYPES if dtype != torch.float32 for i in (1, 3)]


def launched(inputs, grad_out, tangents, case):
    """The value, the first derivatives, and the second by input, weight, bias, grad_out."""
    from mim4dd.kernels import norm_relu_pool as kernels

    options = (case.num_groups, case.pool)
    value, mean, rstd = kernels.norm_relu_pool(*inputs, *options, 1e-5)
    saved = (grad_out, *inputs, mean, rstd, *options)
    first = kernels.norm_relu_pool_bwd(*saved, True, True, True)
    on_grad_out, on_input, on_weight = kernels.norm_relu_pool_bwd_bwd(
        *tangents, *saved, True, True, True
    )
    return [value, *first, on_input, on_weight, torch.zeros_like(inputs[2]), on_grad_out]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("case", "dtype"), CASES_OF_DTYPES, ids=str)
def test_value_and_both_derivatives(case, dtype, layout, kernel_device):
    inputs, grad_out, tangents = make(case, dtype, kernel_device, layout)
    ours = launched(inputs, grad_out, tangents, case)
    function = plain if dtype in DTYPES[:2] else reference_of
    theirs = of_autograd(function, inputs, grad_out, tangents, case.options)
    exact = of_double(plain, inputs, grad_out, tangents, case.options)
    for actual, of_torch, right in zip(ours, theirs, exact, strict=True):
        scale = right.abs().amax().clamp(min=1)
        assert_no_worse(actual / scale.to(dtype), of_torch / scale.to(dtype), right / scale)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_without_affine_and_with_one_cotangent(layout, kernel_device):
    from mim4dd.kernels import norm_relu_pool as kernels

    case = Case(2, 6, 5, 6, 3, 2)
    (x, weight, _), grad_out, tangents = make(case, torch.float64, kernel_device, layout)
    value, mean, rstd = kernels.norm_relu_pool(x, None, None, 3, 2, 1e-5)
    x.requires_grad_(), grad_out.requires_grad_()
    expected = plain(x, None, None, **case.options)
    torch.testing.assert_close(value, expected)
    (first,) = torch.autograd.grad(expected, x, grad_out, create_graph=True)
    saved = (grad_out.detach(), x.detach(), None, None, mean, rstd, 3, 2)
    assert [t.numel() for t in kernels.norm_relu_pool_bwd(*saved, False, False, False)] == [0] * 3
    torch.testing.assert_close(kernels.norm_relu_pool_bwd(*saved, True, False, False)[0], first)
    second = torch.autograd.grad(first, (grad_out, x), tangents[0])
    ours = kernels.norm_relu_pool_bwd_bwd(tangents[0], None, None, *saved, True, True, False)
    torch.testing.assert_close(ours[:2], second)
    # The other two cotangents alone.
    saved = (grad_out.detach(), x.detach(), weight, None, mean, rstd, 3, 2)
    weight.requires_grad_()
    bias = torch.zeros_like(weight, requires_grad=True)
    expected = plain(x, weight, bias, **case.options)
    first = torch.autograd.grad(expected, (weight, bias), grad_out, create_graph=True)
    second = torch.autograd.grad(first, (grad_out, x), tangents[1:])
    ours = kernels.norm_relu_pool_bwd_bwd(None, *tangents[1:], *saved, True, True, False)
    torch.testing.assert_close(ours[:2], second)


def test_a_mean_far_above_the_deviation(kernel_device):
    from mim4dd.kernels import norm_relu_pool as kernels

    case = Case(2, 5, 8, 8, 5, 2)
    inputs, *_ = make(case, torch.float32, kernel_device, offset=1e3)
    exact = plain(*(t.double() for t in inputs), **case.options)
    actual = kernels.norm_relu_pool(*inputs, 5, 2, 1e-5)[0]
    # The mean is a number of the same size, and rounded: two units in its last place.
    largest = (inputs[1].abs() / inputs[0].double().std((2, 3))).amax()
    assert (actual - exact).abs().amax() <= 2 * 1e3 * 2**-23 * largest + 1e-5


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nan_stays_visible(layout, kernel_device):
    from mim4dd.kernels import norm_relu_pool as kernels

    (x, weight, bias), *_ = make(Case(2, 3, 4, 4, 3, 2), torch.float32, kernel_device, layout)
    x[0, 0, 0, 0], x[0, 1, 3, 3] = torch.nan, torch.inf
    out = kernels.norm_relu_pool(x, weight, bias, 3, 2, 1e-5)[0]
    assert out[0, :2].isnan().all()
    assert out[0, 2].isfinite().all()
    assert out[1].isfinite().all()


def test_the_same_bits_every_time(kernel_device):
    # The interpreter runs one program after the other.
    case = Case(3, 40, 6, 6, 8, 2) if kernel_device == "cuda" else Case(2, 6, 4, 4, 3, 2)
    given = make(case, torch.float32, kernel_device)
    first, second = launched(*given, case), launched(*given, case)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_does_not_fit_is_refused(kernel_device):
    from mim4dd.kernels import norm_relu_pool as kernels

    assert_nothing_is_read_out_of_bounds(kernels, kernel_device)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("pool", HUGE)
def test_a_window_that_fits_nowhere(pool, layout, kernel_device):
    from mim4dd.kernels import norm_relu_pool as kernels

    assert_zeros_of_a_window_that_fits_nowhere(kernels, pool, layout, kernel_device)
