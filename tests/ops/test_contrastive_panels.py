"""Contrastive losses by index of so many queries that a CPU packs them in panels."""

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_no_worse

from mim4dd import _C, info_nce, log_sum_exp

# (N, M, D): a panel is left over, a block of keys, a run of the depth, of queries; and nothing is.
SHAPES = [(128, 256, 32), (150, 301, 19), (333, 129, 130), (260, 70, 259), (129, 5, 3)]


def inputs_of(shape, dtype=torch.float32, device="cpu"):
    """Unit rows, with room between them in memory."""
    n, m, d = shape
    sides = (torch.randn(rows, d + 5, dtype=torch.float64, device=device) for rows in (n, m))
    return [F.normalize(side[:, :d], dim=1).to(dtype).requires_grad_() for side in sides]


def judge(op, shape, dtype, device, sizes, rounding):
    """Hold values and gradients of op(query, key, backend) against float64.

    ``rounding(query, key, upstream)`` is what sums of both signs in either gradient may be off by.
    """
    query, key = (
        (side.detach() * sizes).requires_grad_() for side in inputs_of(shape, dtype, device)
    )
    doubled = [side.detach().double().requires_grad_() for side in (query, key)]
    upstream = torch.randn(shape[0], dtype=torch.float64, device=device)

    def run(sides, backend):
        values = op(*sides, backend)
        return values.detach(), *torch.autograd.grad(values, sides, upstream.to(values.dtype))

    answers = run((query, key), None), run((query, key), "reference"), run(doubled, "reference")
    roundings = 0.0, *rounding(*doubled, upstream)
    for actual, plain, exact, off in zip(*answers, roundings, strict=True):
        assert_no_worse(actual, plain, exact, off)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients(shape, normalize, dtype, device):
    """With keys left out, a query without a positive, and, normalised, rows of any length."""
    n, m, _ = shape
    positive = torch.randint(m, (n,), device=device)
    positive[n // 2] = -1
    excluded = torch.randint(m, (n, 2), device=device)
    excluded[excluded == positive[:, None]] = -1
    lengths = torch.rand(1, device=device).to(dtype) + 0.5 if normalize else 1.0

    def op(query, key, backend):
        return info_nce(
            query,
            key,
            positive_index=positive,
            exclude_index=excluded,
            temperature=0.2,
            normalize=normalize,
            reduction="none",
            backend=backend,
        )

    def rounding(query, key, upstream):
        """Of sums of both signs over unit rows, which the length of a normalised row divides."""
        units = [F.normalize(side.detach(), dim=1) for side in (query, key)]
        logits = (units[0] @ units[1].T / 0.2).requires_grad_()
        left_out = torch.zeros(n, m + 1, dtype=torch.bool, device=device)
        left_out.scatter_(1, excluded % (m + 1), True)  # -1 is the column that is cut off
        wanted = positive >= 0
        losses = F.cross_entropy(
            logits.masked_fill(left_out[:, :m], -torch.inf)[wanted],
            positive[wanted],
            reduction="none",
        )
        weights = upstream.abs()[wanted]
        shares = torch.autograd.grad(losses, logits, weights)[0].abs() / 0.2
        sums = shares.sum(1) / query.detach().norm(dim=1), shares.sum(0) / key.detach().norm(dim=1)
        return [torch.finfo(torch.float32).eps * side[:, None] for side in sums]

    judge(op, shape, dtype, device, lengths, rounding)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_sum_exp(shape, device):
    """Its gradient is another multiple of each query's weights."""

    def rounding(query, key, upstream):
        shares = (query @ key.T / 0.1).softmax(1) * upstream.abs()[:, None] / 0.1
        sums = shares @ key.abs(), shares.T @ query.abs()
        return [torch.finfo(torch.float32).eps * side.detach() for side in sums]

    def op(query, key, backend):
        return log_sum_exp(query, key, temperature=0.1, backend=backend)

    judge(op, shape, torch.float32, device, 1.0, rounding)


# A library's products, and ours of a few rows, add in an order that depends on the size of a tile.
@pytest.mark.skipif(_C.instruction_set == "baseline", reason="it has no panels")
@pytest.mark.parametrize("shape", SHAPES[1:4])
def test_threads_do_not_change_a_bit(shape):
    """Nor do they change the error: a query's sums and a key's have one order."""
    query, key = inputs_of(shape)
    positive = torch.randint(shape[1], (shape[0],))
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss = info_nce(query, key, positive_index=positive)
            answers.append((loss.detach(), *torch.autograd.grad(loss, (query, key))))
    finally:
        torch.set_num_threads(before)
    for other in answers[1:]:
        assert all(torch.equal(*pair) for pair in zip(answers[0], other, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(bad, device):
    query, key = inputs_of((140, 150, 20), device=device)
    with torch.no_grad():
        key[77, 3] = bad
    assert not info_nce(query, key, positive_index=torch.arange(140, device=device)).isfinite()


def test_a_key_that_all_leave_out_may_be_anything(device):
    """It has no part in the sums, whatever its logits are."""
    query, key = inputs_of((140, 150, 20), device=device)
    index = torch.full((140, 1), 149, device=device)
    options = {"positive_index": torch.arange(140, device=device), "reduction": "none"}
    expected = info_nce(query, key[:149], **options)
    actual = info_nce(query, key, exclude_index=index, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(actual.sum(), key)[0]
    assert (gradients[149] == 0).all()
