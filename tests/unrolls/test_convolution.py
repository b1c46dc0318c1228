"""The convolutions inside an unroll: the values and both derivatives of torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mim4dd import flatten_parameters, unroll_sgd
from mim4dd._layout import channels_last, is_channels_last
from mim4dd._unroll.convolution import Convolutions, _fastest_kernels, fastest_layout

SHAPES = [(2, 4, 6, 5), (2, 1, 6, 5), (2, 4, 1, 1), (1, 4, 2, 1), (1, 1, 3, 3), (2, 16, 4, 4)]
LAYOUTS = {
    "planes": torch.randn,
    "channels-last": lambda shape: channels_last(torch.randn(shape)),
    "a part": lambda shape: torch.randn(*shape[:3], shape[3] + 2)[..., 1:-1],
    "a channels-last part": lambda shape: channels_last(torch.randn(*shape[:3], shape[3] + 2))[
        ..., 1:-1
    ],
    "expanded": lambda shape: torch.randn(1, 1, *shape[2:]).expand(shape),
}
GEOMETRIES = {
    "3x3": ((24, 18, 3, 3), {"padding": 1}),
    "narrow": ((24, 3, 3, 3), {"padding": 1}),
    "single": ((24, 1, 3, 3), {"padding": 1}),
    "tiny": ((5, 3, 3, 3), {"padding": 1}),
    "strided": ((6, 4, 3, 3), {"padding": (1, 0), "stride": 2}),
    "dilated": ((4, 6, 3, 2), {"padding": 2, "dilation": (2, 1)}),
    "grouped": ((6, 2, 3, 3), {"padding": 1, "groups": 3}),
    "1x1": ((20, 17, 1, 1), {}),
    "beyond the border": ((2, 3, 1, 1), {"padding": 1, "stride": 2, "dilation": 2}),
}


def twice_differentiated(images, weight, bias, scope, options, directions):
    """Value, gradients by weight and bias, and what a cotangent of those is for everything."""
    with scope:
        output = F.conv2d(images, weight, bias, **options)
    parameters = [weight] if bias is None else [weight, bias]
    # Twice nonlinear, so that every term of the second derivative is met.
    loss = (output.sin() * directions[0]).sum()
    gradients = torch.autograd.grad(loss, [images, *parameters], create_graph=True)
    if isinstance(scope, Convolutions):
        scope.first_order = False
    second = torch.autograd.grad(gradients, [images, *parameters], directions[1:])
    return [output, *gradients, *second]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_both_derivatives(geometry, with_bias, dtype, device):
    shape, options = GEOMETRIES[geometry]
    channels = shape[1] * options.get("groups", 1)
    make = {"dtype": torch.float64, "device": device}
    images = torch.randn(3, channels, 7, 6, **make)
    weight = torch.randn(shape, **make) / (shape[1] * shape[2] * shape[3]) ** 0.5
    bias = torch.randn(shape[0], **make) if with_bias else None
    inputs = [images, weight] + ([bias] if with_bias else [])
    output = F.conv2d(images, weight, bias, **options)
    directions = [torch.randn_like(tensor) for tensor in (output, *inputs)]

    def run(dtype, mode):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in inputs]
        scope = Convolutions([images]) if mode else torch.enable_grad()  # images of another scope
        return twice_differentiated(
            *leaves,
            *([] if with_bias else [None]),
            scope,
            options,
            [tensor.to(dtype) for tensor in directions],
        )

    exact, plain, ours = run(torch.float64, False), run(dtype, False), run(dtype, True)
    for truth, theirs, found in zip(exact, plain, ours, strict=True):
        scale = truth.norm()
        error, plain_error = (found - truth).norm() / scale, (theirs - truth).norm() / scale
        # Sums of terms that cancel: which of two is closer is luck, a wrong term is not.
        assert error <= 2 * plain_error + 32 * torch.finfo(dtype).eps


def test_the_gradient_by_the_images_waits_for_the_second_derivative(device):
    """The gradient by the parameters never asks for it: it is not computed, and then it is."""
    images = torch.randn(2, 3, 6, 6, device=device, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, device=device, dtype=torch.float64, requires_grad=True)
    scope = Convolutions([images])
    with scope:
        loss = F.conv2d(images, weight).square().sum()
    assert torch.autograd.grad(loss, images, retain_graph=True, allow_unused=True) == (None,)
    scope.first_order = False
    (found,) = torch.autograd.grad(loss, images)
    (expected,) = torch.autograd.grad(F.conv2d(images, weight).square().sum(), images)
    torch.testing.assert_close(found, expected)


def test_other_functions_and_other_paddings_pass_through(device):
    images = torch.randn(2, 3, 6, 6, device=device)
    weight = torch.randn(4, 3, 3, 3, device=device)
    with Convolutions([images]):
        same = F.conv2d(images, weight, padding="same")
        unbatched = F.conv2d(images[0], weight, padding=1)
        assert torch.equal(images.relu(), F.relu(images))
    torch.testing.assert_close(same, F.conv2d(images, weight, padding="same"))
    torch.testing.assert_close(unbatched, F.conv2d(images[0], weight, padding=1))


@pytest.mark.parametrize(
    ("channels", "out_channels", "kernels"),
    [
        (1, 16, "single"),
        (2, 24, "narrow"),
        (3, 24, "narrow"),
        (8, 16, "narrow"),
        (3, 5, "library"),
        (12, 24, "library"),
        (24, 5, "library"),
        (16, 16, "winograd"),
    ],
)
def test_channels_choose_the_kernels(channels, out_channels, kernels):
    images, weight = torch.randn(2, channels, 6, 6), torch.randn(out_channels, channels, 3, 3)
    assert _fastest_kernels(images, weight) == kernels
    assert _fastest_kernels(images.double(), weight.double()) == "library"
    assert _fastest_kernels(images, weight[..., :2]) == "library"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_strides_are_those_of_pytorch(shape, layout, dtype, device):
    """Of what layers return, and of what their two derivatives do."""
    channels = shape[1]
    layers = [nn.Conv2d(channels, out, 3, padding=1) for out in (1, 4, 16)]
    layers += [nn.Conv2d(channels, 3, 1), nn.GroupNorm(channels, channels)]
    layers += [nn.InstanceNorm2d(channels)] * (shape[2] > 1)
    for layer in layers:
        layer.to(device, dtype)
        images = LAYOUTS[layout](shape).to(device, dtype).requires_grad_()

        def differentiated(scope, layer=layer, images=images):
            with scope:
                output = layer(images)
            (first,) = torch.autograd.grad(output.sin().sum(), images, create_graph=True)
            return output, first, *torch.autograd.grad(first.square().sum(), images)

        theirs = differentiated(torch.enable_grad())
        ours = differentiated(Convolutions([]))
        assert ours[0].stride() == theirs[0].stride()
        if isinstance(layer, nn.Conv2d):
            assert [is_channels_last(each) for each in ours] == [
                is_channels_last(each) for each in theirs
            ]


def test_on_a_cpu_the_layout_is_channels_last():
    images = torch.randn(2, 3, 4, 5)
    assert fastest_layout(images).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(fastest_layout(images), images)
    assert fastest_layout(images.flatten(1)).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_instance_norm_of_one_image_between_convolutions(dtype, device):
    """Its gradient by PyTorch is wrong where what comes back is channels-last, as from ours."""
    images = torch.randn(1, 3, 6, 6, device=device, dtype=dtype)
    first = torch.randn(16, 3, 3, 3, device=device, dtype=dtype, requires_grad=True)
    second = torch.randn(16, 16, 3, 3, device=device, dtype=dtype) / 12

    def gradient(scope):
        with scope:
            hidden = F.instance_norm(F.conv2d(images, first, padding=1)).tanh()
            loss = F.conv2d(hidden, second, padding=1).sin().sum()
        return torch.autograd.grad(loss, first)[0]

    expected = gradient(torch.enable_grad())
    found = gradient(Convolutions([images]))
    assert (found - expected).norm() <= 100 * torch.finfo(dtype).eps * expected.norm()


def test_a_convolution_that_is_batched_by_its_images_alone(device):
    """As a frozen one is, within several trajectories at once on a GPU."""
    images = torch.randn(2, 1, 3, 6, 6, device=device, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, device=device)
    with Convolutions([]):
        found = torch.vmap(lambda each: F.conv2d(each, weight))(images)
    torch.testing.assert_close(found[:, 0], F.conv2d(images[:, 0], weight))


def test_padding_beyond_the_kernel_crashes_nothing(device):
    """oneDNN does, on channels-last images of one column."""
    weight, bias = torch.randn(2, 3, 1, 1, device=device), torch.randn(2, device=device)
    for _ in range(100):
        images = torch.randn(2, 3, 6, 1, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        with Convolutions([images]):
            found = F.conv2d(images, weight, bias, 2, 1, 2)
        torch.testing.assert_close(
            found, F.conv2d(images.clone().contiguous(), weight, bias, 2, 1, 2)
        )


class LibraryConvolutions(TorchDispatchMode):
    """Notes kernel size and stride of whatever PyTorch's own convolutions are asked for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.seen.append((tuple(args[1].shape[2:]), args[3]))
        elif func is torch.ops.aten.convolution_backward.default:
            self.seen.append((tuple(args[2].shape[2:]), args[4]))
        return func(*args, **(kwargs or {}))


def test_no_strided_convolution_of_one_pixel_reaches_onednn():
    """Of maps with fewer channels than a vector, channels last, it writes beyond its memory."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1, stride=(2, 3)), nn.Flatten())
    model.append(nn.Linear(8 * 3 * 2, 3))
    images, labels = torch.randn(3, 3, 8, 8, requires_grad=True), torch.arange(3)
    batches = torch.arange(3).expand(2, -1)
    with LibraryConvolutions() as library:
        theta_T = unroll_sgd(model, flatten_parameters(model), images, labels, batches, lr=0.1)
        theta_T.sum().backward()
    assert ((1, 1), [1, 1]) in library.seen
    assert all(stride == [1, 1] for size, stride in library.seen if size == (1, 1))
