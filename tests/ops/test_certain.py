"""Near p = 1: 1 − p is what the negatives weigh, and every loss and derivative has digits of it.

In float32 a log-sum-exp less the logit of the positive is 0 there. The losses are some 1e-9, so
all is held to a relative error: that of float32's logits.
"""

import pytest
import torch
from paired import both_directions

from mim4dd import clip_loss, info_nce, sup_con

EPS = torch.finfo(torch.float32).eps
# Logits small enough to need no shift, and larger ones; a negative lies 24 below the positive.
SPREADS = pytest.mark.parametrize(("scale", "common"), [(24.0, 0.0), (80.0, 0.7)])


def certain_rows(n, common):
    """Rows (n, n + 1) of length 1 with the product ``common``, turned at random."""
    turn = torch.linalg.qr(torch.randn(n + 1, n + 1, dtype=torch.float64))[0]
    rows = (1 - common) ** 0.5 * turn[:n] + common**0.5 * turn[n]
    return rows.float()


def exact_loss(query, key, scale, positive, left_out):
    """log(1 + Σ e^s over the negatives / Σ e^s over the positives) + log |P|, by masks (N, M)."""
    logits = scale * query @ key.T
    negatives = logits.masked_fill(positive | left_out, -torch.inf).logsumexp(1)
    positives = logits.masked_fill(~positive, -torch.inf).logsumexp(1)
    return (negatives - positives).exp().log1p() + positive.sum(1).log()


def assert_digits(fused, exact, inputs, scale):
    """Of losses one by one, of first and second derivatives by the norm, each divided by scale."""
    upstream, tangents = torch.rand(len(inputs[0])) + 0.5, [torch.randn_like(x) for x in inputs]

    def derivatives(function, dtype):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
        loss = function(*leaves)
        first = torch.autograd.grad(loss, leaves, upstream.to(dtype), create_graph=True)
        along = sum((g * t.to(dtype)).sum() for g, t in zip(first, tangents, strict=True))
        return loss, *first, *torch.autograd.grad(along, leaves)

    found, true = derivatives(fused, torch.float32), derivatives(exact, torch.float64)
    bound = 16 * EPS * scale
    torch.testing.assert_close(found[0].double(), true[0], rtol=bound, atol=0)
    for actual, expected in zip(found[1:], true[1:], strict=True):
        error = (actual - expected).norm() / expected.norm()
        assert error < bound, f"{error} of {bound}"


# Of one query with all keys, and of so many that a CPU packs them in panels.
@SPREADS
@pytest.mark.parametrize("n", [9, 130])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_by_index(reduction, n, scale, common):
    rows = certain_rows(n, common)
    own = torch.eye(n, dtype=torch.bool)

    def fused(query, key):
        loss = info_nce(query, key, logit_scale=scale, reduction=reduction)
        return loss if reduction == "none" else loss.expand(n) / n

    def exact(query, key):
        loss = exact_loss(query, key, scale, own, ~own & own)
        return loss if reduction == "none" else loss.sum().expand(n) / n

    assert_digits(fused, exact, (rows, rows), scale)


@SPREADS
@pytest.mark.parametrize("variant", ["out", "in"])
def test_two_views(variant, scale, common):
    """NT-Xent: by label each query has one positive, once itself is left out."""
    rows, labels = certain_rows(7, common).repeat(2, 1), torch.arange(7).repeat(2)
    left_out = torch.eye(14, dtype=torch.bool)
    positive = (labels[:, None] == labels) & ~left_out

    def fused(query, key):
        return sup_con(
            query, key, labels, labels, variant=variant, exclude_self=True, logit_scale=scale,
            reduction="none",
        )  # fmt: skip

    assert_digits(
        fused, lambda q, k: exact_loss(q, k, scale, positive, left_out), (rows, rows), scale
    )


@SPREADS
def test_several_positives_inside_the_logarithm(scale, common):
    rows, labels = certain_rows(7, common).repeat(3, 1), torch.arange(7).repeat(3)
    positive = labels[:, None] == labels

    def fused(query, key):
        return sup_con(
            query, key, labels, labels, variant="in", logit_scale=scale, reduction="none"
        )

    assert_digits(
        fused, lambda q, k: exact_loss(q, k, scale, positive, ~positive & positive), (rows,) * 2,
        scale,
    )  # fmt: skip


@SPREADS
def test_clip_loss(scale, common):
    rows, own = certain_rows(9, common), torch.eye(9, dtype=torch.bool)

    def fused(query, key):
        return clip_loss(query, key, logit_scale=scale, reduction="none")

    def exact(query, key):
        ways = [exact_loss(*pair, scale, own, ~own & own) for pair in ((query, key), (key, query))]
        return sum(ways) / 2

    assert_digits(fused, exact, (rows, rows), scale)


def test_the_exact_loss_is_that_of_the_textbook():
    query, key = torch.randn(2, 6, 4, dtype=torch.float64).unbind()
    own = torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(
        exact_loss(query, key, 2.0, own, ~own & own), both_directions(query, key, 2.0)[0]
    )
