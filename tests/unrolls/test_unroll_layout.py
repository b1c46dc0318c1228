"""What a model meets in an unroll on a CPU: the strides that it would meet without us."""

import pytest
import torch
import torch.nn.functional as F
from field_networks import Viewed, convnet
from torch import nn

from mim4dd import flatten_parameters, fuse, reference, unroll_sgd
from mim4dd._layout import is_channels_last
from mim4dd._unroll.functional import FunctionalModel
from mim4dd._unroll.regions import channels_last_inside, regions_of
from mim4dd.distill.networks import ConvNet, ResNet18

LABELS = torch.arange(3)
BATCHES = torch.tensor([[0, 1, 2], [2, 0, 1]])


class Watching(nn.Module):
    """Notes the strides of whatever passes it, and what its class is called with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, maps):
        self.seen.append(maps.stride())
        return maps


def watched(fused, *, in_parts=False):
    """A ConvNet that is watched before, between and after its convolutions."""
    layers, watchers = [], []
    for block in range(2):
        watchers.append(Watching())
        conv = nn.Conv2d(16 if block else 3, 16, 3, padding=1)
        layers += [watchers[-1], conv, nn.GroupNorm(16, 16), nn.ReLU(), nn.AvgPool2d(2)]
    watchers.append(Watching())
    body = nn.Sequential(*layers)
    if fused:
        assert len(fuse(body)) == 2
    parts = [nn.Sequential(*body[:5]), nn.Sequential(*body[5:])] if in_parts else [body]
    return nn.Sequential(*parts, watchers[-1], nn.Flatten(), nn.Linear(64, 3)), watchers


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_module_sees_the_strides_that_it_would_see_without_us(memory_format, fused):
    model, watchers = watched(fused)
    images = torch.randn(3, 3, 8, 8).to(memory_format=memory_format)
    model(images[BATCHES[0]])
    expected = [watcher.seen.pop() for watcher in watchers]
    unroll_sgd(model, flatten_parameters(model), images.requires_grad_(), LABELS, BATCHES, lr=0.1)
    for watcher, strides in zip(watchers, expected, strict=True):
        assert set(watcher.seen) == {strides}


class Doubled(torch.autograd.Function):
    """A function of a user's, whose derivative views what it is given."""

    @staticmethod
    def forward(ctx, maps):
        return 2 * maps

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad.view(len(grad), -1).view(grad.shape)


class OwnFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        maps = Doubled.apply(self.first(Doubled.apply(images))).tanh()
        return self.head(Doubled.apply(self.second(maps)).mean((2, 3)))


def test_a_functions_derivatives_see_them_too():
    model = OwnFunction()
    images = torch.randn(3, 3, 8, 8, requires_grad=True)
    theta_0 = flatten_parameters(model).requires_grad_()
    unroll_sgd(model, theta_0, images, LABELS, BATCHES, lr=0.1).sum().backward()
    assert images.grad.abs().sum() > 0


def test_regions_of_the_fields_networks():
    field = convnet()
    assert regions_of(field) == [field.features]
    own = ConvNet(3, width=4, image_size=8)
    assert regions_of(own) == [own.blocks]
    residual = ResNet18(3, image_size=8)
    assert regions_of(residual) == [residual]
    whole = nn.Sequential(*field.features, nn.Flatten(), *field.linears)
    assert regions_of(whole) == [whole]


class Viewing(ResNet18):
    """What a class says of itself is not said of those that inherit from it."""

    def forward(self, images):
        maps = self.stages(self.stem(images))
        return self.classifier(F.avg_pool2d(maps, maps.shape[-1]).view(len(maps), -1))


def hooked():
    model = convnet()
    model.features[2].register_forward_hook(lambda *_: None)
    return model


NO_REGIONS = {
    "a module of the user's": lambda: watched(fused=True)[0],
    "a hook": hooked,
    "one convolution": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    "no convolution": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)),
    "nothing": nn.Sequential,
}


@pytest.mark.parametrize("name", NO_REGIONS)
def test_no_region(name):
    assert regions_of(NO_REGIONS[name]()) == []


def test_a_subclass_speaks_for_itself():
    model = Viewing(3, image_size=8)
    assert model not in regions_of(model)
    images = torch.randn(3, 3, 8, 8, requires_grad=True)
    unroll_sgd(model, flatten_parameters(model), images, LABELS, BATCHES, lr=0.1).sum().backward()


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_without_hooks(fails):
    model = convnet()
    images = torch.randn(3, 3, 8 if fails else 16, 8 if fails else 16)
    if fails:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            unroll_sgd(model, flatten_parameters(model), images, LABELS, BATCHES, lr=0.1)
    else:
        unroll_sgd(model, flatten_parameters(model), images, LABELS, BATCHES, lr=0.1)
    assert not model.features._forward_hooks
    assert not model.features._forward_pre_hooks


