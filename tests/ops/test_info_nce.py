"""info_nce: values, gradients, registration, non-finite features, errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_no_worse

from mim4dd import info_nce

# (N, M, D): one row, M == N, M > N, N > M, and sizes that divide no tile.
SHAPES = [(1, 1, 8), (64, 64, 32), (16, 80, 64), (70, 33, 17), (37, 101, 19)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def make_inputs(shape, dtype, device):
    n, m, d = shape
    query = F.normalize(torch.randn(n, d, device=device, dtype=torch.float64), dim=1).to(dtype)
    key = F.normalize(torch.randn(m, d, device=device, dtype=torch.float64), dim=1).to(dtype)
    return query.requires_grad_(), key.requires_grad_()


def make_labels(shape, device, num_classes=4):
    """Labels of N queries and M keys; the last query's class has no key."""
    n, m, _ = shape
    labels = torch.randint(num_classes, (n,), device=device)
    labels[-1] = num_classes
    key_labels = torch.randint(num_classes, (m,), device=device)
    labels[0] = key_labels[0]
    return labels, key_labels


def by_cross_entropy(query, key, temperature, positive_index):
    """The textbook one-liner for one positive, independent of mim4dd.reference."""
    return F.cross_entropy(query @ key.T / temperature, positive_index, reduction="none")


def by_soft_targets(query, key, temperature, labels, key_labels):
    """The textbook form for several: cross-entropy against the uniform mixture of positives."""
    positive = (labels[:, None] == key_labels).to(query.dtype)
    target = positive / positive.sum(1, keepdim=True).clamp(min=1)
    return F.cross_entropy(query @ key.T / temperature, target, reduction="none")


def run(fn, query, key, temperature, upstream):
    """Losses and all gradients, for a non-uniform upstream gradient."""
    temperature = temperature.detach().requires_grad_()
    loss = fn(query, key, temperature)
    return loss, *torch.autograd.grad(loss, (query, key, temperature), upstream.to(loss.dtype))


def widen(tensor):
    """A leaf in at least float32, as a half-precision input is computed."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().to(dtype).requires_grad_()


def check_against(fn, textbook, shape, dtype, device):
    """Judge losses and the gradients of queries and keys by error, that of τ by its terms' size."""
    query, key = make_inputs(shape, dtype, device)
    temperature = torch.tensor(0.1, dtype=torch.promote_types(dtype, torch.float32), device=device)
    upstream = torch.randn(shape[0], device=device)
    doubled = [tensor.detach().double().requires_grad_() for tensor in (query, key)]
    exact = run(textbook, *doubled, temperature.double(), upstream)
    plain = run(textbook, widen(query), widen(key), temperature, upstream)
    actual = run(fn, query, key, temperature, upstream)
    logits = doubled[0] @ doubled[1].T / 0.1
    # A weight is the exponential of a logit, and errs by as much as that is rounded.
    of_weights = torch.finfo(actual[3].dtype).eps * logits.abs().max()
    for a, p, e in zip(actual[:3], plain[:3], exact[:3], strict=True):
        assert_no_worse(a, p.to(a.dtype), e, of_weights * e.abs().max())
    # One sum over N·M terms of both signs: plain torch's own error on it is a matter of luck.
    terms = (upstream.abs()[:, None] * logits.abs()).amax(1).sum() * 2 / 0.1
    assert (actual[3] - exact[3]).abs() <= 4 * torch.finfo(actual[3].dtype).eps * terms


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1] >= s[0]], ids=str)
def test_one_positive_is_cross_entropy(shape, dtype, device, backend):
    index = torch.randperm(shape[1], device=device)[: shape[0]]
    check_against(
        lambda q, k, t: info_nce(
            q, k, positive_index=index, temperature=t, reduction="none", backend=backend
        ),
        lambda q, k, t: by_cross_entropy(q, k, t, index),
        shape,
        dtype,
        device,
    )


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_labels_are_a_mixture_of_positives(shape, dtype, device, backend):
    labels, key_labels = make_labels(shape, device)
    has_positive = torch.isin(labels, key_labels)

    def textbook(q, k, t):
        # A row without a positive has the target 0 and so the loss and gradient 0.
        return by_soft_targets(q, k, t, labels, key_labels) * has_positive

    check_against(
        lambda q, k, t: info_nce(
            q,
            k,
            labels=labels,
            key_labels=key_labels,
            temperature=t,
            reduction="none",
            backend=backend,
        ),
        textbook,
        shape,
        dtype,
        device,
    )


