"""Many images through a network in passes whose memory the next one takes up again."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mim4dd.distill.data.byte_images import Images

__all__ = ["has_batch_norm", "in_passes", "pass_size", "sum_in_turn", "sum_over_classes"]

# glibc gives blocks above 32 MiB, and a freed end of its heap of twice the largest block freed so
# far, back to the system, which then makes every page anew. 16 maps of 32 × 32 pixels of the
# field's 128 channels are 8 MiB: small enough for all maps of a pass to stay, and as fast as any.
_PIXELS = 16 * 32 * 32


def has_batch_norm(network: nn.Module) -> bool:
    """Whether the network's output for an image depends on the others of its batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def in_passes(images: Images, otherwise: int = 1024) -> Sequence[Tensor]:
    """Images (N, channels, H, W), or rows (N, D), in parts to go through a network one by one.

    Args:
        images: What to split.
        otherwise: Images in a part on other devices than a CPU: there launches cost more than
            memory, which PyTorch keeps itself.

    Example:
        >>> import torch
        >>> from mim4dd.distill.training.passes import in_passes
        >>> [len(part) for part in in_passes(torch.zeros(40, 3, 32, 32))]
        [16, 16, 8]
    """
    return images.split(pass_size(images, otherwise))


def pass_size(images: Images, otherwise: int = 1024) -> int:
    """How many images a part of :func:`in_passes` has."""
    if images.device.type != "cpu":
        return otherwise
    pixels = images.shape[2:].numel() if images.dim() == 4 else images.shape[1]
    return max(1, _PIXELS // pixels)


def sum_in_turn(terms: Iterable[Callable[..., Tensor]], *tensors: Tensor) -> Tensor:
    """Σ term(*tensors), which holds the graph of one term at a time. ()

    The gradient of a term is taken along with its value, so the sum differentiates once: to ask
    for a second derivative raises RuntimeError.

    Args:
        terms: Functions of all ``tensors``, each to a scalar; the next one is asked for when the
            one before is done.
        tensors: What the sum may be differentiated by.

    Example:
        >>> import torch
        >>> from mim4dd.distill.training.passes import sum_in_turn
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> sum_in_turn([torch.square, torch.sin], x).backward()
        >>> x.grad == 6 + x.cos()
        tensor(True)
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _SumInTurn.apply(terms, *tensors)
    return torch.stack([term(*tensors) for term in terms]).sum()


class _SumInTurn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, terms: Iterable[Callable[..., Tensor]], *tensors: Tensor) -> Tensor:
        needed = ctx.needs_input_grad[1:]
        leaves = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(tensors, needed, strict=True)
        ]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        totals = [torch.zeros_like(leaf) for leaf in wanted]
        values = []
        for term in terms:
            with torch.enable_grad():
                value = term(*leaves)
                parts = torch.autograd.grad(value, wanted, materialize_grads=True)
            values.append(value.detach())
            for total, part in zip(totals, parts, strict=True):
                total += part
        ctx.save_for_backward(*tensors, *totals)
        return torch.stack(values).sum()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        saved = ctx.saved_tensors  # read once, or a checkpoint raises
        tensors, totals = saved[: len(needed)], iter(saved[len(needed) :])
        return None, *(
            _Last.apply(cotangent * next(totals), tensor) if need else None
            for tensor, need in zip(tensors, needed, strict=True)
        )


class _Last(torch.autograd.Function):
    """A gradient by a tensor, which depends on it by a graph that is gone: no constant."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, tensor: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "the loss of a method that takes its classes in turn differentiates once, and no more"
        )


def sum_over_classes(
    distance: Callable[..., Tensor], counts: Sequence[int], *of_samples: Tensor, together: bool
) -> Tensor:
    """Σ_c of a scalar of the synthetic samples of class c, a class after another. ()

    Args:
        distance: Makes the scalar of a sequence of classes and what is theirs of every tensor.
        counts: Synthetic samples of every class.
        of_samples: Tensors of the synthetic samples, which are ordered by class. (n, ...)
        together: Ask for all classes at once, where they share what they cost.
    """
    if together:
        return distance(range(len(counts)), *of_samples)
    of_classes: Iterable[Sequence[Tensor]] = zip(
        *(tensor.split(list(counts)) for tensor in of_samples), strict=True
    )
    values = [
        sum_in_turn([partial(distance, [label])], *parts) for label, parts in enumerate(of_classes)
    ]
    return torch.stack(values).sum()
