"""log_sum_exp: values against torch.logsumexp, derivatives, options, errors."""

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_no_worse, sum_rounding

from mim4dd import log_sum_exp

SHAPES = [(1, 1, 1), (16, 40, 8), (37, 23, 5), (130, 300, 17)]


def make_inputs(shape, device, dtype=torch.float64):
    *sizes, dimension = shape
    return tuple(
        F.normalize(torch.randn(size, dimension, dtype=torch.float64, device=device), dim=1)
        .to(dtype)
        .requires_grad_()
        for size in sizes
    )


def textbook(query, key, temperature):
    return (query @ key.T / temperature).logsumexp(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, dtype, device):
    query, key = make_inputs(shape, device, dtype)
    temperature = torch.tensor(0.3, dtype=dtype, device=device, requires_grad=True)
    upstream = torch.randn(shape[0], dtype=dtype, device=device)

    def evaluate(function, inputs):
        lse = function(*inputs)
        return lse, *torch.autograd.grad(lse, inputs, upstream.to(lse.dtype))

    inputs = (query, key, temperature)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    ours = evaluate(lambda q, k, t: log_sum_exp(q, k, temperature=t), inputs)
    plain, true = evaluate(textbook, inputs), evaluate(textbook, exact)
    for index in range(3):
        assert_no_worse(ours[index], plain[index], true[index])
    logits = (exact[0] @ exact[1].T / exact[2]).detach()
    terms = upstream.double()[:, None] * logits.softmax(1) * -logits / exact[2].detach()
    torch.testing.assert_close(terms.sum(), true[3])
    # A query's part is rounded more than once: by chance in 1 % of all draws, more than their norm.
    rounding = sum_rounding(terms.sum(1), (0,), dtype)
    assert_no_worse(ours[3], plain[3], true[3], rounding)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_options_and_their_derivatives(exclude_self, normalize, backend, device):
    query, key = make_inputs((5, 5, 3), device)
    key_mask = torch.tensor([True, True, False, True, True], device=device)
    scale = torch.tensor(2.0, dtype=torch.float64, device=device, requires_grad=True)

    def ours(query, key, scale):
        return log_sum_exp(
            query, key, key_mask=key_mask, exclude_self=exclude_self, logit_scale=scale,
            normalize=normalize, backend=backend,
        )  # fmt: skip

    left_out = ~key_mask.expand(5, 5)
    if exclude_self:
        left_out = left_out | torch.eye(5, dtype=torch.bool, device=device)
    rows = (F.normalize(side, dim=1) if normalize else side for side in (query, key))
    logits = scale * torch.einsum("nd,md->nm", *rows)
    expected = logits.masked_fill(left_out, -torch.inf).logsumexp(1)
    torch.testing.assert_close(ours(query, key, scale), expected)
    assert torch.autograd.gradcheck(ours, (query, key, scale))
    assert torch.autograd.gradgradcheck(ours, (query, key, scale))


def test_layers(device):
    layers = [make_inputs((6, 9, dimension), device) for dimension in (3, 5)]
    query, key = zip(*layers, strict=True)
    expected = torch.stack([log_sum_exp(*layer) for layer in layers])
    torch.testing.assert_close(log_sum_exp(query, key), expected)
    torch.testing.assert_close(
        log_sum_exp(torch.stack([query[0]] * 2), [key[0]] * 2)[1], expected[0]
    )


def test_over_no_key_it_is_minus_infinity_without_a_gradient(device):
    query, key = make_inputs((3, 4, 2), device)
    nothing = torch.zeros(4, dtype=torch.bool, device=device)
    lse = log_sum_exp(query, key, key_mask=nothing)
    assert (lse == -torch.inf).all()
    gradients = torch.autograd.grad(lse, (query, key), torch.ones_like(lse))
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_features_give_nan(bad, device):
    query, key = (side.detach() for side in make_inputs((4, 6, 3), device))
    key[2, 0] = bad
    assert log_sum_exp(query, key).isnan().all()
    others = torch.arange(6, device=device) != 2
    assert log_sum_exp(query, key, key_mask=others).isfinite().all()


def test_large_logits_do_not_overflow(device):
    query, key = make_inputs((4, 6, 3), device)
    actual = log_sum_exp(query, key, temperature=1e-4)
    torch.testing.assert_close(actual, textbook(query, key, 1e-4))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"key": torch.zeros(4, 2)}, ValueError, "same feature size"),
        ({"key": torch.zeros(4, 3, dtype=torch.float64)}, TypeError, "share a dtype"),
        ({"key_mask": torch.ones(4)}, TypeError, "key_mask must have dtype torch.bool"),
        ({"exclude_self": True}, ValueError, "exclude_self leaves out key i of query i"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"logit_scale": -1.0}, ValueError, "logit_scale must be positive"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"query": torch.zeros(2, 3), "key": torch.zeros(4, 3)} | change
    with pytest.raises(error, match=message):
        log_sum_exp(**arguments)
