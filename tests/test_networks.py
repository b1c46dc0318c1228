"""The networks: the field's shapes, parameters, outputs and refusals, and both ways to train them.

The definitions of MTT and DC are written out below, over the parameters of the network under test.
"""

import pytest
import torch
import torch.nn.functional as F
from tiny import TRAINING, make_data
from torch import nn
from torch.func import functional_call

from mim4dd import flatten_parameters, unroll_sgd
from mim4dd.distill.config import TaskSettings
from mim4dd.distill.data import load_data
from mim4dd.distill.experts import train_experts
from mim4dd.distill.networks import (
    MLP,
    NETWORKS,
    VGG11,
    AlexNet,
    ConvNet,
    LeNet,
    ResNet18,
    make_network,
    network_title,
)

MNIST, CIFAR, GREY = (1, 28), (3, 32), (1, 32)


@pytest.fixture
def narrow(monkeypatch):
    """Networks with the layers of the real ones, of a few thousand parameters."""
    monkeypatch.setattr(
        "mim4dd.distill.networks.alexnet._STAGES",
        ((4, 5, True), (6, 5, True), (8, 3, False), (6, 3, False), (6, 3, True)),
    )
    monkeypatch.setattr(
        "mim4dd.distill.networks.vgg11._STAGES", ((4,), (4,), (6, 6), (8, 8), (8, 8))
    )
    monkeypatch.setattr("mim4dd.distill.networks.resnet18._WIDTHS", (4, 6, 8, 10))


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
    network = make_network(name, num_classes=7, channels=channels, image_size=size, **options)
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


@pytest.mark.parametrize(("norm", "groups"), [("instance", 8), ("group", 4)])
@pytest.mark.parametrize(
    ("pooling", "pool"), [("avg", nn.AvgPool2d(2)), ("max", nn.MaxPool2d(2)), ("none", None)]
)
def test_a_block_is_convolution_norm_relu_pool(norm, groups, pooling, pool):
    network = ConvNet(
        10, channels=1, width=8, depth=1, image_size=8, norm=norm, pooling=pooling
    ).double()
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    plain = nn.Sequential(nn.GroupNorm(groups, 8), nn.ReLU(), pool or nn.Identity()).double()
    expected = plain(network.blocks[0][0](images))
    torch.testing.assert_close(network.blocks[0](images), expected)
    assert network(images).shape == (3, 10)


@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
@pytest.mark.parametrize("norm", ["instance", "group", "layer", "batch", "none"])
@pytest.mark.parametrize("image_size", [8, 28, 32])
def test_logits_of_convnets(pooling, norm, image_size):
    network = ConvNet(7, 1, width=8, depth=3, image_size=image_size, norm=norm, pooling=pooling)
    assert network(torch.randn(2, 1, image_size, image_size)).shape == (2, 7)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("image_size", [8, 16, 28, 32, 64])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_tells_images_of_every_size_apart(name, image_size):
    """No layer shrinks to nothing, and no norm sees a single pixel, which becomes a constant."""
    network = make_network(name, num_classes=7, channels=1, image_size=image_size, width=8, depth=2)
    maps = {}
    for layer in network.feature_layers:
        network.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: maps.__setitem__(layer, output)
        )
    images = torch.randn(2, 1, image_size, image_size)
    first, second = network(images)
    assert first.shape == (7,)
    assert list(maps) == list(network.feature_layers)  # early to late
    for layer in maps.values():
        assert layer.shape[0] == 2
        assert not torch.allclose(layer[0], layer[1], rtol=1e-3, atol=0)
    assert not torch.allclose(first, second, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("make", "smallest"), [(LeNet, 4), (AlexNet, 8), (VGG11, 2), (ResNet18, 2)]
)
def test_the_smallest_image(make, smallest):
    first, second = make(3, 1, smallest)(torch.randn(2, 1, smallest, smallest))
    assert not torch.allclose(first, second, rtol=1e-3, atol=0)
    message = f"image_size must be at least {smallest} for {make.__name__}, got {smallest - 1}"
    with pytest.raises(ValueError, match=message):
        make(3, 1, smallest - 1)


UNROLLED = [
    *[(name, None, None) for name in NETWORKS],
    ("convnet", "instance", "max"),
    ("convnet", "batch", "none"),
    ("alexnet", "instance", None),
    ("vgg11", "batch", None),
    ("resnet18", "instance", "avg"),
    ("resnet18", "batch", "none"),
]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("name", "norm", "pooling"), UNROLLED)
def test_unrolls_through_it_are_the_naive_graphs(name, norm, pooling, device):
    options = {"width": 4, "depth": 2, "norm": norm, "pooling": pooling}
    network = make_network(name, num_classes=3, channels=2, image_size=8, **options)
    network.to(device, torch.float64)
    for module in network.modules():
        if hasattr(module, "eps"):  # norms of four pixels blow rounding up where they vary little
            module.eps = 0.1
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith("bias"):
                parameter += 1  # else all four ReLUs of a layer may be off, and gradients 0
    images = torch.randn(6, 2, 8, 8, dtype=torch.float64, device=device, requires_grad=True)
    labels = torch.arange(6, device=device) % 3
    batches = torch.tensor([[0, 4, 2], [5, 1, 3]], device=device)
    lr = torch.tensor(0.1, dtype=torch.float64, device=device, requires_grad=True)
    theta_0 = flatten_parameters(network).requires_grad_()
    actual = unroll_sgd(network, theta_0, images, labels, batches, lr=lr)

    named = dict(network.named_parameters())
    parts = theta_0.split([each.numel() for each in named.values()])
    state = {key: p.view_as(named[key]) for key, p in zip(named, parts, strict=True)}
    for rows in batches:
        value = F.cross_entropy(functional_call(network, state, (images[rows],)), labels[rows])
        gradients = torch.autograd.grad(value, list(state.values()), create_graph=True)
        state = {key: p - lr * g for (key, p), g in zip(state.items(), gradients, strict=True)}
    expected = torch.cat([each.flatten() for each in state.values()])

    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    leaves = [theta_0, images, lr]
    for ours, theirs in zip(
        torch.autograd.grad(actual.sin().sum(), leaves),
        torch.autograd.grad(expected.sin().sum(), leaves),
        strict=True,
    ):
        assert theirs.norm() > 0
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm()


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", NETWORKS)
def test_experts_of_it(name, tmp_path):
    data, task = make_data(), TaskSettings(network=name, width=4)
    buffer = train_experts(task.make_network, task.network_name, data, TRAINING, tmp_path)
    assert buffer.num_parameters == count(task.make_network(data))
    start, end = buffer.segment(0, start_epoch=0, epochs=4)
    assert not torch.equal(start, end)


