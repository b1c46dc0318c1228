"""The loss modules: what stands beside the loss, layers and weights, and the bound."""

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
    certificate = info_nce(query, key, labels=labels, key_labels=key_labels, temperature=0.5)
    torch.testing.assert_close(module.mi_lower_bound, math.log(20) - certificate)


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
        sup_con(s.flatten(1), r.flatten(1), labels, key_labels, temperature=0.5, normalize=True)
        for s, r in zip(syn, real, strict=True)
    ]
    torch.testing.assert_close(loss.mi_lower_bound, math.log(20) - torch.stack(certificates))


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


def test_the_bound_stays_below_the_mutual_information():
    """Over balanced batches the mean bound is below I, known here by enumeration, for any critic.

    X and Y are discrete, independent given a class; the features are a random critic.
    """
    generator = torch.Generator().manual_seed(0)
    given_class = torch.rand(2, 3, 6, generator=generator, dtype=torch.float64) ** 3
    px, py = given_class / given_class.sum(2, keepdim=True)  # (C, 6) each
    joint = torch.einsum("cx,cy->xy", px, py) / 3
    independent = joint.sum(1, keepdim=True) * joint.sum(0)
    information = (joint * (joint / independent).log()).sum()

    labels = torch.arange(30) % 3
    for sharpness in (0.3, 1.0, 3.0):
        critic = sharpness * (joint / independent).log()  # (x, y), the optimal one at 1
        bounds = []
        for _ in range(400):
            x = torch.stack([torch.multinomial(px[c], 1, generator=generator) for c in labels])[
                :, 0
            ]
            y = torch.stack([torch.multinomial(py[c], 1, generator=generator) for c in labels])[
                :, 0
            ]
            one_hot = torch.eye(6, dtype=torch.float64)
            loss, _ = reference.info_nce(critic[x], one_hot[y], labels, labels, 1.0)
            bounds.append(reference.mi_lower_bound(loss.mean(), 30))
        mean = torch.stack(bounds).mean()
        error = torch.stack(bounds).std() / math.sqrt(len(bounds))
        assert mean <= information + 3 * error
        if sharpness == 1.0:  # and not vacuous
            assert mean > 0.8 * information


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
