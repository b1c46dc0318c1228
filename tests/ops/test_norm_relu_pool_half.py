"""norm_relu_pool of half precision on a CPU: float32 arithmetic, rounded once, bit for bit."""

import pytest
import torch
from ops.test_norm_relu_pool import CASES, LAYOUTS, Case, make

OPS = torch.ops.mim4dd
HALVES = [torch.bfloat16, torch.float16]
# Beside the usual ones: several blocks of channels a sample, and several images a task.
OF_PIECES = [*CASES, Case(2, 160, 32, 32, 80, 2), Case(70, 3, 4, 4, 3, 2), Case(2, 4, 3, 3, 2, 4)]


def every_result(inputs, grad_out, tangents, case):
    """What the ops of value and derivatives return, and what they do with half of it asked for."""
    options = (case.num_groups, case.pool)
    out, mean, rstd = OPS.norm_relu_pool(*inputs, *options, 1e-5)
    saved = (grad_out, *inputs, mean, rstd, *options)
    along, *of_numbers = tangents
    return [
        *(out, mean, rstd),
        *OPS.norm_relu_pool_bwd(*saved, True, True, True),
        *OPS.norm_relu_pool_bwd(*saved, False, True, True),
        *OPS.norm_relu_pool_bwd_bwd(*tangents, *saved, True, True, True),
        *OPS.norm_relu_pool_bwd_bwd(None, *of_numbers, *saved, False, True, True),
        *OPS.norm_relu_pool_bwd_bwd(along, None, None, *saved, True, False, True),
    ]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", OF_PIECES, ids=str)
def test_the_same_bits_as_in_float32(case, dtype, layout):
    inputs, grad_out, tangents = make(case, dtype, "cpu", layout)
    wide = [[t.float() for t in part] for part in (inputs, [grad_out], tangents)]
    expected = every_result(wide[0], wide[1][0], wide[2], case)
    for actual, right in zip(every_result(inputs, grad_out, tangents, case), expected, strict=True):
        assert actual.is_contiguous(memory_format=layout) or actual.ndim != 4
        bits = torch.int16 if actual.dtype == dtype else torch.int32
        assert torch.equal(actual.view(bits), right.to(actual.dtype).view(bits))


def of_channels(numbers):
    """One number per channel, in the first of two pixels: (1, C, 1, 2), channels-last."""
    image = torch.stack([numbers, torch.zeros_like(numbers)], -1)[None, :, None]
    return image.contiguous(memory_format=torch.channels_last)


def of_constant_maps(like):
    """Input, weight and bias whose normalised map is 1, and its statistics."""
    inputs = (of_channels(torch.zeros_like(like)), None, torch.ones(len(like)))
    return inputs, OPS.norm_relu_pool(*inputs, len(like), 1, 1e-5)[1:]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_precision_number_is_widened_exactly(dtype):
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    inputs, statistics = of_constant_maps(numbers)
    rest = (*inputs, *statistics, len(numbers), 1, False, False, True)
    of_bias = OPS.norm_relu_pool_bwd(of_channels(numbers), *rest)[2]
    torch.testing.assert_close(of_bias, numbers.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_results_are_rounded_to_nearest_even(dtype):
    """All numbers of half precision, those halfway between two, and their neighbours."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float().view(torch.int32)
    step = 1 << (15 if dtype == torch.bfloat16 else 12)
    subnormal = ((torch.arange(1025) + 0.5) * 2.0**-24).view(torch.int32)  # of float16
    bits = [halves, *(middle + i for middle in (halves + step, subnormal) for i in (-1, 0, 1))]
    numbers = torch.cat([*bits, torch.randint(-(2**31), 2**31, (2**16,))]).int().view(torch.float32)
    inputs, statistics = of_constant_maps(numbers.to(dtype))
    saved = (inputs[0], *inputs, *statistics, len(numbers), 1)
    # The output moves by as much as the bias.
    result = OPS.norm_relu_pool_bwd_bwd(None, None, numbers, *saved, True, False, False)[0]
    expected = numbers.to(dtype)[None, :, None, None].expand(result.shape)
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
