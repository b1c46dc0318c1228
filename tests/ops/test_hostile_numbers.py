"""Losses of features that nobody meant: denormals, rows of zeros, duplicates, any temperature."""

import math
from functools import partial

import pytest
import torch
from tolerance import assert_norm_no_worse

from mim4dd import clip_loss, info_nce, nce, sup_con


def of_three_classes(function, **options):
    def loss(query, key, **more):
        labels = torch.arange(len(query), device=query.device) % 3
        return function(query, key, labels, labels, **options, **more)

    return loss


LOSSES = {
    "info_nce": info_nce,
    "clip": clip_loss,
    "out": of_three_classes(sup_con),
    "in": of_three_classes(sup_con, variant="in"),
    "decoupled": partial(info_nce, decoupled=True),
    "nce": of_three_classes(nce),
}
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
TEMPERATURES = [1e-4, 1e-2, 1.0, 1e2, 1e4]


def rows(number=2, n=24, d=9):
    return torch.randn(number, n, d, dtype=torch.float64).unbind()


def differentiated(loss, query, key, temperature, dtype, **more):
    """Losses and gradients by queries, keys and the temperature."""
    leaves = [x.to(dtype).detach().requires_grad_() for x in (query, key)]
    leaves.append(torch.tensor(temperature, dtype=torch.float64).to(dtype).requires_grad_())
    losses = loss(*leaves[:2], temperature=leaves[2], reduction="none", **more)
    return [losses.detach(), *torch.autograd.grad(losses.sum(), leaves)]


@EVERY_LOSS
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("normalize", [False, True])
def test_any_temperature(loss, temperature, normalize, device):
    # Of numbers that float32 holds, so that all are of the same; and temperature too.
    query, key = (x.float().double().to(device) for x in rows())
    temperature = torch.tensor(temperature).item()
    arguments = loss, query, key, temperature
    found = differentiated(*arguments, torch.float32, normalize=normalize)
    plain = differentiated(*arguments, torch.float32, normalize=normalize, backend="reference")
    exact = differentiated(*arguments, torch.float64, normalize=normalize, backend="reference")
    eps = torch.finfo(torch.float32).eps
    largest = 1.0 if normalize else (query @ key.T).abs().max().item()
    rounding = 8 * eps * largest / temperature
    assert all(part.isfinite().all() for part in found)
    assert_norm_no_worse(found[0], plain[0], exact[0], rounding * len(query))
    if rounding > 0.1:  # the weights are exponentials of logits, of which nothing is known then
        return
    for actual, near, true in zip(found[1:], plain[1:], exact[1:], strict=True):
        terms = (1 + largest) / temperature * max(1.0, 1 / temperature) * len(query)
        assert_norm_no_worse(actual, near, true, (rounding + 4 * eps) * terms * len(query))


@EVERY_LOSS
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-38, 1e-30])
def test_denormals_are_numbers(loss, size, device):
    """Products of theirs are 0: every key is as likely, and the gradient is that of float64."""
    query, key = (size * x.to(device) for x in rows())
    query, key = (x.float().double() for x in (query, key))
    found = differentiated(loss, query, key, 1.0, torch.float32)
    exact = differentiated(loss, query, key, 1.0, torch.float64, backend="reference")
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-5, atol=1e-6)
    for actual, true in zip(found[1:3], exact[1:3], strict=True):
        # A denormal has few digits, and its steps are of the smallest one.
        least = 2.0**-149
        error = (actual.double() - true).abs().max()
        assert error <= 1e-5 * true.abs().max() + 64 * least * len(query)


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_zeros_are_normalised_to_zeros_with_a_bounded_gradient(loss, dtype, device):
    """As F.normalize has it: divided by its eps, so that the gradient is at most 1/eps of one."""
    query, key = (x.to(device) for x in rows())
    query[3], key[5] = 0, 0
    leaves = [x.to(dtype).detach().requires_grad_() for x in (query, key)]
    losses = loss(*leaves, normalize=True, reduction="none", temperature=1.0)
    gradients = torch.autograd.grad(losses.sum(), leaves)
    assert losses.isfinite().all()
    for gradient, zero in zip(gradients, (3, 5), strict=True):
        others = torch.arange(len(gradient)) != zero
        assert gradient[others].isfinite().all()
        if dtype == torch.float32:
            assert gradient[zero].isfinite().all()
            assert gradient[zero].norm() <= 1e12 * 2 * len(query)
        assert not gradient[zero].isnan().any()


@EVERY_LOSS
def test_duplicates_of_the_positive_share_its_weight(loss, device):
    query, key = (x.to(device) for x in rows())
    key[12:] = key[:12]
    query[12:] = query[:12]
    found = differentiated(loss, query, key, 0.5, torch.float32)
    exact = differentiated(loss, query, key, 0.5, torch.float64, backend="reference")
    plain = differentiated(loss, query, key, 0.5, torch.float32, backend="reference")
    eps = torch.finfo(torch.float32).eps
    rounding = 8 * eps * (query @ key.T).abs().max().item() / 0.5
    for actual, near, true in zip(found, plain, exact, strict=True):
        slack = rounding * (true.norm() + len(query) ** 0.5 * key.norm())
        assert_norm_no_worse(actual, near, true, slack.item())
    if loss in (LOSSES["info_nce"], LOSSES["clip"]):  # each query has a key as good as its own
        assert found[0].min() >= math.log(2) - 1e-5


@pytest.mark.parametrize("variant", ["out", "in"])
def test_one_class_has_no_negative(variant, device):
    """Then the loss inside is log |P| with no gradient; outside, the spread of the logits more."""
    query, key = (x.float().to(device) for x in rows())
    labels = torch.zeros(24, dtype=torch.int64, device=device)

    def loss(q, k, **more):
        return sup_con(q, k, labels, labels, variant=variant, **more)

    found = differentiated(loss, query, key, 0.5, torch.float32)
    exact = differentiated(loss, query.double(), key.double(), 0.5, torch.float64)
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-5, atol=2e-5)
    if variant == "in":
        assert found[0].double().sub(math.log(24)).abs().max() < 2e-5
        assert all(gradient.abs().max() < 2e-4 for gradient in found[1:])
    with pytest.raises(ValueError, match="negative"):
        loss(query, key, decoupled=True)


@EVERY_LOSS
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("normalize", [False, True])
def test_what_is_not_finite_gives_nan_and_no_number(loss, bad, normalize, device):
    query, key = (x.float().to(device) for x in rows())
    key[7, 2] = bad
    values = loss(query, key, normalize=normalize, reduction="none", temperature=0.5)
    assert values.isnan().all()
