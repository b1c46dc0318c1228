"""The Triton launcher of info_nce against mim4dd.reference, on the GPU or interpreted."""

import numpy as np
import pytest
import torch
from tolerance import assert_no_worse

from mim4dd import reference

SHAPES = [(1, 1, 8), (37, 101, 19), (64, 64, 32), (65, 129, 33)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def make_inputs(shape, dtype, device):
    n, m, d = shape
    query = torch.randn(n, d, device=device).to(dtype)
    key = torch.randn(m, d, device=device).to(dtype)
    labels = torch.randint(5, (n,), device=device)  # class 4 has no key
    key_labels = torch.randint(4, (m,), device=device)
    wide = torch.promote_types(dtype, torch.float32)
    return query, key, labels, key_labels, torch.tensor(2.0, dtype=wide, device=device)


def launch(*inputs):
    from mim4dd.kernels.info_nce import info_nce

    return info_nce(*inputs)


def widen(inputs, dtype):
    return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs]


def check(inputs):
    exact = reference.info_nce(*widen(inputs, torch.float64))
    plain = reference.info_nce(*inputs)
    for a, p, e in zip(launch(*inputs), plain, exact, strict=True):
        assert_no_worse(a, p, e)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, dtype, kernel_device):
    check(make_inputs(shape, dtype, kernel_device))


def test_strided_inputs(kernel_device):
    query, key, labels, key_labels, temperature = make_inputs(
        (40, 70, 24), torch.float32, kernel_device
    )
    check((query[:, ::2], key.T.contiguous().T[:, ::2], labels.repeat(2)[1:41], key_labels.int(),
           temperature))  # fmt: skip


def test_strides_beyond_32_bits(kernel_device):
    """Columns that lie 4 GiB apart; of the zeros between them no page is touched on a CPU."""
    storage = torch.from_numpy(np.zeros(2**31 + 8, np.float16)).to(kernel_device)
    query, key, *others = make_inputs((3, 4, 2), torch.float16, kernel_device)
    far = storage.as_strided((4, 2), (1, 2**31)).copy_(key)
    check((query, far, *others))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_keys_reach_every_row(bad, kernel_device):
    inputs = make_inputs((37, 101, 19), torch.float32, kernel_device)
    inputs[1][77, 3] = bad
    loss, lse = launch(*inputs)
    assert loss.isnan().all()
    assert lse.isnan().all()


def test_the_same_bits_every_time(kernel_device):
    inputs = make_inputs((64, 80, 16), torch.float32, kernel_device)
    first, second = launch(*inputs), launch(*inputs)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_logits_are_never_stored():
    inputs = make_inputs((8192, 8192, 64), torch.float32, "cuda")
    launch(*inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    launch(*inputs)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 2**20  # the logits alone are 256 MiB
