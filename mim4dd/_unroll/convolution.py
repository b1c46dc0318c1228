"""Two-dimensional convolutions whose second derivative is four library calls, not a dozen."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


class Geometry(NamedTuple):
    """What a convolution is besides its tensors."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution (B, O, H', W')."""
        return torch.ops.aten.convolution(
            images, weight, bias, self.stride, self.padding, self.dilation,
            False, [0, 0], self.groups,
        )  # fmt: skip

    def backward(
        self, grad: Tensor, images: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What ``grad`` (B, O, H', W') is for images, weight and bias, where wanted."""
        return torch.ops.aten.convolution_backward(
            grad, images, weight, [weight.shape[0]], self.stride, self.padding, self.dilation,
            False, [0, 0], self.groups, wanted,
        )  # fmt: skip


class Convolutions(TorchFunctionMode):
    """Within it, every ``conv2d`` differentiates by :class:`_Convolution`.

    ``images`` is what the gradient by the parameters does not ask for; while ``first_order`` is
    True, the convolutions that read it leave its gradient out. An autograd.Function can't tell by
    itself: it sees what requires a gradient, not what is asked for.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.first_order = True

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.conv2d:
            return func(*args, **kwargs)
        return self._conv2d(*args, **kwargs)

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
        batched = torch._C._functorch.is_functorch_wrapped_tensor(weight)
        if batched or isinstance(padding, str) or input.dim() != 4:
            return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        geometry = Geometry(_pair(stride), _pair(padding), _pair(dilation), groups)
        return _Convolution.apply(input, weight, bias, geometry, self)


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def fastest_layout(images: Tensor) -> Tensor:
    """The same values in the memory layout that convolutions run fastest in.

    On CPUs oneDNN's channels-last kernels reach nearly twice the rate of its others.
    """
    if images.dim() == 4 and images.device.type == "cpu":
        return images.contiguous(memory_format=torch.channels_last)
    return images


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
        ctx.is_first = images is scope.images
        return geometry.forward(fastest_layout(images), weight, bias)

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
        return geometry.backward(fastest_layout(grad), fastest_layout(images), weight, wanted)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        cotangent_images: Tensor | None,
        cotangent_weight: Tensor | None,
        cotangent_bias: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """The backward is bilinear in (grad, weight) and (grad, images), so each product is again
        a convolution, or the backward of one, with a cotangent in the place of its operand.
        """
        grad, images, weight = ctx.saved_tensors
        geometry = ctx.geometry
        grad_grad = None
        if ctx.needs_input_grad[0]:
            terms = []
            if cotangent_weight is not None:
                terms.append(
                    geometry.forward(fastest_layout(images), cotangent_weight, cotangent_bias)
                )
            elif cotangent_bias is not None:
                terms.append(cotangent_bias[:, None, None].expand_as(grad))
            if cotangent_images is not None:
                terms.append(geometry.forward(fastest_layout(cotangent_images), weight, None))
            if terms:
                grad_grad = terms[0] if len(terms) == 1 else terms[0].add_(terms[1])
        wanted = (
            ctx.needs_input_grad[1] and cotangent_weight is not None,
            ctx.needs_input_grad[2] and cotangent_images is not None,
            False,
        )
        grad_images, grad_weight, _ = geometry.backward(
            fastest_layout(grad),
            images if cotangent_images is None else fastest_layout(cotangent_images),
            weight if cotangent_weight is None else cotangent_weight,
            wanted,
        )
        return grad_grad, grad_images, grad_weight, None, None
