"""info_nce with negative_keys: values, derivatives, non-finite features, errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_no_worse

from mim4dd import info_nce

SHAPES = [(1, 1, 1), (7, 30, 5), (40, 3, 16)]
MODES = ["unpaired", "paired"]


def make_inputs(shape, mode, device, dtype=torch.float64):
    """Queries, positives and negatives; (N, M, D) of them where they are paired."""
    num_queries, num_negatives, dimension = shape
    sizes = [(num_queries,), (num_queries,)]
    sizes += [(num_queries, num_negatives) if mode == "paired" else (num_negatives,)]
    return tuple(
        F.normalize(torch.randn(*size, dimension, dtype=torch.float64, device=device), dim=-1)
        .to(dtype)
        .requires_grad_()
        for size in sizes
    )


def textbook(query, key, negatives, scale, normalize=False):
    """Cross entropy with the positive in column 0."""
    if normalize:
        query, key, negatives = (F.normalize(side, dim=-1) for side in (query, key, negatives))
    positive = (query * key).sum(1, keepdim=True)
    subscripts = "nd,nmd->nm" if negatives.dim() == 3 else "nd,md->nm"
    logits = torch.cat([positive, torch.einsum(subscripts, query, negatives)], dim=1)
    return F.cross_entropy(scale * logits, logits.new_zeros(len(query)).long(), reduction="none")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, mode, normalize, dtype, device):
    inputs = make_inputs(shape, mode, device, dtype)
    scale = torch.tensor(3.0, dtype=dtype, device=device, requires_grad=True)
    upstream = torch.randn(shape[0], dtype=dtype, device=device)

    def ours(query, key, negatives, scale):
        return info_nce(
            query, key, negative_keys=negatives, logit_scale=scale, normalize=normalize,
            reduction="none",
        )  # fmt: skip

    def plain(*inputs):
        return textbook(*inputs, normalize)

    def evaluate(function, inputs):
        loss = function(*inputs)
        return loss, *torch.autograd.grad(loss, inputs, upstream.to(loss.dtype))

    inputs = (*inputs, scale)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    for actual, of_plain, true in zip(
        evaluate(ours, inputs), evaluate(plain, inputs), evaluate(plain, exact), strict=True
    ):
        assert_no_worse(actual, of_plain, true)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("mode", MODES)
def test_derivatives(mode, backend, device):
    inputs = make_inputs((4, 5, 3), mode, device)
    temperature = torch.tensor(0.5, dtype=torch.float64, device=device, requires_grad=True)

    def loss(query, key, negatives, temperature):
        return info_nce(
            query, key, negative_keys=negatives, temperature=temperature, reduction="none",
            normalize=True, backend=backend,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, (*inputs, temperature))
    assert torch.autograd.gradgradcheck(loss, (*inputs, temperature))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mode", MODES)
def test_reductions(mode, reduction, device):
    query, key, negatives = make_inputs((6, 9, 4), mode, device)
    each = info_nce(query, key, negative_keys=negatives, reduction="none")
    actual = info_nce(query, key, negative_keys=negatives, reduction=reduction)
    torch.testing.assert_close(actual, getattr(each, reduction)())


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_masked_negatives_are_left_out(mode, normalize, device):
    """Each query by itself among the negatives that count; what is masked may hold anything."""
    inputs = make_inputs((5, 6, 4), mode, device)
    mask = torch.rand(inputs[2].shape[:-1], device=device) < 0.6
    mask[0] = mode == "unpaired"  # a query without any, or one negative at least
    dirty = inputs[2].detach().clone()
    dirty[~mask] = torch.nan

    def loss(query, key, negatives, negative_mask=mask, some=slice(None)):
        return info_nce(
            query[some], key[some], negative_keys=negatives, negative_mask=negative_mask,
            normalize=normalize, reduction="none",
        )  # fmt: skip

    actual = loss(*inputs)
    assert torch.equal(loss(*inputs[:2], dirty), actual)
    for row in range(5):
        of_row = (inputs[2][row], mask[row]) if mode == "paired" else (inputs[2], mask)
        if of_row[1].any():
            alone = loss(*inputs[:2], of_row[0][of_row[1]], None, slice(row, row + 1))
            torch.testing.assert_close(actual[row], alone[0])
        else:
            assert actual[row] == 0
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)
    total = loss(*inputs[:2], dirty.requires_grad_()).sum()
    (of_dirty,) = torch.autograd.grad(total, dirty)
    assert (of_dirty[~mask] == 0).all()


def test_a_row_padded_to_nothing_has_no_gradient(device):
    query, key, negatives = make_inputs((3, 2, 4), "paired", device)
    mask = torch.tensor([[True, True], [False, False], [True, False]], device=device)
    loss = info_nce(query, key, negative_keys=negatives, negative_mask=mask)
    first = torch.autograd.grad(loss, (query, key, negatives), create_graph=True)
    assert all((part[1] == 0).all() for part in first)
    second = torch.autograd.grad(sum(part.square().sum() for part in first), (query, negatives))
    assert all(part.isfinite().all() for part in second)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 5), TypeError, "negative_mask must have dtype torch.bool, got torch.float"),
        (torch.ones(5).bool(), ValueError, r"got shape \(5,\)"),
        ([[True]], TypeError, "negative_mask must be a torch.Tensor, got list"),
    ],
)
def test_bad_masks(mask, error, message):
    query, negatives = torch.zeros(2, 3), torch.zeros(2, 5, 3)
    with pytest.raises(error, match=message):
        info_nce(query, query, negative_keys=negatives, negative_mask=mask)
    with pytest.raises(ValueError, match="none are given"):
        info_nce(query, query, negative_mask=mask)


@pytest.mark.parametrize("margin", [-30.0, 25.0])
def test_exact_far_from_zero(margin, device):
    """One negative: log(1 + e^margin), with derivatives p and p (1 − p)."""
    query = torch.ones(1, 1, dtype=torch.float64, device=device)
    key = torch.zeros(1, 1, dtype=torch.float64, device=device)
    negative = torch.full((1, 1), margin, dtype=torch.float64, device=device, requires_grad=True)
    loss = info_nce(query, key, negative_keys=negative, temperature=1.0)
    (first,) = torch.autograd.grad(loss, negative, create_graph=True)
    (second,) = torch.autograd.grad(first, negative)
    e = math.exp(margin)
    assert loss.item() == pytest.approx(math.log1p(e), rel=1e-12, abs=0)
    assert first.item() == pytest.approx(e / (1 + e), rel=1e-12, abs=1e-15)
    assert second.item() == pytest.approx(e / (1 + e) ** 2, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", range(3))
@pytest.mark.parametrize("mode", MODES)
def test_non_finite_features_give_nan(mode, side, bad, device):
    inputs = [side.detach() for side in make_inputs((4, 5, 3), mode, device)]
    inputs[side].view(-1)[0] = bad
    query, key, negatives = inputs
    assert info_nce(query, key, negative_keys=negatives).isnan()


@pytest.mark.parametrize(
    ("negative_keys", "error", "message"),
    [
        (torch.zeros(5, 2), ValueError, r"negative_keys must be \(M, D\) or \(N, M, D\)"),
        (torch.zeros(3, 5, 3), ValueError, r"negative_keys must be \(M, D\) or \(N, M, D\)"),
        (torch.zeros(0, 3), ValueError, r"negative_keys must be \(M, D\) or \(N, M, D\)"),
        (torch.zeros(3), ValueError, r"negative_keys must be \(M, D\) or \(N, M, D\)"),
        (torch.zeros(5, 3).double(), TypeError, "share a dtype"),
        (torch.zeros(5, 3).long(), TypeError, "floating-point dtype"),
    ],
)
def test_bad_negatives(negative_keys, error, message):
    with pytest.raises(error, match=message):
        info_nce(torch.zeros(2, 3), torch.zeros(2, 3), negative_keys=negative_keys)


@pytest.mark.parametrize(
    "others",
    [
        {"positive_index": torch.arange(2)},
        {"labels": torch.arange(2), "key_labels": torch.arange(2)},
        {"key_mask": torch.ones(2, dtype=torch.bool)},
        {"exclude_self": True},
        {"self_index": torch.arange(2)},
        {"exclude_index": torch.zeros(2, 1, dtype=torch.long)},
        {"decoupled": True},
        {"hardness": 1.0},
    ],
)
def test_options_that_say_which_keys_count_are_refused(others):
    features = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=f"negative_keys excludes {', '.join(others)}"):
        info_nce(features, features, negative_keys=features, **others)


def test_every_query_has_a_positive_of_its_own():
    with pytest.raises(ValueError, match="got 2 queries and 3 keys"):
        info_nce(torch.zeros(2, 3), torch.zeros(3, 3), negative_keys=torch.zeros(4, 3))
