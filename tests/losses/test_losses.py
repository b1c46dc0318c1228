"""The loss modules: what stands beside the loss, layers and weights, and the bound."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mim4dd import (
    InfoNCELoss,
    MIM4DDLoss,
    NCELoss,
    SupConLoss,
    info_nce,
    nce,
    reference,
    sup_con,
)


def make_inputs(device, num_queries=12, num_keys=20, num_classes=4):
    query = torch.randn(num_queries, 8, dtype=torch.float64, device=device)
    key = torch.randn(num_keys, 8, dtype=torch.float64, device=device)
    labels = torch.arange(num_queries, device=device) % num_classes
    key_labels = torch.arange(num_keys, device=device) % num_classes
    return query, key, labels, key_labels


def test_info_nce_loss_by_index_and_by_label(device):
    query, key, labels, key_labels = make_inputs(device)
    loss = InfoNCELoss(temperature=0.5)
    torch.testing.assert_close(loss(query, key), info_nce(query, key, temperature=0.5))
    index = torch.arange(12, device=device) + 3
    torch.testing.assert_close(
        loss(query, key, positive_index=index),
        info_nce(query, key, positive_index=index, temperature=0.5),
    )
    by_label = {"labels": labels, "key_labels": key_labels}
    torch.testing.assert_close(
        loss(query, key, **by_label), info_nce(query, key, **by_label, temperature=0.5)
    )


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (SupConLoss(0.5), lambda *inputs, **o: sup_con(*inputs, temperature=0.5, **o)),
        (
            SupConLoss(0.5, variant="in"),
            lambda *inputs, **o: sup_con(*inputs, temperature=0.5, variant="in", **o),
        ),
        (NCELoss(0.5, bias=-1.0), lambda *i, **o: nce(*i, temperature=0.5, bias=-1.0, **o)),
    ],
)
def test_what_stands_beside_the_loss(module, function, device):
    inputs = make_inputs(device)
    torch.testing.assert_close(module(*inputs), function(*inputs))
    torch.testing.assert_close(module.loss_per_query, function(*inputs, reduction="none"))
    query, key, labels, key_labels = inputs
    certificate = info_nce(
        query, key, labels=labels, key_labels=key_labels, temperature=0.5, reduction="none"
    )
    torch.testing.assert_close(
        module.mi_lower_bound, reference.mi_lower_bound(certificate, labels, key_labels)
    )


@pytest.mark.parametrize(("module", "function"), [(SupConLoss, sup_con), (NCELoss, nce)])
def test_queries_among_the_keys(module, function, device):
    query, _, labels, _ = make_inputs(device)
    loss = module(temperature=0.5)
    expected = function(query, query, labels, labels, temperature=0.5, exclude_self=True)
    torch.testing.assert_close(loss(query, query, labels, labels, exclude_self=True), expected)
    with pytest.raises(RuntimeError, match="mi_lower_bound needs keys that are drawn indep"):
        _ = loss.mi_lower_bound
    # In a memory that holds the batch and more.
    slots = torch.arange(12, device=device) + 2
    key, key_labels = torch.cat([query[:2], query]), torch.cat([labels[:2], labels])
    torch.testing.assert_close(
        loss(query, key, labels, key_labels, self_index=slots),
        function(query, key, labels, key_labels, temperature=0.5, self_index=slots),
    )
    loss(query, key, labels, key_labels)
    assert loss.mi_lower_bound.isfinite()  # of another call


def test_two_views_in_one_batch(device):
    query, *_ = make_inputs(device)
    partner = (torch.arange(12, device=device) + 6) % 12
    loss = InfoNCELoss(temperature=0.5, normalize=True)
    torch.testing.assert_close(
        loss(query, query, positive_index=partner, exclude_self=True),
        info_nce(
            query,
            query,
            positive_index=partner,
            exclude_self=True,
            temperature=0.5,
            normalize=True,
        ),
    )
    with pytest.raises(RuntimeError, match="mi_lower_bound needs keys that are drawn indep"):
        _ = loss.mi_lower_bound


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_reductions(reduction, device):
    inputs = make_inputs(device)
    expected = sup_con(*inputs, reduction=reduction)
    torch.testing.assert_close(SupConLoss(reduction=reduction)(*inputs), expected)


def test_a_temperature_can_be_learned(device):
    query, key, _, _ = make_inputs(device)
    loss = InfoNCELoss(temperature=nn.Parameter(torch.tensor(0.5, dtype=torch.float64))).to(device)
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    loss(query, key).backward()
    assert loss.temperature.grad.isfinite()
    assert "temperature=0.5" in repr(loss)


@pytest.mark.parametrize("critic", ["info_nce", "nce"])
def test_mim4dd_loss_is_the_weighted_sum_over_layers(critic, device):
    query, key, labels, key_labels = make_inputs(device)
    syn = [query, query.reshape(12, 2, 2, 2), query[:, :5]]
    real = [key, key.reshape(20, 2, 2, 2), key[:, :5]]
    loss = MIM4DDLoss(temperature=0.5, critic=critic, layer_decay=0.25)
    total = loss(syn, real, labels, key_labels)

    function = {"info_nce": sup_con, "nce": nce}[critic]
    layers = [
        function(s.flatten(1), r.flatten(1), labels, key_labels, temperature=0.5, normalize=True)
        for s, r in zip(syn, real, strict=True)
    ]
    torch.testing.assert_close(loss.loss_per_layer, torch.stack(layers))
    torch.testing.assert_close(total, layers[0] / 16 + layers[1] / 4 + layers[2])
    certificates = [
        sup_con(
            *(side.flatten(1) for side in pair), labels, key_labels,
            temperature=0.5, normalize=True, reduction="none",
        )
        for pair in zip(syn, real, strict=True)
    ]  # fmt: skip
    bounds = [reference.mi_lower_bound(each, labels, key_labels) for each in certificates]
    torch.testing.assert_close(loss.mi_lower_bound, torch.stack(bounds))


def test_feature_maps_are_pooled_to_four_pixels(device):
    _, _, labels, key_labels = make_inputs(device)
    syn = torch.randn(12, 3, 16, 8, dtype=torch.float64, device=device)
    real = torch.randn(20, 3, 16, 8, dtype=torch.float64, device=device)
    loss = MIM4DDLoss()
    pooled = [F.avg_pool2d(maps, (4, 2)).flatten(1) for maps in (syn, real)]
    torch.testing.assert_close(
        loss([syn], [real], labels, key_labels),
        loss([pooled[0]], [pooled[1]], labels, key_labels),
    )


def test_a_projection_comes_before_the_comparison(device):
    query, key, labels, key_labels = make_inputs(device)
    projection = nn.Linear(8, 3, dtype=torch.float64, device=device)
    loss = MIM4DDLoss(projection=[projection])
    expected = MIM4DDLoss()([projection(query)], [projection(key)], labels, key_labels)
    torch.testing.assert_close(loss([query], [key], labels, key_labels), expected)
    loss([query], [key], labels, key_labels).backward()
    assert projection.weight.grad is not None


def test_the_bound_reaches_log_c_for_separated_classes_and_not_more(device):
    """Pairs that share only a class carry at most log C nats."""
    num_classes = 5
    labels = torch.arange(30, device=device) % num_classes
    features = torch.eye(num_classes, dtype=torch.float64, device=device)[labels]
    loss = MIM4DDLoss(temperature=0.01)
    loss([features], [features], labels, labels)
    assert loss.mi_lower_bound.item() == pytest.approx(math.log(num_classes), abs=1e-6)


def mutual_information(px, py):
    """I(X; Y) in nats of two discrete variables that share only a class: px, py (C, values)."""
    joint = torch.einsum("cx,cy->xy", px, py) / len(px)
    independent = joint.sum(1, keepdim=True) * joint.sum(0)
    return (joint.xlogy(joint / independent)).nan_to_num(0).sum()


def expected_bound(critic, px, py, num_keys):
    """The bound's expectation over independently drawn keys, by enumeration of all of them."""
    num_classes, values = py.shape
    queries = torch.arange(px.shape[1]).repeat(num_classes)  # every value under every class
    labels = torch.arange(num_classes).repeat_interleave(px.shape[1])
    total = 0.0
    for key_labels in itertools.product(range(num_classes), repeat=num_keys):
        for keys in itertools.product(range(values), repeat=num_keys):
            chance = math.prod(
                float(py[label, key]) / num_classes
                for label, key in zip(key_labels, keys, strict=True)
            )
            if chance == 0:
                continue
            loss = reference.contrastive(
                critic[queries],
                torch.eye(values, dtype=torch.float64)[list(keys)],
                labels,
                torch.tensor(key_labels),
                None,
                torch.tensor(1.0, dtype=torch.float64),
            ).loss
            # Each class once, its queries weighted by how probable they are in it.
            by_class = (loss.view(num_classes, -1) * px).sum(1)
            total += chance * reference.mi_lower_bound(
                by_class, torch.arange(num_classes), torch.tensor(key_labels)
            )
    return total


