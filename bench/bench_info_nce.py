"""info_nce with the positives on the diagonal, against the same loss in PyTorch."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from tolerance import assert_no_worse

from mim4dd import info_nce

TEMPERATURE = 0.1


class Case(NamedTuple):
    num_queries: int  # N = M
    dimension: int
    dtype: str
    backward: bool

    def __str__(self) -> str:
        direction = "forward+backward" if self.backward else "forward"
        return f"N=M={self.num_queries} D={self.dimension} {self.dtype} {direction}"


CASES = {
    "tiny": [Case(33, 8, "float32", backward) for backward in (False, True)],
    "full": [
        Case(num_queries, 128, dtype, backward)
        for num_queries in (512, 2048, 8192)
        for dtype in ("float32", *(("bfloat16",) if torch.cuda.is_available() else ()))
        for backward in (False, True)
    ],
}


def cross_entropy(query, key):
    return F.cross_entropy(query @ key.T / TEMPERATURE, torch.arange(len(key), device=key.device))


PROVIDERS = {
    "mim4dd": lambda query, key: info_nce(query, key, temperature=TEMPERATURE),
    "reference": lambda query, key: info_nce(
        query, key, temperature=TEMPERATURE, backend="reference"
    ),
    "cross_entropy": cross_entropy,
}


def values(loss, query, key, backward):
    """Loss, and with it both gradients."""
    if not backward:
        with torch.no_grad():
            return (loss(query, key),)
    value = loss(query, key)
    return (value.detach(), *torch.autograd.grad(value, (query, key)))


def bench_info_nce(case, provider, device, measure):
    rows = torch.randn(2, case.num_queries, case.dimension, device=device)
    query, key = F.normalize(rows, dim=-1).to(getattr(torch, case.dtype))
    query.requires_grad_(), key.requires_grad_()
    plain = values(PROVIDERS["reference"], query, key, case.backward)
    doubles = (tensor.detach().double().requires_grad_() for tensor in (query, key))
    exact = values(PROVIDERS["reference"], *doubles, case.backward)

    def check(actual):
        for ours, same_dtype, truth in zip(actual, plain, exact, strict=True):
            # A peer may return its loss in half precision: compare it in the reference's dtype.
            assert_no_worse(ours.to(same_dtype.dtype), same_dtype, truth)

    num_gemms = 3 if case.backward else 1
    measure(
        lambda: values(PROVIDERS[provider], query, key, case.backward),
        check,
        flop=2 * num_gemms * case.num_queries**2 * case.dimension,
    )
