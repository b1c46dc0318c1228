"""Norm, ReLU and pooling as one module, and models whose modules are replaced by it."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from mim4dd._checks import check_positive
from mim4dd._layout import is_channels_last, laid_out_as, planes
from mim4dd._torch_private import children
from mim4dd.ops.norm_relu_pool import norm_relu_pool

__all__ = ["NormReLUPool2d", "fuse"]


class NormReLUPool2d(nn.Module):
    """Group or instance norm, ReLU and average pooling, as :func:`mim4dd.norm_relu_pool`.

    Its parameters have the names that those of :class:`torch.nn.GroupNorm` have.

    Args:
        num_groups: Number of groups; ``num_channels`` of them are instance norm.
        num_channels: Number of channels C.
        pool: Height, width and stride of the pooling windows; 1 does not pool, and takes maps of
            any rank (B, C, …).
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift of each channel.

    Raises:
        ValueError: If a number is not positive, or the groups do not divide the channels.

    Example:
        >>> import torch, mim4dd
        >>> layer = mim4dd.NormReLUPool2d(num_groups=8, num_channels=8)
        >>> layer(torch.randn(2, 8, 16, 16)).shape
        torch.Size([2, 8, 8, 8])
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    _returns_planes = False  # as PyTorch's instance norm does, whatever it gets

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        pool: int = 2,
        eps: float = 1e-5,
        affine: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("num_groups", num_groups), ("num_channels", num_channels)):
            check_positive(name, value)
        check_positive("pool", pool)
        check_positive("eps", eps)
        if num_channels % num_groups:
            raise ValueError(
                f"num_groups must divide the {num_channels} channels, got {num_groups}"
            )
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.pool = pool
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        affine = self.weight is not None
        return (
            f"{self.num_groups}, {self.num_channels}, pool={self.pool}, eps={self.eps}, "
            f"affine={affine}"
        )

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H // pool, W // pool) of (B, C, H, W), in the strides that GroupNorm returns."""
        if has_torch_function_unary(input):
            # One call for the mode of an unroll, in place of one for each attribute looked at.
            return handle_torch_function(self._run, (input,), input)
        return self._run(input)

    def _run(self, input: Tensor) -> Tensor:
        maps = input
        if self.pool == 1 and input.dim() != 4 and input.dim() >= 2:
            maps = input.reshape(*input.shape[:2], -1, 1)
        output = norm_relu_pool(
            maps,
            self.weight,
            self.bias,
            num_groups=self.num_groups,
            pool=self.pool,
            eps=self.eps,
        )
        return self._laid_out(input, output) if maps is input else output.reshape(input.shape)

    def _laid_out(self, input: Tensor, output: Tensor) -> Tensor:
        """In the layout that PyTorch's norm and ReLU would have returned."""
        is_both = (
            input.shape[1] == 1 or input.shape[2:].numel() == 1
        )  # which a ReLU takes for planes
        if self._returns_planes or is_both or input.device.type != "cpu":
            return planes(output) if is_channels_last(output) else output
        return laid_out_as(input, output)


def fuse(model: nn.Module) -> list[str]:
    """Replace, in place, every norm → ReLU → average pooling by one :class:`NormReLUPool2d`.

    Looked for in every ``nn.Sequential`` of the model: a ``GroupNorm``, or an ``InstanceNorm2d``
    with affine parameters and without running statistics, a ``ReLU``, and, after a ``GroupNorm``
    perhaps, an ``AvgPool2d`` whose stride is its window and that does not pad. The fused layer
    takes the norm's place and its very parameters; ``Identity`` takes the place of the others. So
    names, their order, what is shared and ``state_dict`` stay as they are.

    Left alone: modules that occur twice, have hooks, or are subclasses. A model that reads what is
    between the fused modules, as feature extraction by their names does, gets other values there.

    Args:
        model: Any module.

    Returns:
        What was fused, one line for each place.

    Example:
        >>> from torch import nn
        >>> import mim4dd
        >>> mim4dd.fuse(nn.Sequential(nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2)))
        ['0: GroupNorm + ReLU + AvgPool2d']
    """
    occurrences = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    found = []
    for prefix, container in model.named_modules():
        if type(container).forward is not nn.Sequential.forward or "forward" in vars(container):
            continue
        modules = children(container)
        by_place = list(modules.items())
        for place, (name, _) in enumerate(by_place):
            run = [module for _, module in by_place[place : place + 3] if module is not None]
            run = run[: _length(run)]
            if not run or any(occurrences[id(m)] > 1 or is_watched(m) for m in run):
                continue
            modules[name] = _fused(run)
            swallowed = [name for name, _ in by_place[place + 1 : place + len(run)]]
            for other, module in zip(swallowed, run[1:], strict=True):
                modules[other] = nn.Identity().train(module.training)
            kinds = " + ".join(type(module).__name__ for module in run)
            found.append(f"{prefix}.{name}: {kinds}" if prefix else f"{name}: {kinds}")
    return found


def _length(run: list[nn.Module]) -> int:
    """How many modules from the first on are one layer; 0 if none."""
    if len(run) < 2 or not _is_norm(run[0]) or type(run[1]) is not nn.ReLU:
        return 0
    if len(run) == 3 and _window(run[2]) is not None:
        return 3
    return 2 if type(run[0]) is nn.GroupNorm else 0


def _is_norm(module: nn.Module) -> bool:
    if type(module) is nn.GroupNorm:
        return module.eps > 0
    if type(module) is nn.InstanceNorm2d:
        return module.eps > 0 and module.affine and not module.track_running_stats
    return False


def _window(module: nn.Module) -> int | None:
    """Of an average pooling that the fused layer can do."""
    if type(module) is not nn.AvgPool2d or module.ceil_mode or module.divisor_override is not None:
        return None
    pairs = [
        size if isinstance(size, tuple) else (size, size)
        for size in (module.kernel_size, module.stride, module.padding)
    ]
    (height, width), stride, padding = pairs
    fits = height == width and stride == (height, width) and padding == (0, 0)
    return height if fits else None


def is_watched(module: nn.Module) -> bool:
    """Whether more than its class runs when it is called: a hook, or a forward of its own."""
    hooks = (name for name in vars(module) if name.endswith("_hooks"))
    own_call = "forward" in vars(module) or module._compiled_call_impl is not None
    return own_call or any(getattr(module, name) for name in hooks)


def _fused(run: list[nn.Module]) -> NormReLUPool2d:
    norm: Any = run[0]
    channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    groups = norm.num_groups if isinstance(norm, nn.GroupNorm) else channels
    pool = _window(run[2]) if len(run) == 3 else 1
    fused = NormReLUPool2d(groups, channels, pool or 1, norm.eps, affine=False)
    fused.weight, fused.bias = norm.weight, norm.bias
    fused._returns_planes = isinstance(norm, nn.InstanceNorm2d)
    return fused.train(norm.training)