@pytest.mark.parametrize("num_keys", [2, 4])
def test_the_bound_stays_below_the_mutual_information(num_keys):
    """For the best critic as for random ones, and for the law that class-balanced keys break.

    There a class is seen in X, and in Y only half of the time: balanced keys would give it away by
    elimination, and their 'bound' reach log 2 / 2 nats with two of them.
    """
    px = torch.eye(2, dtype=torch.float64)
    py = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    information = mutual_information(px, py)
    assert information == pytest.approx(0.2158, abs=1e-4)
    best = torch.tensor([[4 / 3, 1e-9], [2 / 3, 2.0]], dtype=torch.float64).log()
    bound = expected_bound(best, px, py, num_keys)
    assert 0.5 * information < bound < information
    for _ in range(3):
        critic = torch.randn(2, 2, dtype=torch.float64)
        assert expected_bound(critic, px, py, num_keys) < information


def test_the_bound_never_passes_the_entropy_of_the_classes(device):
    """Whatever the share of each class among queries and keys."""
    key_labels = torch.tensor([0] * 20 + [1], device=device)
    features = torch.eye(2, dtype=torch.float64, device=device)[key_labels]
    query, labels = torch.eye(2, dtype=torch.float64, device=device)[[1, 1, 0]], [1, 1, 0]
    loss = InfoNCELoss(temperature=0.01)
    loss(query, features, labels=torch.tensor(labels, device=device), key_labels=key_labels)
    entropy = -(20 / 21) * math.log(20 / 21) - math.log(1 / 21) / 21
    assert loss.mi_lower_bound.item() == pytest.approx(entropy)


