"""The networks: outputs, refusals, titles, every size of image, and both ways to train them."""

import pytest
import torch
import torch.nn.functional as F
from tiny import TRAINING, make_data
from torch import nn
from torch.func import functional_call

from mim4dd import flatten_parameters, unroll_sgd
from mim4dd.distill.config.commands import TaskSettings
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
from mim4dd.distill.networks.mlp import MLPSettings


def settings_of(name, **options):
    """The settings of a network, of the options that it has."""
    settings = NETWORKS[name].settings
    return settings(**{key: options[key] for key in options if key in NETWORKS[name].options})


def count(network):
    return flatten_parameters(network).numel()


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
    """No layer shrinks to nothing, and no norm sees a single pixel, which becomes a constant.

    Outputs of a constant differ by rounding alone. Those of a narrow network may differ by less
    than a thousandth, where ReLUs stop most of its channels.
    """
    network = make_network(
        name,
        num_classes=7,
        channels=1,
        image_size=image_size,
        settings=settings_of(name, width=8, depth=2),
    )
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
        assert not torch.allclose(layer[0], layer[1], rtol=1e-5, atol=0)
    assert not torch.allclose(first, second, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("make", "smallest"), [(LeNet, 4), (AlexNet, 8), (VGG11, 2), (ResNet18, 2)]
)
def test_the_smallest_image(make, smallest):
    first, second = make(3, 1, smallest)(torch.randn(2, 1, smallest, smallest))
    assert not torch.allclose(first, second, rtol=1e-5, atol=0)
    message = f"image_size must be at least {smallest} for {make.__name__}, got {smallest - 1}"
    with pytest.raises(ValueError, match=message):
        make(3, 1, smallest - 1)


UNROLLED = [
    *[(name, {}) for name in NETWORKS],
    ("convnet", {"norm": "instance", "pooling": "max"}),
    ("convnet", {"norm": "batch", "pooling": "none"}),
    ("convnet", {"norm": "layer"}),
    ("alexnet", {"norm": "instance"}),
    ("vgg11", {"norm": "batch"}),
    ("resnet18", {"norm": "instance", "pooling": "avg"}),
    ("resnet18", {"norm": "batch", "pooling": "none"}),
]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("name", "options"), UNROLLED)
def test_unrolls_through_it_are_the_naive_graphs(name, options, device):
    settings = settings_of(name, width=4, depth=2, **options)
    network = make_network(name, num_classes=3, channels=2, image_size=8, settings=settings)
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
    width = {"width": 4} if "width" in NETWORKS[name].options else {}
    data, task = make_data(), TaskSettings.of(network=name, **width)
    buffer = train_experts(task.make_network, task.network_title, data, TRAINING, tmp_path)
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
    assert TaskSettings.of(network="mlp").make_network(wine)(wine.image_train[:4]).shape == (4, 3)
    with pytest.raises(ValueError, match="wine holds rows of 13 features"):
        TaskSettings.of(network="lenet").make_network(wine)
    made = make_network("mlp", num_classes=3, channels=13, image_size=1, settings=MLPSettings(5))
    assert made(rows).shape == (4, 3)


def test_equal_networks_have_equal_titles():
    titles = {name: network_title(name, NETWORKS[name].settings()) for name in NETWORKS}
    assert titles == {
        "convnet": "ConvNet width=32 depth=2 norm=instance pooling=avg",
        "lenet": "LeNet",
        "alexnet": "AlexNet norm=none",
        "vgg11": "VGG11 norm=instance",
        "resnet18": "ResNet18 norm=instance pooling=none",
        "mlp": "MLP width=32",
    }
    for name, changes in {
        "convnet": ({"width": 8}, {"depth": 3}, {"norm": "batch"}, {"pooling": "max"}),
        "alexnet": ({"norm": "batch"},),
        "vgg11": ({"norm": "batch"},),
        "resnet18": ({"norm": "batch"}, {"pooling": "avg"}),
        "mlp": ({"width": 8},),
    }.items():
        for change in changes:
            assert network_title(name, NETWORKS[name].settings(**change)) != titles[name]


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
        ({"network": "vit"}, "network must be one of 'alexnet', 'convnet', .*, got 'vit'"),
        ({"network": "lenet", "norm": "batch"}, "norm has no effect on network 'lenet'"),
        ({"network": "vgg11", "pooling": "avg"}, "pooling has no effect on network 'vgg11'"),
        ({"network": "vgg11", "norm": "layer"}, "norm must be one of 'instance', 'batch', got"),
        ({"network": "mlp", "width": 0}, "width must be at least 1 and finite, got 0"),
    ],
)
def test_a_network_is_not_given_what_it_does_not_have(options, message):
    with pytest.raises(ValueError, match=message):
        TaskSettings.of(**options)


@pytest.mark.parametrize("make", [ConvNet, LeNet, AlexNet, VGG11, ResNet18])
def test_bad_images(make):
    with pytest.raises(ValueError, match=r"images must be \(B, \(3, 32, 32\)\)"):
        make(10)(torch.zeros(2, 1, 32, 32))
