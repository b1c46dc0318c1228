"""NormReLUPool2d and fuse: the same parameters, names, outputs and gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from unrolls.test_convolution import LAYOUTS, SHAPES

from mim4dd import NormReLUPool2d, flatten_parameters, fuse, unroll_sgd


class FieldConvNet(nn.Module):
    """The ConvNet of the field's repositories: all blocks in one Sequential, ReLU in place."""

    def __init__(self, channels=3, width=8, depth=3, image_size=16, num_classes=5):
        super().__init__()
        layers = []
        for _ in range(depth):
            layers += [
                nn.Conv2d(channels, width, kernel_size=3, padding=1),
                nn.GroupNorm(width, width, affine=True),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(kernel_size=2, stride=2),
            ]
            channels, image_size = width, image_size // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * image_size**2, num_classes)

    def forward(self, images):
        return self.classifier(self.features(images).flatten(1))


def randomised(model):
    """In float64, with norms that scale and shift."""
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def fused_pair(model):
    """The model, its fused copy, and what was fused."""
    plain = randomised(model)
    fused = copy.deepcopy(plain)
    return plain, fused, fuse(fused)


def assert_same(plain, fused, images):
    """Output and two orders of gradients."""
    results = []
    for model in (plain, fused):
        images = images.detach().requires_grad_()
        leaves = [images, *model.parameters()]
        out = model(images)
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        total = sum((gradient**3).sum() for gradient in first)
        results.append([out, *first, *torch.autograd.grad(total, leaves)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_the_fields_convnet():
    plain, fused, found = fused_pair(FieldConvNet())
    assert found == [f"features.{i}: GroupNorm + ReLU + AvgPool2d" for i in (1, 5, 9)]
    assert [type(fused.features[i]) for i in (1, 2, 3)] == [
        NormReLUPool2d,
        nn.Identity,
        nn.Identity,
    ]
    assert list(plain.state_dict()) == list(fused.state_dict())
    fused.load_state_dict(plain.state_dict())
    assert_same(plain, fused, torch.randn(3, 3, 16, 16, dtype=torch.float64))
    assert fuse(fused) == []


def test_trajectories_through_a_fused_model():
    plain, fused, _ = fused_pair(FieldConvNet(depth=2, image_size=8))
    theta = flatten_parameters(plain)
    assert torch.equal(theta, flatten_parameters(fused))
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(6) % 5
    batches = torch.randint(6, (3, 4))
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    results = []
    for model in (plain, fused):
        end = unroll_sgd(model, theta, images, labels, batches, lr=lr)
        results.append((end, *torch.autograd.grad(end.square().sum(), (images, lr))))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_parameters_are_the_same_objects_in_the_same_order():
    shared = nn.GroupNorm(2, 4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), nn.Conv2d(4, 4, 1))
    model.append(nn.GroupNorm(4, 4)).append(nn.ReLU())
    model[4].weight = shared.weight
    before = list(model.parameters())
    model.eval()
    assert fuse(model) == ["1: GroupNorm + ReLU", "4: GroupNorm + ReLU"]
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert model[1].weight is model[4].weight
    assert not any(module.training for module in model.modules())


FUSED = {
    "group": ([nn.GroupNorm(2, 4), nn.ReLU(), nn.AvgPool2d(2)], "GroupNorm + ReLU + AvgPool2d"),
    "instance": (
        [nn.InstanceNorm2d(4, affine=True, eps=1e-3), nn.ReLU(), nn.AvgPool2d((3, 3), (3, 3))],
        "InstanceNorm2d + ReLU + AvgPool2d",
    ),
    "no affine": ([nn.GroupNorm(2, 4, affine=False), nn.ReLU()], "GroupNorm + ReLU"),
    "other pool": (
        [nn.GroupNorm(2, 4), nn.ReLU(), nn.AvgPool2d(3, stride=1)],
        "GroupNorm + ReLU",
    ),
    "padded pool": (
        [nn.GroupNorm(2, 4), nn.ReLU(), nn.AvgPool2d(2, padding=1)],
        "GroupNorm + ReLU",
    ),
    "ceil": ([nn.GroupNorm(2, 4), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)], "GroupNorm + ReLU"),
    "oblong": ([nn.GroupNorm(2, 4), nn.ReLU(), nn.AvgPool2d((2, 1))], "GroupNorm + ReLU"),
    "divisor": (
        [nn.GroupNorm(2, 4), nn.ReLU(), nn.AvgPool2d(2, divisor_override=3)],
        "GroupNorm + ReLU",
    ),
    "max": ([nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2)], "GroupNorm + ReLU"),
}


@pytest.mark.parametrize("name", FUSED)
def test_what_is_fused(name):
    modules, kinds = FUSED[name]
    plain, fused, found = fused_pair(nn.Sequential(nn.Conv2d(3, 4, 1), *copy.deepcopy(modules)))
    assert found == [f"1: {kinds}"]
    assert_same(plain, fused, torch.randn(2, 3, 7, 7, dtype=torch.float64))


class Doubled(nn.GroupNorm):
    def forward(self, input):
        return 2 * super().forward(input)