def test_classes_without_a_query_certify_nothing():
    """Queries of one class say nothing between classes, however many keys the others have."""
    key_labels = torch.tensor([0] * 20 + [1])
    key = torch.eye(2, dtype=torch.float64)[key_labels]
    loss = InfoNCELoss(temperature=0.01)
    loss(key[20:], key, labels=torch.tensor([1]), key_labels=key_labels)
    assert loss.mi_lower_bound.item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"critic": "clip"}, "critic must be one of"),
        ({"layer_decay": 0.0}, r"layer_decay must lie in \(0, 1\]"),
    ],
)
def test_bad_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        MIM4DDLoss(**arguments)


@pytest.mark.parametrize(
    ("syn", "real", "message"),
    [
        ([], [], "same layers"),
        ([torch.zeros(4, 2)], [torch.zeros(4, 2)] * 2, "same layers"),
        ([torch.zeros(4)], [torch.zeros(4)], "at least 2 dimensions"),
    ],
)
def test_bad_features(syn, real, message):
    labels = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        MIM4DDLoss()(syn, real, labels, labels)
    with pytest.raises(ValueError, match="one module per layer"):
        MIM4DDLoss(projection=[nn.Identity()] * 2)(
            [torch.zeros(4, 2)], [torch.zeros(4, 2)], labels, labels
        )


def test_the_bound_is_that_of_the_last_call():
    loss = InfoNCELoss()
    with pytest.raises(RuntimeError, match="call the loss first"):
        _ = loss.mi_lower_bound
    labels, features = torch.arange(4), torch.eye(4)
    loss(features, features, labels=labels, key_labels=labels)
    before = loss.mi_lower_bound
    labels.fill_(-1)  # by a caller who keeps one buffer for the labels of all batches
    torch.testing.assert_close(loss.mi_lower_bound, before)


def test_layer_weights_have_the_precision_of_the_features():
    features = [torch.randn(5, 3, dtype=torch.float64) for _ in range(3)]
    labels = torch.arange(5)
    loss = MIM4DDLoss(layer_decay=0.9)
    total = loss(features, features, labels, labels)
    weights = torch.tensor([0.9**2, 0.9, 1.0], dtype=torch.float64)
    torch.testing.assert_close(total, (weights * loss.loss_per_layer).sum(), rtol=1e-14, atol=0)
