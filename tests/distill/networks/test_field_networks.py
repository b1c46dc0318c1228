"""The networks beside the field's: parameters, padding and outputs.

The definitions of MTT and DC are written out below, over the parameters of the network under test.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mim4dd import flatten_parameters
from mim4dd.distill.networks import (
    MLP,
    NETWORKS,
    VGG11,
    AlexNet,
    ConvNet,
    LeNet,
    ResNet18,
    make_network,
)

MNIST, CIFAR, GREY = (1, 28), (3, 32), (1, 32)


def count(network):
    return flatten_parameters(network).numel()


@pytest.mark.parametrize(
    ("arguments", "num_parameters"),
    [
        ({"num_classes": 10}, 320_010),  # MTT's ConvNetD3 on CIFAR-10
        ({"num_classes": 100}, 504_420),  # and on CIFAR-100
        ({"num_classes": 200, "depth": 4, "image_size": 64}, 857_160),  # Tiny ImageNet
        ({"num_classes": 10, "width": 16, "norm": "layer"}, 50_666),  # an affine map of every entry
        ({"num_classes": 10, "channels": 1, "norm": "layer", "image_size": 28}, 661_002),
    ],
)
def test_parameter_counts_of_convnets_are_the_fields(arguments, num_parameters):
    assert count(ConvNet(**arguments)) == num_parameters


@pytest.mark.parametrize(
    ("make", "of_mnist", "of_cifar"),  # what MTT's own networks.py counts
    [
        (LeNet, 61_706, 62_006),
        (AlexNet, 1_865_802, 1_872_202),
        (VGG11, 9_229_962, 9_231_114),
        (ResNet18, 11_172_810, 11_173_962),
        (lambda *sizes: ResNet18(*sizes, pooling="avg"), 11_213_770, 11_250_762),
        (lambda classes, channels, size: MLP(classes, channels * size**2), 118_282, 411_146),
    ],
)
def test_parameter_counts_are_the_fields(make, of_mnist, of_cifar):
    with torch.device("meta"):
        assert count(make(10, *MNIST)) == of_mnist
        assert count(make(10, *CIFAR)) == of_cifar


def test_parameters_come_in_mtts_order():
    """Convolution, norm, convolution, norm, …, classifier: what replay buffers hold."""
    shapes = [tuple(p.shape) for p in ConvNet(10, channels=1, width=8, depth=2).parameters()]
    block = [(8,)] * 3
    assert shapes == [(8, 1, 3, 3), *block, (8, 8, 3, 3), *block, (10, 8 * 8 * 8), (10,)]


@pytest.mark.parametrize(
    ("make", "channels", "image_size", "padding"),
    [
        # MTT's pads one channel by 3, whatever the size; that fits where poolings round it away.
        *[(ConvNet, 1, size, 3) for size in (8, 16, 28, 32, 64, 128)],
        *[(lambda c, *, channels, image_size: ConvNet(c, channels, 8, 2, image_size), 1, size, 1)
          for size in (8, 32, 64)],
        (lambda c, **sizes: ConvNet(c, pooling="none", **sizes), 1, 32, 1),
        (lambda c, **sizes: ConvNet(c, norm="layer", **sizes), 1, 32, 1),
        (lambda c, **sizes: ConvNet(c, norm="layer", **sizes), 1, 28, 3),
        (ConvNet, 3, 28, 3),  # of three channels MTT's does not take 28 pixels
        *[(ConvNet, 3, size, 1) for size in (32, 64, 128)],
        *[(AlexNet, 1, 28, 4), (AlexNet, 1, 32, 4), (AlexNet, 1, 64, 2), (AlexNet, 3, 32, 2)],
        *[(VGG11, 1, 28, 3), (VGG11, 1, 32, 3), (VGG11, 1, 64, 1), (VGG11, 3, 32, 1)],
        *[(LeNet, 1, 28, 2), (LeNet, 3, 32, 0)],
        *[(ResNet18, 1, 28, 1), (ResNet18, 1, 32, 1), (ResNet18, 3, 32, 1)],
    ],
)  # fmt: skip
def test_the_first_padding_is_the_fields(make, channels, image_size, padding):
    with torch.device("meta"):
        network = make(10, channels=channels, image_size=image_size)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert first.padding == (padding, padding)


def field_norm(maps, weight, bias, norm):
    if norm == "none":
        return maps
    if norm == "batch":
        return F.batch_norm(maps, None, None, weight, bias, training=True)
    if norm == "layer":
        return F.layer_norm(maps, maps.shape[1:], weight, bias)
    return F.group_norm(maps, 4 if norm == "group" else maps.shape[1], weight, bias)


def field_convnet(p, images, norm, pooling):
    maps = images
    for _ in range(3):
        padding = 3 if maps.shape[1] == 1 else 1
        maps = F.conv2d(maps, next(p), next(p), padding=padding)
        affine = (None, None) if norm == "none" else (next(p), next(p))
        maps = field_norm(maps, *affine, norm).relu()
        if pooling != "none":
            maps = {"avg": F.avg_pool2d, "max": F.max_pool2d}[pooling](maps, 2)
    return F.linear(maps.flatten(1), next(p), next(p))


def field_lenet(p, images, norm, pooling):
    maps = images
    for padding in (2 if images.shape[1] == 1 else 0, 0):
        maps = F.max_pool2d(F.conv2d(maps, next(p), next(p), padding=padding).relu(), 2)
    hidden = maps.flatten(1)
    for _ in range(2):
        hidden = F.linear(hidden, next(p), next(p)).relu()
    return F.linear(hidden, next(p), next(p))


def field_alexnet(p, images, norm, pooling):
    maps = images
    for padding, is_pooled in ((2, True), (2, True), (1, False), (1, False), (1, True)):
        if maps.shape[1] == 1:
            padding = 4
        maps = F.conv2d(maps, next(p), next(p), padding=padding)
        affine = (None, None) if norm == "none" else (next(p), next(p))
        maps = field_norm(maps, *affine, norm).relu()
        maps = F.max_pool2d(maps, 2) if is_pooled else maps
    return F.linear(maps.flatten(1), next(p), next(p))


def field_vgg11(p, images, norm, pooling):
    maps = images
    for is_pooled in (True, True, False, True, False, True, False, True):
        padding = 3 if maps.shape[1] == 1 else 1
        maps = F.conv2d(maps, next(p), next(p), padding=padding)
        maps = field_norm(maps, next(p), next(p), norm).relu()
        maps = F.max_pool2d(maps, 2) if is_pooled else maps
    return F.linear(maps.flatten(1), next(p), next(p))


def field_mlp(p, images, norm, pooling):
    hidden = images.flatten(1)
    for _ in range(2):
        hidden = F.linear(hidden, next(p), next(p)).relu()
    return F.linear(hidden, next(p), next(p))


def field_resnet18(p, images, norm, pooling):
    pools = pooling == "avg"

    def convolved(maps, stride, padding, pool):
        maps = F.conv2d(maps, next(p), None, 1 if pools else stride, padding)
        return F.avg_pool2d(maps, 2) if pool and pools and stride == 2 else maps

    def block(maps, stride, has_shortcut):
        inner = field_norm(convolved(maps, stride, 1, False), next(p), next(p), norm).relu()
        inner = F.avg_pool2d(inner, 2) if pools and stride == 2 else inner
        inner = field_norm(convolved(inner, 1, 1, False), next(p), next(p), norm)
        if has_shortcut:
            maps = field_norm(convolved(maps, stride, 0, True), next(p), next(p), norm)
        return (inner + maps).relu()

    maps = field_norm(convolved(images, 1, 1, False), next(p), next(p), norm).relu()
    for stride in (1, 2, 2, 2):
        maps = block(maps, stride, has_shortcut=stride == 2)
        maps = block(maps, 1, has_shortcut=False)
    maps = maps if pools else F.avg_pool2d(maps, 4)
    return F.linear(maps.flatten(1), next(p), next(p))


# What the code of MTT and DC runs: of one channel and 32 pixels neither LeNet nor ResNet18_AP, nor
# a ConvNet with a layer norm or without pooling.
DEFINITIONS = [
    ("lenet", field_lenet, "none", None, [MNIST, CIFAR]),
    ("alexnet", field_alexnet, "none", None, [MNIST, CIFAR, GREY]),
    ("alexnet", field_alexnet, "batch", None, [MNIST, CIFAR, GREY]),
    ("vgg11", field_vgg11, "instance", None, [MNIST, CIFAR, GREY]),
    ("vgg11", field_vgg11, "batch", None, [MNIST, CIFAR, GREY]),
    ("resnet18", field_resnet18, "instance", "none", [MNIST, CIFAR, GREY, (3, 40)]),
    ("resnet18", field_resnet18, "batch", "none", [MNIST, CIFAR, GREY, (1, 56)]),
    ("resnet18", field_resnet18, "instance", "avg", [MNIST, CIFAR]),
    ("resnet18", field_resnet18, "batch", "avg", [MNIST, CIFAR]),
    ("mlp", field_mlp, "none", "none", [MNIST, CIFAR]),
    *[
        ("convnet", field_convnet, norm, pooling, [MNIST, CIFAR, GREY, (1, 64)])
        for norm in ("instance", "group", "batch", "none")
        for pooling in ("avg", "max")
    ],
    *[
        ("convnet", field_convnet, norm, pooling, [MNIST, CIFAR])
        for norm, pooling in (("layer", "avg"), ("layer", "max"), ("instance", "none"))
    ],
]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("name", "definition", "norm", "pooling", "channels", "size"),
    [(*rest, *shape) for *rest, shapes in DEFINITIONS for shape in shapes],
)
def test_outputs_are_the_fields(name, definition, norm, pooling, channels, size, device):
    options = {"norm": norm, "pooling": pooling, "width": 8, "depth": 3}
    entry = NETWORKS[name]
    settings = entry.settings(**{key: options[key] for key in options if key in entry.options})
    network = make_network(
        name, num_classes=7, channels=channels, image_size=size, settings=settings
    )
    network.to(device, torch.float64)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() in (1, 3):
                # Norms begin as the identity, which would hide their order.
                parameter.add_(0.3 * torch.randn_like(parameter))
        images = torch.randn(2, channels, size, size, dtype=torch.float64, device=device)
        parameters = iter(list(network.parameters()))
        expected = definition(parameters, images, norm, pooling)
        torch.testing.assert_close(network(images), expected, rtol=1e-10, atol=1e-12)
    assert next(parameters, None) is None
