"""nce: the binary critic against its definition pair by pair, gradients, errors."""

import math

import pytest
import torch
from labelled import make_labelled

from mim4dd import nce

SHAPES = [(1, 1, 4), (16, 40, 8), (37, 23, 5)]


def by_pairs(query, key, labels, key_labels, temperature, bias):
    """h = P / (P + N/M) with P = exp(s), as the papers write it; bias stands for -log(N/M)."""
    losses = []
    for q, label in zip(query, labels, strict=True):
        positive = key_labels == label
        if not positive.any():
            losses.append(0 * q.sum())
            continue
        similarity = torch.exp(key @ q / temperature)
        ratio = max(1, int((~positive).sum())) / len(key) if bias is None else math.exp(-bias)
        h = similarity / (similarity + ratio)
        losses.append(-h[positive].log().sum() - (1 - h[~positive]).log().sum())
    return torch.stack(losses)


@pytest.mark.parametrize("bias", [None, -2.5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(shape, bias, device):
    query, key, labels, key_labels = make_labelled(shape, device)
    upstream = torch.randn(shape[0], dtype=torch.float64, device=device)
    actual = nce(query, key, labels, key_labels, temperature=0.3, bias=bias, reduction="none")
    expected = by_pairs(query, key, labels, key_labels, 0.3, bias)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, (query, key), upstream),
        torch.autograd.grad(expected, (query, key), upstream),
    )


def test_derivatives(device):
    query, key, labels, key_labels = make_labelled((4, 6, 3), device)
    scalars = torch.tensor([0.5, -1.0], dtype=torch.float64, device=device)
    temperature, bias = (scalar.clone().requires_grad_() for scalar in scalars)

    def loss(query, key, temperature, bias):
        return nce(
            query, key, labels, key_labels, temperature=temperature, bias=bias, reduction="none"
        )

    assert torch.autograd.gradcheck(loss, (query, key, temperature, bias))
    assert torch.autograd.gradgradcheck(loss, (query, key, temperature, bias))


def test_extreme_logits_stay_finite(device):
    query, key, labels, key_labels = make_labelled((8, 9, 4), device)
    assert nce(query, key, labels, key_labels, temperature=1e-6).isfinite()


def test_infinite_features_give_nan(device):
    query, key, labels, key_labels = (
        tensor.detach() for tensor in make_labelled((8, 9, 4), device)
    )
    key[2, 1] = -torch.inf
    assert nce(query, key, labels, key_labels).isnan()


@pytest.mark.parametrize(
    ("bias", "error", "message"),
    [
        (math.nan, ValueError, "bias must be finite"),
        (torch.zeros(2), ValueError, "bias must be 0-d"),
        (torch.tensor(1), TypeError, "bias must have a floating-point"),
    ],
)
def test_bad_bias(bias, error, message):
    with pytest.raises(error, match=message):
        nce(*make_labelled((4, 4, 2), "cpu"), bias=bias)
