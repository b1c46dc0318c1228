"""sup_con: both variants against their loops, gradients, errors."""

import pytest
import torch
from labelled import make_labelled

from mim4dd import info_nce, sup_con

SHAPES = [(1, 1, 4), (16, 40, 8), (37, 23, 5)]


def by_loop(query, key, labels, key_labels, variant, temperature):
    """Equations 2 and 3 of the paper, one query and one positive at a time."""
    losses = []
    for q, label in zip(query, labels, strict=True):
        similarity = torch.exp(key @ q / temperature)
        shares = [similarity[j] / similarity.sum() for j in torch.where(key_labels == label)[0]]
        if not shares:
            losses.append(0 * q.sum())
        elif variant == "out":
            losses.append(-sum(share.log() for share in shares) / len(shares))
        else:
            losses.append(-(sum(shares) / len(shares)).log())
    return torch.stack(losses)


@pytest.mark.parametrize("variant", ["out", "in"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_loop(shape, variant, device):
    query, key, labels, key_labels = make_labelled(shape, device)
    upstream = torch.randn(shape[0], dtype=torch.float64, device=device)
    actual = sup_con(
        query, key, labels, key_labels, variant=variant, temperature=0.3, reduction="none"
    )
    expected = by_loop(query, key, labels, key_labels, variant, 0.3)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, (query, key), upstream),
        torch.autograd.grad(expected, (query, key), upstream),
    )


def test_in_is_never_above_out(device):
    inputs = make_labelled((30, 50, 8), device)
    out = sup_con(*inputs, reduction="none")
    assert (sup_con(*inputs, variant="in", reduction="none") <= out + 1e-12).all()


def test_out_is_info_nce_with_labels(device):
    query, key, labels, key_labels = make_labelled((16, 40, 8), device)
    expected = info_nce(query, key, labels=labels, key_labels=key_labels)
    assert torch.equal(sup_con(query, key, labels, key_labels), expected)


@pytest.mark.parametrize("variant", ["out", "in"])
def test_derivatives(variant, device):
    query, key, labels, key_labels = make_labelled((4, 6, 3), device)
    temperature = torch.tensor(0.5, dtype=torch.float64, device=device, requires_grad=True)

    def loss(query, key, temperature):
        return sup_con(
            query, key, labels, key_labels, variant=variant, temperature=temperature,
            reduction="none",
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, (query, key, temperature))
    assert torch.autograd.gradgradcheck(loss, (query, key, temperature))


@pytest.mark.parametrize("variant", ["out", "in"])
def test_infinite_features_give_nan(variant, device):
    query, key, labels, key_labels = (
        tensor.detach() for tensor in make_labelled((8, 9, 4), device)
    )
    key[2, 1] = -torch.inf
    assert sup_con(query, key, labels, key_labels, variant=variant).isnan()


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="variant must be one of 'out', 'in'"):
        sup_con(*make_labelled((4, 4, 2), "cpu"), variant="both")
