"""Parts of a model that a CPU runs in the layout that is fastest there, unseen from outside."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mim4dd._layout import is_channels_last, planes
from mim4dd._torch_private import are_functorch_transforms_active, tree_map_only
from mim4dd.fused import NormReLUPool2d, is_watched

# They give the same numbers in both layouts, and planes of planes. Others may look at strides.
_INDIFFERENT = (
    nn.AvgPool2d,
    nn.BatchNorm2d,
    nn.Conv2d,
    nn.Flatten,
    nn.GroupNorm,
    nn.Identity,
    nn.LeakyReLU,
    nn.Linear,
    nn.MaxPool2d,
    nn.ReLU,
    nn.Sigmoid,
    NormReLUPool2d,
)
_FASTER = (nn.Conv2d, NormReLUPool2d)  # in channels-last

Convert = Callable[[Tensor], Tensor]


def regions_of(model: nn.Module) -> list[nn.Module]:
    """The largest parts of a model in which nothing but layers of ours and PyTorch's sees maps.

    They are ``nn.Sequential`` of layers known to be indifferent to the layout, and modules whose
    class says ``any_memory_format = True`` of its own forward pass.
    """
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():  # a container comes before what it holds
        if id(module) in inside or isinstance(module, _INDIFFERENT):
            continue
        if _is_indifferent(module):
            inside.update(id(part) for part in module.modules())
            if _gains(module):
                found.append(module)
    return found


def _is_indifferent(module: nn.Module) -> bool:
    if is_watched(module):
        return False
    if type(module) in _INDIFFERENT:
        return True
    is_known = type(module) is nn.Sequential or vars(type(module)).get("any_memory_format", False)
    return is_known and all(_is_indifferent(part) for part in module.children())


def _gains(module: nn.Module) -> bool:
    """Whether it begins with a convolution, which converts anyway, and goes on in that layout."""
    layers = [part for part in module.modules() if isinstance(part, _INDIFFERENT)]
    faster = [part for part in layers if isinstance(part, _FASTER)]
    return len(faster) > 1 and isinstance(layers[0], nn.Conv2d)


def _as_planes(output: Tensor) -> Tensor:
    return planes(output) if is_channels_last(output) else output


@contextmanager
def channels_last_inside(regions: list[nn.Module], convert: Convert) -> Iterator[None]:
    """Hand planes to the regions as channels-last, by ``convert``, and back what they return.

    What is channels-last from outside stays so, and what comes of it.
    """
    converted: list[bool] = []  # for each call under way

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        maps = inputs[0] if inputs else None  # given by name, it stays as it is
        transformed = are_functorch_transforms_active()
        if not isinstance(maps, Tensor) or maps.dim() != 4 or is_channels_last(maps) or transformed:
            converted.append(False)
            return inputs
        converted.append(True)
        return convert(maps), *inputs[1:]

    def leave(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return tree_map_only(Tensor, _as_planes, output) if converted.pop() else output

    handles = []
    try:
        for region in regions:
            handles.append(region.register_forward_pre_hook(enter))
            handles.append(region.register_forward_hook(leave))
        yield
    finally:
        for handle in handles:
            handle.remove()