def hooked(register):
    norm = nn.GroupNorm(2, 4)
    getattr(norm, register)(lambda *_: None)
    return norm


def patched():
    norm = nn.GroupNorm(2, 4)
    norm.forward = lambda input: input
    return norm


LEFT_ALONE = {
    "subclass": lambda: [Doubled(2, 4), nn.ReLU(), nn.AvgPool2d(2)],
    "forward hook": lambda: [hooked("register_forward_hook"), nn.ReLU()],
    "forward pre-hook": lambda: [hooked("register_forward_pre_hook"), nn.ReLU()],
    "backward hook": lambda: [hooked("register_full_backward_hook"), nn.ReLU()],
    "forward of its own": lambda: [patched(), nn.ReLU()],
    "parametrised": lambda: [
        nn.utils.parametrizations.weight_norm(nn.GroupNorm(2, 4), dim=None),
        nn.ReLU(),
    ],
    "running statistics": lambda: [
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.ReLU(),
        nn.AvgPool2d(2),
    ],
    "instance norm without affine": lambda: [nn.InstanceNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)],
    "batch norm": lambda: [nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)],
    "other activation": lambda: [nn.GroupNorm(2, 4), nn.GELU(), nn.AvgPool2d(2)],
    "not adjacent": lambda: [nn.GroupNorm(2, 4), nn.Dropout(), nn.ReLU()],
    "the norm twice": lambda: [norm := nn.GroupNorm(2, 4), nn.ReLU(), norm],
    "the ReLU twice": lambda: [
        nn.GroupNorm(2, 4),
        relu := nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.GroupNorm(2, 4),
        relu,
    ],
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_left_alone(name):
    model = nn.Sequential(*LEFT_ALONE[name]())
    modules = list(model)
    assert fuse(model) == []
    assert all(a is b for a, b in zip(modules, model, strict=True))


def test_a_container_with_a_forward_of_its_own_is_left_alone():
    class Residual(nn.Sequential):
        def forward(self, input):
            return input + self[0](input)

    model = nn.Sequential(Residual(nn.GroupNorm(2, 4), nn.ReLU()))
    assert fuse(model) == []


def test_a_block_that_occurs_twice_is_left_alone():
    block = nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU())
    assert fuse(nn.Sequential(block, nn.Conv2d(4, 4, 1), block)) == []


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 6), (3, 4, 2, 3, 5)])
def test_without_pooling_maps_have_any_rank(shape):
    # Two numbers of a group may lie so close that a smaller eps blows their rounding up.
    plain, fused, _ = fused_pair(nn.Sequential(nn.GroupNorm(2, 4, eps=0.1), nn.ReLU()))
    assert_same(plain, fused, torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize("norm", [nn.GroupNorm, nn.InstanceNorm2d])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_strides_are_those_of_the_modules_before(shape, layout, pool, norm, device):
    if norm is nn.InstanceNorm2d and shape[2:] == (1, 1):
        pytest.skip("PyTorch refuses it")
    pool = min(pool, *shape[2:])
    channels = shape[1]
    first = norm(channels, affine=True) if norm is nn.InstanceNorm2d else norm(1, channels)
    plain = nn.Sequential(first, nn.ReLU(), *[nn.AvgPool2d(pool)] * (pool > 1)).to(device)
    fused = copy.deepcopy(plain)
    if not fuse(fused):
        pytest.skip("an instance norm without a pooling is left alone")
    images = LAYOUTS[layout](shape).to(device)
    assert fused(images).stride() == plain(images).stride()


def test_volumes_keep_their_layout(device):
    maps = torch.randn(2, 4, 3, 5, 2, device=device).to(memory_format=torch.channels_last_3d)
    plain = nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU()).to(device)
    fused = copy.deepcopy(plain)
    fuse(fused)
    if device == "cpu":
        assert fused(maps).stride() == plain(maps).stride()
    torch.testing.assert_close(fused(maps), plain(maps))


def test_a_function_mode_sees_one_call():
    """An unroll calls its mode in every step: for each attribute that a layer looks at, or once."""

    class Counting(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    layer, maps = NormReLUPool2d(3, 6), torch.randn(2, 6, 4, 4)
    with Counting() as counting:
        output = layer(maps)
    assert counting.calls == 1
    assert torch.equal(output, layer(maps))


def test_state_of_a_group_norm_fits():
    norm, layer = nn.GroupNorm(2, 4), NormReLUPool2d(2, 4)
    nn.init.normal_(norm.weight)
    layer.load_state_dict(norm.state_dict())
    assert torch.equal(layer.weight, norm.weight)
    assert repr(layer) == "NormReLUPool2d(2, 4, pool=2, eps=1e-05, affine=True)"
    assert list(NormReLUPool2d(2, 4, affine=False).parameters()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_groups": 3}, "num_groups must divide the 4 channels, got 3"),
        ({"num_groups": 0}, "num_groups must be positive"),
        ({"num_channels": -4}, "num_channels must be positive"),
        ({"pool": 0}, "pool must be positive"),
        ({"eps": -1.0}, "eps must be positive"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        NormReLUPool2d(**({"num_groups": 2, "num_channels": 4} | change))
