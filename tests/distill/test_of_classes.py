"""What several rooms do with classes and hooks, written once: draws, means, read inputs."""

import pytest
import torch
from torch import nn

from mim4dd.distill.data.per_class import draw_of_class
from mim4dd.distill.training.class_means import class_means
from mim4dd.distill.training.features import reading_inputs


def test_a_draw_is_of_different_rows_of_the_class_in_a_random_order():
    labels = torch.randint(3, (50,))
    members = torch.where(labels == 1)[0]
    whole = draw_of_class(labels, 1, 50, torch.Generator().manual_seed(0))
    assert torch.equal(whole.sort().values, members)
    assert torch.equal(draw_of_class(labels, 1, 4, torch.Generator().manual_seed(0)), whole[:4])
    orders = {tuple(draw_of_class(labels, 1, 50, torch.Generator().manual_seed(seed)).tolist())
              for seed in range(5)}  # fmt: skip
    assert len(orders) > 1
    half = draw_of_class(labels, 1, lambda size: size // 2, torch.Generator())
    assert len(half) == len(members) // 2
    assert len(draw_of_class(labels, 7, 3, torch.Generator())) == 0


def test_means_are_those_of_each_class_and_nan_without_any():
    features, labels = torch.randn(40, 5, dtype=torch.float64), torch.randint(3, (40,))
    found = class_means(features, labels, 4)
    for label in labels.unique():
        torch.testing.assert_close(found[label], features[labels == label].mean(0))
    assert found[3].isnan().all()


def test_inputs_are_read_in_the_order_of_the_calls_and_hooks_go():
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    network, images = nn.Sequential(first, nn.ReLU(), second), torch.randn(5, 3)
    with reading_inputs(network, [second, first], lambda module, read: read.sum()) as found:
        network(images)
    expected = [images.sum(), first(images).relu().sum()]
    assert all(map(torch.equal, found, expected))
    with pytest.raises(RuntimeError), reading_inputs(network, [first], lambda _, read: read):
        network(torch.randn(5, 7))
    assert not any(module._forward_pre_hooks for module in network.modules())
    network(images)
    assert len(found) == 2