def test_default_positive_is_the_key_of_the_same_index(device):
    query, key = make_inputs((5, 9, 8), torch.float64, device)
    expected = by_cross_entropy(query, key, 0.1, torch.arange(5, device=device)).mean()
    torch.testing.assert_close(info_nce(query, key), expected)


def test_reductions_count_only_queries_with_a_positive(device):
    query, key = make_inputs((4, 6, 8), torch.float64, device)
    labels = torch.tensor([0, 1, 7, 2], device=device)
    key_labels = torch.tensor([0, 0, 1, 1, 2, 2], device=device)

    def reduced(reduction):
        return info_nce(query, key, labels=labels, key_labels=key_labels, reduction=reduction)

    per_query = reduced("none")
    assert per_query[2] == 0
    torch.testing.assert_close(reduced("sum"), per_query.sum())
    torch.testing.assert_close(reduced("mean"), per_query.sum() / 3)


def test_normalize_scales_rows(device):
    query, key = make_inputs((5, 9, 8), torch.float64, device)
    torch.testing.assert_close(info_nce(3 * query, 0.1 * key, normalize=True), info_nce(query, key))


@pytest.mark.parametrize("backend", [None, "reference"])
def test_derivatives_of_first_and_second_order(device, backend):
    query, key = make_inputs((4, 6, 3), torch.float64, device)
    labels, key_labels = make_labels((4, 6, 3), device, num_classes=2)
    temperature = torch.tensor(0.5, dtype=torch.float64, device=device, requires_grad=True)

    def loss(query, key, temperature):
        return info_nce(
            query,
            key,
            labels=labels,
            key_labels=key_labels,
            temperature=temperature,
            reduction="none",
            backend=backend,
        )

    assert torch.autograd.gradcheck(loss, (query, key, temperature))
    assert torch.autograd.gradgradcheck(loss, (query, key, temperature))


def test_second_derivatives_where_the_upstream_gradient_depends_on_the_inputs(device):
    query, key = make_inputs((4, 5, 3), torch.float64, device)
    temperature = torch.tensor(0.5, dtype=torch.float64, device=device, requires_grad=True)

    def squares(query, key, temperature):
        return info_nce(
            query, key, temperature=temperature, normalize=True, reduction="none"
        ).square()

    assert torch.autograd.gradgradcheck(squares, (query, key, temperature))


@pytest.mark.parametrize("which", ["query", "key"])
def test_gradient_only_where_asked(which, device):
    query, key = make_inputs((16, 24, 8), torch.float32, device)
    (query if which == "key" else key).requires_grad_(False)
    info_nce(query, key).backward()
    assert (query.grad is not None) == (which == "query")
    assert (key.grad is not None) == (which == "key")


@pytest.mark.parametrize("stride", ["rows", "columns", "transposed", "expanded"])
def test_any_strides(stride, device):
    query, key = (tensor.detach() for tensor in make_inputs((32, 32, 16), torch.float32, device))
    strided = {
        "rows": query.repeat_interleave(2, 0)[::2],
        "columns": torch.stack([query, query], dim=2)[..., 0],
        "transposed": query.T.contiguous().T,
        "expanded": query[:1].expand(32, 16),
    }[stride]
    assert not strided.is_contiguous() or stride == "rows"
    torch.testing.assert_close(info_nce(strided, key), info_nce(strided.contiguous(), key))


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["query", "key", "query without a positive"])
def test_non_finite_features_give_nan(side, bad, device, backend):
    query, key = (tensor.detach() for tensor in make_inputs((8, 12, 4), torch.float32, device))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 9], device=device)
    key_labels = torch.arange(12, device=device) % 3
    (key if side == "key" else query)[{"query": 3, "key": 5}.get(side, 7), 2] = bad
    for reduction in ("mean", "sum"):
        loss = info_nce(
            query,
            key,
            labels=labels,
            key_labels=key_labels,
            reduction=reduction,
            backend=backend,
        )
        assert loss.isnan()


