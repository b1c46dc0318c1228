"""Gradients in half precision: they are rounded once, after all that multiplies them."""

import pytest
import torch

from mim4dd import MIM4DDLoss, clip_loss, info_nce, log_sum_exp, nce, sup_con

HALF = [torch.float16, torch.bfloat16]
SCALER = 65536.0  # the loss scale that GradScaler starts from


def of_labels(function, **options):
    def loss(query, key, **more):
        labels = torch.arange(len(query)) % 3
        return function(query, key, labels, torch.arange(len(key)) % 4, **options, **more)

    return loss


def spread(query, key, reduction="mean", **options):
    """The losses one by one, with an upstream gradient that differs."""
    losses = info_nce(query, key, reduction="none", positive_index=first(query, key), **options)
    return (losses * torch.linspace(0.5, 1.5, len(losses), dtype=losses.dtype)).mean()


def first(query, key):
    return torch.arange(len(query)) % len(key)


def one_positive(**options):
    def loss(query, key, **more):
        return info_nce(query, key, positive_index=first(query, key), **options, **more)

    return loss


# A leaf has one place in each of these: autograd adds what two of them give in half precision.
def against_negatives(query, key, **options):
    rows = query.detach()
    return info_nce(rows, rows.roll(1, 0), negative_keys=key, **options)


def of_each_its_own(query, key, **options):
    others = torch.stack([query.detach().roll(shift, 0) for shift in (2, 3)], 1)
    return info_nce(query, query.detach().roll(1, 0), negative_keys=others, **options)


def normaliser(query, key, reduction="mean", **options):
    return getattr(log_sum_exp(query, key, **options), reduction)()


def layers(query, key, **options):
    labels, key_labels = torch.arange(len(query)) % 3, torch.arange(len(key)) % 4
    sides = [query, query.detach()[:, :5]], [key, key.detach()[:, :5]]
    return sup_con(*sides, labels, key_labels, **options).sum()


LOSSES = {
    "info_nce": one_positive(),
    "hard": one_positive(hardness=0.5),
    "decoupled": one_positive(decoupled=True),
    "normalized": one_positive(normalize=True),
    "upstream gradients that differ": spread,
    "out": of_labels(sup_con),
    "in": of_labels(sup_con, variant="in"),
    "nce": of_labels(nce),
    "log_sum_exp": normaliser,
    "negative_keys": against_negatives,
    "paired negative_keys": of_each_its_own,
    "layers": layers,
}


def gradients(loss, features, upstream, dtype):
    """Of the same numbers, in ``dtype``; the exact ones by the definition."""
    leaves = [side.to(dtype, copy=True).requires_grad_() for side in features]
    backend = "reference" if dtype == torch.float64 else None
    value = loss(*leaves, backend=backend)
    upstream = torch.tensor(upstream, dtype=value.dtype)
    found = torch.autograd.grad(value, leaves, upstream, allow_unused=True)
    return [each for each in found if each is not None]


def assert_rounded(actual, exact, num_terms):
    """As exact gradients that are rounded once; sums of so many terms are formed in float32."""
    dtype = actual.dtype
    finfo = torch.finfo(dtype)
    least = finfo.smallest_normal * finfo.eps
    size = exact.abs()
    # Twice the step of half; and float32's, by a random walk through terms as large as any.
    sums = 8 * torch.finfo(torch.float32).eps * num_terms**0.5 * size.max()
    assert actual.isfinite().all()
    assert ((actual.double() - exact).abs() <= finfo.eps * size + least + sums).all()
    flushed = (exact.to(dtype) == 0) | (size <= sums)
    assert (flushed | (actual != 0)).all()


def make_features(num_queries, num_keys, dtype, dimension=8):
    rows = [torch.randn(n, dimension) for n in (num_queries, num_keys)]
    return [torch.nn.functional.normalize(side, dim=1).to(dtype) for side in rows]


def test_a_gradient_whose_sum_overflows():
    query, key = torch.zeros(2, 1024, 16)
    query[:, 0], key[0, 0] = 1, 1
    key = key.half().requires_grad_()
    for loss in (info_nce, torch.compile(info_nce, backend="aot_eager", fullgraph=True)):
        (gradient,) = torch.autograd.grad(loss(query.half(), key, logit_scale=100.0), key)
        assert gradient.dtype == torch.float16
        assert gradient[0, 0].item() == pytest.approx(99.90, abs=0.05)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_as_the_exact_ones_rounded(name, dtype, reduction):
    features = make_features(50, 40, dtype)

    def loss(query, key, backend):
        return LOSSES[name](query, key, backend=backend, reduction=reduction, temperature=0.05)

    for upstream in (1.0, 64.0):
        exact = gradients(loss, features, upstream, torch.float64)
        for a, e in zip(gradients(loss, features, upstream, dtype), exact, strict=True):
            assert_rounded(a, e, 50)


@pytest.mark.parametrize("name", LOSSES)
def test_a_scaled_mean_over_many_queries(name):
    """GradScaler's first scale and 262,144 queries: the sum over them is beyond float16."""
    features = make_features(2**18, 5, torch.float16, 6)

    def loss(query, key, backend):
        return LOSSES[name](query, key, backend=backend, temperature=0.2)

    exact = gradients(loss, features, SCALER, torch.float64)
    for a, e in zip(gradients(loss, features, SCALER, torch.float16), exact, strict=True):
        assert_rounded(a, e, 2**18)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_clip_loss(normalize, dtype):
    features = make_features(60, 60, dtype)

    def loss(query, key, backend):
        return clip_loss(query, key, logit_scale=20.0, normalize=normalize, backend=backend)

    for upstream in (1.0, 1024.0):
        exact = gradients(loss, features, upstream, torch.float64)
        for a, e in zip(gradients(loss, features, upstream, dtype), exact, strict=True):
            assert_rounded(a, e, 60)


@pytest.mark.parametrize("critic", ["info_nce", "nce"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_features_of_several_layers(dtype, critic):
    features = make_features(40, 48, dtype, 64)
    labels, key_labels = torch.arange(40) % 4, torch.arange(48) % 4
    wide = [side.double() for side in features]

    def found(sides, upstream):
        leaves = [side.detach().clone().requires_grad_() for side in sides]
        maps = [[side, side.reshape(-1, 4, 4, 4)] for side in leaves]
        value = MIM4DDLoss(critic=critic)(*maps, labels, key_labels)
        return torch.autograd.grad(value, leaves, torch.tensor(upstream, dtype=value.dtype))

    # Two layers, each rounded, and their sum in half precision.
    for a, e in zip(found(features, 1024.0), found(wide, 1024.0), strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(
            a.double(), e, rtol=0, atol=4 * torch.finfo(dtype).eps * e.abs().max().item()
        )
