"""The ablation of MIM4DD: the same pairs, matched without negatives."""

import pytest
import torch
import torch.nn.functional as F

from mim4dd import MIM4DDLoss
from mim4dd.distill.add_ons.feature_matching import FeatureMatchingLoss
from mim4dd.distill.add_ons.mutual_information import MIM4DDSettings


def test_it_is_the_mean_distance_of_pairs_of_one_class():
    features_syn = [torch.randn(5, 3, 2, 2).double(), torch.randn(5, 7).double()]
    features_real = [torch.randn(9, 3, 2, 2).double(), torch.randn(9, 7).double()]
    labels_syn = torch.tensor([0, 1, 2, 2, 5])  # no real sample of class 5
    labels_real = torch.tensor([0, 0, 1, 2, 2, 2, 3, 3, 0])
    for features in features_syn:
        features.requires_grad_()
    expected = 0
    for layer, (syn, real) in enumerate(zip(features_syn, features_real, strict=True)):
        query, key = F.normalize(syn.flatten(1)), F.normalize(real.flatten(1))
        per_query = [
            torch.stack(
                [(q - k).square().sum() for k, y in zip(key, labels_real, strict=True) if y == x]
            ).mean()
            for q, x in zip(query[:4], labels_syn[:4], strict=True)
        ]
        expected = expected + 0.5 ** (1 - layer) * torch.stack(per_query).mean()
    loss = FeatureMatchingLoss(layer_decay=0.5)
    actual = loss(features_syn, features_real, labels_syn, labels_real)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, features_syn), torch.autograd.grad(expected, features_syn)
    )


def test_the_bound_beside_it_is_that_of_the_contrastive_loss():
    features = [torch.randn(6, 4), torch.randn(6, 8)]
    labels = torch.arange(6) % 3
    losses = [FeatureMatchingLoss(temperature=0.3), MIM4DDLoss(temperature=0.3)]
    for loss in losses:
        loss(features, features, labels, labels)
    assert torch.equal(losses[0].mi_lower_bound, losses[1].mi_lower_bound)
    assert losses[0].loss_per_layer.shape == (2,)


def test_settings_make_it():
    assert isinstance(MIM4DDSettings(critic="l2").make_criterion(), FeatureMatchingLoss)
    with pytest.raises(ValueError, match="layer_decay must lie in"):
        FeatureMatchingLoss(layer_decay=0.0)