def test_rows_of_numbers_are_the_mlps():
    network = MLP(num_classes=3, num_features=13, width=5)
    assert count(network) == 13 * 5 + 5 + 5 * 5 + 5 + 5 * 3 + 3
    rows = torch.randn(4, 13)
    first, second, last = (m for m in network.modules() if isinstance(m, nn.Linear))
    torch.testing.assert_close(network(rows), last(second(first(rows).relu()).relu()))
    for wrong in (torch.zeros(4, 12), torch.zeros(13)):
        with pytest.raises(ValueError, match=r"samples must be \(B, ...\) of 13 numbers each"):
            network(wrong)
    wine = load_data("wine")
    assert TaskSettings(network="mlp").make_network(wine)(wine.image_train[:4]).shape == (4, 3)
    with pytest.raises(ValueError, match="wine holds rows of 13 features"):
        TaskSettings(network="lenet").make_network(wine)
    made = make_network("mlp", num_classes=3, channels=13, image_size=1, width=5)
    assert made(rows).shape == (4, 3)


def test_equal_networks_have_equal_titles():
    options = {"width": 32, "depth": 2, "norm": None, "pooling": None}
    titles = {name: network_title(name, **options) for name in NETWORKS}
    assert titles == {
        "convnet": "ConvNet width=32 depth=2 norm=instance pooling=avg",
        "lenet": "LeNet",
        "alexnet": "AlexNet norm=none",
        "vgg11": "VGG11 norm=instance",
        "resnet18": "ResNet18 norm=instance pooling=none",
        "mlp": "MLP width=32",
    }
    chosen = {"norm": "instance", "pooling": "avg"}
    assert network_title("convnet", **options | chosen) == titles["convnet"]
    for name, changes in {
        "convnet": ({"width": 8}, {"depth": 3}, {"norm": "batch"}, {"pooling": "max"}),
        "alexnet": ({"norm": "batch"},),
        "vgg11": ({"norm": "batch"},),
        "resnet18": ({"norm": "batch"}, {"pooling": "avg"}),
        "mlp": ({"width": 8},),
    }.items():
        for change in changes:
            assert network_title(name, **options | change) != titles[name]
    assert network_title("lenet", **options | {"width": 8, "depth": 7}) == "LeNet"


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (ConvNet, {"num_classes": 0}, "num_classes must be at least 1"),
        (ConvNet, {"depth": 4, "image_size": 8}, "depth must be at most 3 for image_size 8"),
        (ConvNet, {"norm": "spectral"}, "norm must be one of"),
        (ConvNet, {"pooling": "sum"}, "pooling must be one of 'avg', 'max', 'none', got 'sum'"),
        (AlexNet, {"norm": "layer"}, "norm must be one of 'none', 'instance', 'batch', got"),
        (VGG11, {"norm": "none"}, "norm must be one of 'instance', 'batch', got 'none'"),
        (ResNet18, {"norm": "group"}, "norm must be one of 'instance', 'batch', got 'group'"),
        (ResNet18, {"pooling": "max"}, "pooling must be one of 'none', 'avg', got 'max'"),
        (LeNet, {"channels": 0}, "channels must be at least 1, got 0"),
        (MLP, {"num_features": 0}, "num_features must be at least 1, got 0"),
    ],
)
def test_bad_arguments(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**({"num_classes": 10} | arguments))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "vit"}, "network must be one of 'convnet', 'lenet', .*, got 'vit'"),
        ({"network": "lenet", "norm": "batch"}, "norm of lenet must be one of 'none', got 'batch'"),
        ({"network": "vgg11", "pooling": "avg"}, "pooling of vgg11 must be one of 'max', got"),
    ],
)
def test_a_network_is_not_given_what_it_does_not_have(options, message):
    with pytest.raises(ValueError, match=message):
        TaskSettings(**options)


@pytest.mark.parametrize("make", [ConvNet, LeNet, AlexNet, VGG11, ResNet18])
def test_bad_images(make):
    with pytest.raises(ValueError, match=r"images must be \(B, \(3, 32, 32\)\)"):
        make(10)(torch.zeros(2, 1, 32, 32))
