"""clip_loss: both directions against the textbook form, derivatives, registration, errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from paired import both_directions, make_inputs, moved_by_rounding
from tolerance import assert_norm_no_worse
from torch.library import opcheck

from mim4dd import clip_loss


def textbook(query, key, logit_scale):
    """The loss of CLIP's paper, by pair."""
    return sum(both_directions(query, key, logit_scale)) / 2


def run(fn, query, key, scale, upstream):
    scale = scale.detach().requires_grad_()
    loss = fn(query, key, scale)
    return loss, *torch.autograd.grad(loss, (query, key, scale), upstream.to(loss.dtype))


def ours(query, key, scale):
    return clip_loss(query, key, logit_scale=scale, reduction="none")


# Logits up to 40 need no shift, larger ones do; 600 pairs are several tiles in every direction.
@pytest.mark.parametrize("spread", [1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (33, 17), (600, 8)], ids=str)
def test_values_and_gradients(shape, dtype, spread, device):
    query, key = make_inputs(*shape, dtype, device, spread)
    scale = torch.tensor(7.0, dtype=dtype, device=device)
    upstream = torch.rand(shape[0], device=device)
    doubles = [tensor.detach().double().requires_grad_() for tensor in (query, key)]
    exact = run(textbook, *doubles, scale.double(), upstream)
    plain = run(textbook, query, key, scale, upstream)
    actual = run(ours, query, key, scale, upstream)
    sides = [d.detach() for d in doubles]
    *moved, _ = moved_by_rounding(*sides, scale.double(), [upstream / 2] * 2, dtype)
    for a, p, e, rounding in zip(actual[:3], plain[:3], exact[:3], (0, *moved), strict=True):
        assert_norm_no_worse(a, p, e, rounding)
    size = 2 * spread * upstream.sum()  # of the terms that the last gradient sums
    assert (actual[3] - exact[3]).abs() <= 8 * torch.finfo(dtype).eps * size


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("spread", [1.0, 500.0])
def test_derivatives_of_first_and_second_order(spread, normalize, device):
    query, key = make_inputs(5, 3, torch.float64, device, spread)
    size = 1.0 if normalize else spread
    scale = torch.tensor(2.0 / size, dtype=torch.float64, device=device, requires_grad=True)

    def losses(query, key, scale):
        return clip_loss(query, key, logit_scale=scale, normalize=normalize, reduction="none")

    assert torch.autograd.gradcheck(losses, (query, key, scale))
    assert torch.autograd.gradgradcheck(losses, (query, key, scale))


def test_options_are_the_mean_of_two_info_nce(device):
    query, key = (3 * tensor for tensor in make_inputs(7, 4, torch.float64, device))
    unit = [F.normalize(tensor, dim=1) for tensor in (query, key)]
    expected = textbook(*unit, 1 / 0.2)
    arguments = {"temperature": 0.2, "normalize": True}
    for reduction, value in (
        ("none", expected),
        ("sum", expected.sum()),
        ("mean", expected.mean()),
    ):
        for backend in (None, "reference"):
            actual = clip_loss(query, key, reduction=reduction, backend=backend, **arguments)
            torch.testing.assert_close(actual, value)
    every_own = torch.arange(7, device=device)
    torch.testing.assert_close(
        clip_loss(query, key, labels=every_own, **arguments), expected.mean()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_normalised_in_full(dtype, device):
    """Unit rows, rounded to half, would move these losses by a hundred times the tolerance."""
    query, key = (30 * side.detach() for side in make_inputs(40, 16, dtype, device))
    query.requires_grad_()
    exact_query = query.detach().double().requires_grad_()
    loss = clip_loss(query, key, normalize=True, temperature=0.05, reduction="none")
    exact = textbook(F.normalize(exact_query), F.normalize(key.double()), 1 / 0.05)
    torch.testing.assert_close(loss, exact.float(), rtol=1e-5, atol=1e-5)
    # As a loss scaler does: the gradients of unit rows, 30 times these, are too large for float16.
    size = 1e6
    (actual,) = torch.autograd.grad(loss.mean(), query, torch.tensor(size, device=device))
    (expected,) = torch.autograd.grad(exact.mean(), exact_query)
    assert actual.dtype == dtype
    error = (actual.double() / size - expected).norm()
    assert error <= 2 * torch.finfo(dtype).eps * expected.norm()


def test_labels_make_several_positives(device):
    query, key = make_inputs(8, 5, torch.float64, device)
    labels = torch.tensor([0, 0, 1, 1, 2, 3, 3, -1], device=device)
    same = (labels[:, None] == labels)[:7, :7].double()
    logits = 10 * query[:7] @ key[:7].T
    target = same / same.sum(1, keepdim=True)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(clip_loss(query, key, labels=labels), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_non_finite_features_give_nan(side, bad, device):
    inputs = [tensor.detach() for tensor in make_inputs(6, 4, torch.float32, device)]
    inputs[side][2, 1] = bad
    assert clip_loss(*inputs).isnan()
    assert clip_loss(*inputs, backend="reference").isnan()


def test_certain_pairs_keep_their_digits(device):
    """At p = 1 to the last digit of float32 the loss and its gradient are small, not 0."""
    key = torch.eye(8, device=device)
    query = key.clone().requires_grad_()
    doubled = query.detach().double().requires_grad_()
    exact = textbook(doubled, key.double(), 20.0)
    actual = ours(query, key, torch.tensor(20.0, device=device))
    torch.testing.assert_close(actual.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(actual.sum(), query)[0].double(),
        torch.autograd.grad(exact.sum(), doubled)[0],
        rtol=1e-5,
        atol=1e-17,
    )


@pytest.mark.parametrize("normalize", [False, True])
def test_registration(normalize, device):
    query, key = make_inputs(9, 4, torch.float64, device)
    scale = torch.tensor(3.0, dtype=torch.float64, device=device, requires_grad=True)
    inputs = query, key, scale, normalize
    opcheck(torch.ops.mim4dd.clip_loss.default, inputs)
    with torch.no_grad():
        outputs = torch.ops.mim4dd.clip_loss(*inputs)
    upstream = [
        torch.rand(9, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2)
    ]
    opcheck(torch.ops.mim4dd.clip_loss_bwd.default, (*inputs, *outputs, *upstream))


def test_bad_input():
    with pytest.raises(ValueError, match="one key for each query"):
        clip_loss(torch.zeros(4, 8), torch.zeros(5, 8))
    with pytest.raises(ValueError, match="logit_scale must be positive"):
        clip_loss(torch.zeros(4, 8), torch.zeros(4, 8), logit_scale=-1.0)
    with pytest.raises(ValueError, match="reduction must be one of"):
        clip_loss(torch.zeros(4, 8), torch.zeros(4, 8), reduction="avg")