@pytest.mark.parametrize("channels", [1, 3])
def test_inside_a_region_maps_are_channels_last(channels):
    seen = []
    region = nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AvgPool2d(2)
    )
    images = torch.randn(2, channels, 8, 8)
    with channels_last_inside([region], lambda maps: maps.clone(memory_format=torch.channels_last)):
        region[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        output = region(images)
    assert is_channels_last(seen[0])
    assert output.stride() == torch.empty(output.shape).stride()
    torch.testing.assert_close(output, region(images))


@pytest.mark.parametrize("kind", ["region", "in parts", "sliced"])
def test_in_float32_the_gradients_are_those_of_one_region(kind):
    """Winograd's kernels run in both; a border is a copy and rounds nothing."""
    torch.manual_seed(0)
    whole = Viewed([nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)], [])
    whole.linears = nn.ModuleList([nn.Linear(16 * 64, 3)])
    parted = Viewed(whole.features, [])
    parted.linears = whole.linears
    if kind == "in parts":
        parted.features = nn.Sequential(*[nn.Sequential(layer) for layer in whole.features])
    if kind == "sliced":
        parted.see = lambda images: [whole.features[1:](whole.features[:1](images))]
    gradients = []
    for model in (whole, parted):
        images = torch.randn(
            3, 3, 8, 8, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        theta_0 = flatten_parameters(whole).requires_grad_()
        theta_T = unroll_sgd(model, theta_0, images, LABELS, BATCHES, lr=0.1)
        gradients.append(torch.autograd.grad(theta_T.sin().sum(), (images, theta_0)))
    torch.testing.assert_close(*gradients)


def test_trajectories_side_by_side_and_kept_steps():
    model = convnet(norm="batch").double()
    starts = torch.stack([flatten_parameters(model)] * 2).mul_(torch.tensor([[1.0], [0.9]]))
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    batches = torch.stack([BATCHES, BATCHES.flip(0)], dim=1)
    expected = [
        unroll_sgd(model, start, images, LABELS, batches[:, k], lr=0.1)
        for k, start in enumerate(starts)
    ]
    expected = torch.autograd.grad(torch.stack(expected).sin().sum(), images)
    for budget in (0, 10**9):
        theta_T = unroll_sgd(model, starts, images, LABELS, batches, lr=0.1, memory_budget=budget)
        found = torch.autograd.grad(theta_T.sin().sum(), images)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


class TwoOutputs(nn.Module):
    """Takes its images by name, and gives its maps beside what it makes of them."""

    any_memory_format = True

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, images):
        maps = self.second(self.first(images).relu())
        return maps.mean((2, 3)), {"maps": maps}


class CallsByName(nn.Module):
    def __init__(self, by_name):
        super().__init__()
        self.backbone, self.by_name = TwoOutputs(), by_name
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))

    def forward(self, images):
        images = {"images": images} if self.by_name else (images,)
        named = isinstance(images, dict)
        logits, found = self.backbone(**images) if named else self.backbone(*images)
        maps = self.head(input=found["maps"]) if named else self.head(found["maps"])
        return logits + maps.view(len(maps), 4, -1).mean(2)


@pytest.mark.parametrize("by_name", [False, True])
def test_regions_are_called_by_name_and_return_several(by_name):
    torch.manual_seed(0)
    model = CallsByName(by_name).double()
    assert regions_of(model)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    theta = flatten_parameters(model).requires_grad_()
    theta_T = unroll_sgd(model, theta, images, LABELS, BATCHES, lr=0.1)
    (found,) = torch.autograd.grad(theta_T.sin().sum(), images)
    call = FunctionalModel(model)
    lr = torch.tensor(0.1, dtype=torch.float64)
    expected = reference.unroll_sgd(call, theta, images, LABELS, BATCHES, lr)
    (exact,) = torch.autograd.grad(expected.sin().sum(), images)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_augment_may_multiply_under_autocast():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = torch.randn(3, 3, 2, 2, requires_grad=True)
    mix = torch.eye(3).flip(0)

    def augment(images, _):
        return torch.einsum("ij,bjhw->bihw", mix, images)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        theta_0 = flatten_parameters(model)
        theta_T = unroll_sgd(model, theta_0, images, LABELS, BATCHES, lr=0.1, augment=augment)
        theta_T.sin().sum().backward()
    assert images.grad.norm() > 0
