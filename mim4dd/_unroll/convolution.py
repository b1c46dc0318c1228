"""Two-dimensional convolutions whose second derivative is four library calls, not a dozen."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

import mim4dd.ops.conv3x3
import mim4dd.ops.conv3x3_narrow  # noqa: F401  both register operators
from mim4dd._layout import channels_last, laid_out_as
from mim4dd._torch_private import are_functorch_transforms_active

Triple = tuple[Tensor | None, Tensor | None, Tensor | None]
Mask = tuple[bool, bool, bool]
Kernels = Literal["library", "winograd", "narrow", "single"]

_CHANNELS = 16  # with fewer, vectors of channels are not full and oneDNN is faster
_NARROW = 8  # with more, a product per pixel is not faster than oneDNN
# Of a single one oneDNN (torch 2.13, AVX2) has kernels that take 2 to 20 times as long as ours for
# the convolution and its filters; from two on its own are as fast.
_SINGLE = 1

# On a CPU their backward (PyTorch 2.13) takes a gradient for channels-last that is not, or the
# other way round, where the sizes allow for both: it reads beyond it, or gives wrong numbers.
_MISTAKEN = (F.group_norm, F.instance_norm)


class Geometry(NamedTuple):
    """What a convolution is besides its tensors, and the kernels that suit it."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    kernels: Kernels

    def forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution (B, O, H', W')."""
        if self.kernels == "winograd":
            return torch.ops.mim4dd.conv3x3(images, weight, bias)
        if self.kernels == "single":
            return torch.ops.mim4dd.conv3x3_narrow(images, weight, bias)
        return torch.ops.aten.convolution(
            images, weight, bias, self.stride, self.padding, self.dilation,
            False, [0, 0], self.groups,
        )  # fmt: skip

    def backward(self, grad: Tensor, images: Tensor, weight: Tensor, wanted: Mask) -> Triple:
        """What ``grad`` (B, O, H', W') is for images, weight and bias, where wanted."""
        if self.kernels in ("winograd", "single"):
            ops = torch.ops.mim4dd
            bwd = ops.conv3x3_bwd if self.kernels == "winograd" else ops.conv3x3_narrow_bwd
            of_images, of_weight = bwd(grad, images, weight, wanted[:2])
            return of_images, of_weight, grad.sum((0, 2, 3)) if wanted[2] else None
        if self.kernels == "narrow" and wanted[0]:
            of_images, _ = torch.ops.mim4dd.conv3x3_narrow_bwd(grad, images, weight, (True, False))
            return of_images, *self.backward(grad, images, weight, (False, *wanted[1:]))[1:]
        return torch.ops.aten.convolution_backward(
            grad, images, weight, [weight.shape[0]], self.stride, self.padding, self.dilation,
            False, [0, 0], self.groups, wanted,
        )  # fmt: skip

    def backward_backward(
        self, cotangents: Triple, grad: Tensor, images: Tensor, weight: Tensor, wanted: Mask
    ) -> Triple:
        """What cotangents of :meth:`backward`'s results are for grad, images and weight.

        The backward is bilinear in (grad, weight) and (grad, images), so each product is again
        a convolution, or the backward of one, with a cotangent in the place of its operand.
        """
        of_images, of_weight, of_bias = cotangents
        wanted = (
            wanted[0],
            wanted[1] and of_weight is not None,
            wanted[2] and of_images is not None,
        )
        if self.kernels == "winograd":
            by_grad, by_images, by_weight = torch.ops.mim4dd.conv3x3_bwd_bwd(
                of_images, of_weight, grad, images, weight, wanted
            )
        else:
            by_grad = self._by_grad(of_images, of_weight, images, weight) if wanted[0] else None
            by_images, by_weight, _ = self.backward(
                grad,
                images if of_images is None else of_images,
                weight if of_weight is None else of_weight,
                (*wanted[1:], False),
            )
        if of_bias is not None and wanted[0]:
            of_bias = of_bias[:, None, None]
            by_grad = of_bias.expand_as(grad) if by_grad is None else by_grad.add_(of_bias)
        return by_grad, by_images, by_weight

    def _by_grad(
        self, of_images: Tensor | None, of_weight: Tensor | None, images: Tensor, weight: Tensor
    ) -> Tensor | None:
        if of_weight is None:
            return None if of_images is None else self.forward(of_images, weight, None)
        by_grad = self.forward(images, of_weight, None)
        return by_grad if of_images is None else by_grad.add_(self.forward(of_images, weight, None))


class Convolutions(TorchFunctionMode):
    """Within it, every ``conv2d`` differentiates by :class:`_Convolution`.

    What that returns has the strides that PyTorch's own would have. ``images`` are what the
    gradient by the parameters does not ask for; while ``first_order`` is True, the convolutions
    that read them leave their gradient out. An autograd.Function can't tell by itself: it sees
    what requires a gradient, not what is asked for.
    """

    def __init__(self, images: list[Tensor]) -> None:
        super().__init__()
        self.images = images
        self.first_order = True

    def channels_last(self, maps: Tensor) -> Tensor:
        """A copy in that layout, which stands for the images where they are copied."""
        converted = channels_last(maps)
        if self.reads(maps):
            self.images.append(converted)
        return converted

    def reads(self, maps: Tensor) -> bool:
        """Whether these are the images."""
        return any(maps is each for each in self.images)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            return self._conv2d(*args, **kwargs)
        if func in _MISTAKEN:  # F's functions hand their input on by place
            return _contiguously(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _conv2d(
        self,
        input: Tensor,  # the names of torch.nn.functional.conv2d
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
    ) -> Tensor:
        transformed = are_functorch_transforms_active()
        if transformed or isinstance(padding, str) or input.dim() != 4:
            return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        layout = _pair(stride), _pair(padding), _pair(dilation), groups
        if not _reaches_inside(weight, *layout[1:3]):
            return torch.conv2d(_canonical(input), weight, bias, stride, padding, dilation, groups)
        if weight.shape[2:] == (1, 1) and layout[0] != [1, 1] and layout[1] == [0, 0]:
            # Of pixels that it skips a 1 × 1 convolution reads nothing. Told the stride, oneDNN
            # (torch 2.13, AVX2) writes beyond its memory for fewer channels-last than a vector has.
            input = input[..., :: layout[0][0], :: layout[0][1]]
            layout = ([1, 1], *layout[1:])
        is_plain = layout == ([1, 1], [1, 1], [1, 1], 1)
        geometry = Geometry(*layout, _fastest_kernels(input, weight) if is_plain else "library")
        return _Convolution.apply(input, weight, bias, geometry, self)


def _contiguously(func: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    output = func(_canonical(input), *args, **kwargs)
    if output.requires_grad:
        output.register_hook(_canonical)
    return laid_out_as(input, output) if func is F.group_norm else output


def _canonical(tensor: Tensor) -> Tensor:
    """Contiguous, with strides that no other layout has where sizes of 1 allow for several."""
    return tensor.contiguous().view(-1).view(tensor.shape)


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def _reaches_inside(weight: Tensor, padding: list[int], dilation: list[int]) -> bool:
    """Whether every output reads a pixel: else oneDNN crashes on channels-last images (2.13)."""
    return all(
        pad <= step * (size - 1)
        for pad, step, size in zip(padding, dilation, weight.shape[2:], strict=True)
    )


def _fastest_kernels(images: Tensor, weight: Tensor) -> Kernels:
    """The fastest ones for a convolution with stride 1 and padding 1, as measured on CPUs."""
    out_channels, channels = weight.shape[:2]
    if (
        images.device.type != "cpu"
        or images.dtype != torch.float32
        or weight.shape[2:] != (3, 3)
        or out_channels < _CHANNELS
    ):
        return "library"
    if channels >= _CHANNELS:
        return "winograd"
    if channels <= _SINGLE:
        return "single"
    return "narrow" if channels <= _NARROW else "library"


def fastest_layout(images: Tensor) -> Tensor:
    """The same values in the memory layout that convolutions run fastest in.

    On CPUs oneDNN's channels-last kernels reach nearly twice the rate of its others.
    """
    if images.dim() == 4 and images.device.type == "cpu":
        return images.contiguous(memory_format=torch.channels_last)
    return images


def _laid_out(images: Tensor | None) -> Tensor | None:
    return None if images is None else fastest_layout(images)


def _as(like: Tensor, result: Tensor | None) -> Tensor | None:
    """A gradient of maps, in their layout."""
    return None if result is None else laid_out_as(like, result)


def _contiguous(result: Tensor | None) -> Tensor | None:
    """A gradient of weights, which are parts of a flat vector."""
    return None if result is None else result.contiguous()


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        scope: Convolutions,
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.geometry, ctx.scope = geometry, scope
        ctx.is_first = scope.reads(images)
        return laid_out_as(images, geometry.forward(fastest_layout(images), weight, bias))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        images, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if ctx.is_first and ctx.scope.first_order:
            wanted = (False, *wanted[1:])
        grads = _ConvolutionBackward.apply(grad, images, weight, ctx.geometry, wanted)
        return *grads, None, None


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        images: Tensor,
        weight: Tensor,
        geometry: Geometry,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, images, weight)
        ctx.geometry = geometry
        grads = geometry.backward(fastest_layout(grad), fastest_layout(images), weight, wanted)
        return _as(images, grads[0]), _contiguous(grads[1]), grads[2]

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        cotangent_images: Tensor | None,
        cotangent_weight: Tensor | None,
        cotangent_bias: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        grad, images, weight = ctx.saved_tensors
        grads = ctx.geometry.backward_backward(
            (_laid_out(cotangent_images), cotangent_weight, cotangent_bias),
            fastest_layout(grad),
            fastest_layout(images),
            weight,
            ctx.needs_input_grad[:3],
        )
        by_grad, by_images, by_weight = grads
        return _as(grad, by_grad), _as(images, by_images), _contiguous(by_weight), None, None
