"""The Triton launchers of the contrastive losses against mim4dd.reference."""

import math

import numpy as np
import pytest
import torch
from tolerance import assert_no_worse

from mim4dd import reference
from mim4dd.reference import Critic

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
CRITICS = [
    Critic(),
    Critic(decoupled=True),
    Critic(exclude_self=True, hardness=0.5),
    Critic(normalize=True),
    Critic("in"),
    Critic("in", decoupled=True, exclude_self=True, hardness=0.3, normalize=True),
    Critic("nce"),
    Critic("nce", exclude_self=True, hardness=0.4, normalize=True),
]
NAN = float("nan")


def name(critic):
    options = [field for field in critic._fields[1:] if getattr(critic, field)]
    return "-".join([critic.kind, *options])


@pytest.fixture(params=["fused", "chunked"])
def backend(request, monkeypatch):
    """Both back-ends, whatever the shape; chunks of a few rows, so that there is more than one."""
    from mim4dd.kernels import _chunked, contrastive

    fused = request.param == "fused"
    monkeypatch.setattr(contrastive, "fuses", lambda query, key: fused)
    monkeypatch.setattr(_chunked, "WORKSPACE", 2**12)


class Case:
    """Inputs of one call, with upstream gradients that differ from row to row."""

    def __init__(self, sizes, dtype, device, *, by_index=False, bias=None, scale=1.7):
        n, m, dims = sizes
        wide = torch.promote_types(dtype, torch.float32)
        rows = {"device": device, "dtype": wide}
        self.query = [(torch.randn(n, d, **rows) / d**0.25).to(dtype) for d in dims]
        self.key = [(torch.randn(m, d, **rows) / d**0.25).to(dtype) for d in dims]
        # Class 4 has no key, and some take no part.
        self.labels = torch.randint(-1, 5, (n,), device=device)
        self.key_labels = torch.randint(-1, 4, (m,), device=device)
        if by_index:
            self.labels, self.key_labels = torch.randint(-1, m + 1, (n,), device=device), None
        self.scale = torch.tensor(scale, **rows)
        self.bias = None if bias is None else torch.tensor(bias, **rows)
        self.grad_loss = torch.randn(len(dims), n, **rows)
        self.grad_lse = torch.randn(len(dims), n, **rows)

    def call(self, function, critic, *others):
        scalars = (self.labels, self.key_labels, self.scale, self.bias)
        return function(self.query, self.key, *scalars, *critic, *others)

    def leaves(self, dtype):
        """query…, key…, scale[, bias], to differentiate by."""
        tensors = [*self.query, *self.key, self.scale] + [self.bias] * (self.bias is not None)
        return [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in tensors]

    def reference(self, critic, leaves, dtype):
        """loss, lse, weight, first-order gradients; all differentiable."""
        L = len(self.query)
        query, key, scale = leaves[:L], leaves[L : 2 * L], leaves[2 * L]
        bias = leaves[-1] if self.bias is not None else None
        layers = [
            reference.contrastive(q, k, self.labels, self.key_labels, scale, bias, critic)
            for q, k in zip(query, key, strict=True)
        ]
        loss, lse = (torch.stack([getattr(layer, f) for layer in layers]) for f in ("loss", "lse"))
        return loss, lse, layers[0].positive_weight


def first_order(case, critic, dtype, create_graph=False, upstream=None):
    leaves = case.leaves(dtype)
    loss, lse, weight = case.reference(critic, leaves, dtype)
    g, h = upstream or [u.to(dtype or u.dtype) for u in (case.grad_loss, case.grad_lse)]
    lse_part = (lse.where(lse.isfinite(), 0) * h).sum()
    gradients = torch.autograd.grad(
        (loss * g).sum() + lse_part, leaves, create_graph=create_graph, materialize_grads=True
    )
    return leaves, (loss, lse, weight), gradients


def run(case, critic, with_lse=True):
    from mim4dd.kernels import contrastive as kernels

    loss, lse, weight, _ = case.call(kernels.contrastive, critic, [False] * 4)
    wanted = [True, True, True, case.bias is not None]
    grad_lse = case.grad_lse if with_lse else None
    grads = case.call(
        kernels.contrastive_bwd, critic, lse, weight, case.grad_loss, grad_lse, wanted
    )
    return (loss, lse, weight), grads


def check(case, critic):
    values, gradients = run(case, critic)
    _, exact_values, exact_gradients = first_order(case, critic, torch.float64)
    _, plain_values, plain_gradients = first_order(case, critic, None)
    for a, p, e in zip(values, plain_values, exact_values, strict=True):
        finite = e.isfinite()
        assert torch.equal(a[~finite].double(), e[~finite])
        assert_no_worse(a[finite], p[finite], e[finite])
    for a, p, e in zip(gradients, plain_gradients, exact_gradients, strict=True):
        assert_no_worse(a, p, e)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("critic", CRITICS, ids=name)
def test_values_and_gradients(critic, dtype, backend, kernel_device):
    bias = 0.3 if critic == CRITICS[-1] else None
    check(Case((37, 41, [19]), dtype, kernel_device, bias=bias), critic)