def test_large_logits_do_not_overflow(device):
    query, key = make_inputs((8, 8, 16), torch.float32, device)
    index = torch.arange(8, device=device)
    exact = by_cross_entropy(query.double(), key.double(), 1e-4, index)
    plain = by_cross_entropy(query, key, 1e-4, index)
    # A logit of float32 is off by half an ulp, of its size; the loss is a difference of two.
    logits = query.double() @ key.double().T / 1e-4
    rounding = logits.abs().amax() * torch.finfo(torch.float32).eps
    actual = info_nce(query, key, temperature=1e-4, reduction="none")
    assert_no_worse(actual, plain, exact, rounding)


LABELS = {"labels": torch.zeros(4, dtype=torch.long), "key_labels": torch.zeros(4).long()}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.zeros(4)}, ValueError, r"query must be \(N, D\)"),
        ({"query": [[1.0] * 8] * 4}, TypeError, "query must be a torch.Tensor, got list"),
        ({"temperature": "0.1"}, TypeError, "temperature must be a number, got str"),
        ({"query": torch.zeros(4, 8).long()}, TypeError, "query must have a floating-point"),
        ({"query": torch.zeros(0, 8)}, ValueError, "query must not be empty"),
        ({"key": torch.zeros(4, 3)}, ValueError, "same feature size"),
        ({"key": torch.zeros(4, 8, dtype=torch.float16)}, TypeError, "share a dtype"),
        ({"key": torch.zeros(4, 8, device="meta")}, ValueError, "one device"),
        ({"key": torch.zeros(2, 8)}, ValueError, "4 queries and only 2 keys"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"temperature": math.nan}, ValueError, "temperature must be positive"),
        ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature must be positive"),
        ({"temperature": torch.ones(3)}, ValueError, "temperature must be 0-d"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of"),
        ({"backend": "auto"}, ValueError, "backend must be one of"),
        ({"positive_index": torch.zeros(4)}, TypeError, "positive_index must have an integer"),
        ({"positive_index": torch.zeros(3).long()}, ValueError, "one entry per query"),
        ({"positive_index": torch.tensor([0, 1, 2, 4])}, ValueError, r"lie in \[0, 4\)"),
        ({"positive_index": torch.zeros(4).long(), **LABELS}, ValueError, "exclude each other"),
        ({"labels": torch.zeros(4).long()}, ValueError, "given together"),
        ({**LABELS, "labels": torch.zeros(3).long()}, ValueError, "one entry per query"),
        ({**LABELS, "key_labels": torch.zeros(4)}, TypeError, "key_labels must have an integer"),
        ({**LABELS, "key_labels": torch.ones(4).long()}, ValueError, "share no class"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"query": torch.zeros(4, 8), "key": torch.zeros(4, 8)} | change
    with pytest.raises(error, match=message):
        info_nce(**arguments)


def test_autocast_keeps_the_logits_exact(device):
    """It would round q·k / τ to half precision: with τ = 0.01 an error of a nat."""
    query, key = torch.randn(2, 16, 32, device=device, requires_grad=True).unbind()
    expected = info_nce(query, key, temperature=0.01, normalize=True)
    gradient = torch.autograd.grad(expected, query)
    with torch.autocast(device, torch.bfloat16):
        actual = info_nce(query, key, temperature=0.01, normalize=True)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(torch.autograd.grad(actual, query), gradient)


def test_normalising_half_precision_does_not_overflow(device):
    rows = torch.randn(6, 8, device=device)
    expected = info_nce(rows, rows, temperature=1.0, normalize=True)
    large = (rows * 1e4).half()  # whose squared norm is beyond float16
    actual = info_nce(large, large, temperature=1.0, normalize=True)
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)
