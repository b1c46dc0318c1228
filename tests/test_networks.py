"""ConvNet: the field's shapes, parameter order and refusals."""

import pytest
import torch
from torch import nn

from mim4dd import flatten_parameters
from mim4dd.distill.networks import ConvNet


@pytest.mark.parametrize(
    ("arguments", "num_parameters"),
    [
        ({"num_classes": 10}, 320_010),  # MTT's ConvNetD3 on CIFAR-10
        ({"num_classes": 100}, 504_420),  # and on CIFAR-100
        ({"num_classes": 200, "depth": 4, "image_size": 64}, 857_160),  # Tiny ImageNet
    ],
)
def test_parameter_counts_are_the_fields(arguments, num_parameters):
    assert flatten_parameters(ConvNet(**arguments)).numel() == num_parameters


def test_parameters_come_in_mtts_order():
    """Convolution, norm, convolution, norm, …, classifier: what replay buffers hold."""
    shapes = [tuple(p.shape) for p in ConvNet(10, channels=1, width=8, depth=2).parameters()]
    block = [(8,)] * 3
    assert shapes == [(8, 1, 3, 3), *block, (8, 8, 3, 3), *block, (10, 8 * 8 * 8), (10,)]


@pytest.mark.parametrize(("norm", "groups"), [("instance", 8), ("group", 4), ("layer", 1)])
def test_a_block_is_convolution_norm_relu_pool(norm, groups):
    network = ConvNet(10, channels=1, width=8, depth=1, image_size=8, norm=norm).double()
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    plain = nn.Sequential(nn.GroupNorm(groups, 8), nn.ReLU(), nn.AvgPool2d(2)).double()
    expected = plain(network.blocks[0][0](images))
    torch.testing.assert_close(network.blocks[0](images), expected)


@pytest.mark.parametrize("norm", ["instance", "group", "layer", "batch", "none"])
@pytest.mark.parametrize("image_size", [8, 28, 32])
def test_logits(norm, image_size):
    network = ConvNet(7, channels=1, width=8, depth=3, image_size=image_size, norm=norm)
    assert network(torch.randn(2, 1, image_size, image_size)).shape == (2, 7)
    modules = dict(network.named_modules())
    assert all(isinstance(modules[name], nn.Module) for name in network.feature_layers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"depth": 4, "image_size": 8}, "depth must be at most 3 for image_size 8"),
        ({"norm": "spectral"}, "norm must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvNet(**({"num_classes": 10} | arguments))


def test_bad_images():
    with pytest.raises(ValueError, match=r"images must be \(B, \(3, 32, 32\)\)"):
        ConvNet(10)(torch.zeros(2, 1, 32, 32))
