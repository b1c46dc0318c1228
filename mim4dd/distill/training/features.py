"""Features of a network: what its submodules give out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mim4dd._turns import alone_in
from mim4dd._unroll.functional import FunctionalModel
from mim4dd.fused import NormReLUPool2d
from mim4dd.ops.norm_relu_pool import norm_relu_pool

__all__ = [
    "embedding_read",
    "last_linear",
    "layer_features",
    "reading_inputs",
    "unpooled_features",
]

Reader = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a module, what it read and gave out


def last_linear(network: nn.Module) -> nn.Linear:
    """The layer whose input is the network's embedding.

    Raises:
        ValueError: If there is no linear layer.
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            "network must have a linear layer, whose input is its embedding, "
            f"got a {type(network).__name__} without one"
        )
    return linear[-1]


@contextmanager
def embedding_read(network: nn.Module) -> Iterator[list[Tensor]]:
    """A list that every pass of the network within the block adds its embedding to. (B, D)

    Raises:
        ValueError: If the network has no linear layer.
    """
    with reading_inputs(network, [last_linear(network)], lambda _, rows: rows.flatten(1)) as read:
        yield read


def layer_features(
    network: nn.Module, theta: Tensor, images: Tensor, layers: Sequence[str]
) -> list[Tensor]:
    """Outputs of the named submodules for ``images``, with ``network`` at the parameters ``theta``.

    Raises:
        ValueError: If no layer is named, or the network has no submodule of a name.
    """
    places = [(module, _output) for module in _submodules(network, layers)]
    return _read(network, theta, images, places)


def unpooled_features(
    network: nn.Module, theta: Tensor, images: Tensor, layers: Sequence[str]
) -> list[Tensor]:
    """The same before the average or maximum pooling that ends a submodule, where one does.

    After them stands the output of the last submodule, pooled.

    Raises:
        ValueError: If no layer is named, or the network has no submodule of a name.
    """
    submodules = _submodules(network, layers)
    places = [(_end(module), _before_pooling) for module in submodules]
    return _read(network, theta, images, [*places, (submodules[-1], _output)])


def _submodules(network: nn.Module, layers: Sequence[str]) -> list[nn.Module]:
    submodules = dict(network.named_modules())
    unknown = [name for name in layers if not name or name not in submodules]
    if unknown or not layers:
        names = ", ".join(name for name in submodules if name)
        raise ValueError(
            f"layers must name submodules of the network, got {list(layers)}; it has: {names}"
        )
    return [submodules[name] for name in layers]


def _read(
    network: nn.Module, theta: Tensor, images: Tensor, places: Sequence[tuple[nn.Module, Reader]]
) -> list[Tensor]:
    """What the readers make of their modules in one pass of the network."""
    found: dict[int, Tensor] = {}

    def hook(index: int, read: Reader) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def record(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            found[index] = read(module, inputs[0], output)

        return record

    with _hooked(
        network,
        (
            module.register_forward_hook(hook(index, read))
            for index, (module, read) in enumerate(places)
        ),
    ):
        FunctionalModel(network)(theta, images)
    return [found[index] for index in range(len(places))]


@contextmanager
def reading_inputs(
    network: nn.Module, modules: Iterable[nn.Module], read: Callable[[nn.Module, Tensor], Tensor]
) -> Iterator[list[Tensor]]:
    """What ``read`` makes of submodules and their inputs as the network runs within it.

    Yields:
        A list, to which each call of one of ``modules`` adds what was made of it.
    """
    found: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor]) -> None:
        found.append(read(module, inputs[0]))

    with _hooked(network, (module.register_forward_pre_hook(record) for module in modules)):
        yield found


@contextmanager
def _hooked(network: nn.Module, handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Within it hooks are in the network, for this thread alone, which are registered as asked."""
    with alone_in(network), ExitStack() as hooks:
        for handle in handles:
            hooks.callback(handle.remove)
        yield


def _output(module: nn.Module, input: Tensor, output: Tensor) -> Tensor:
    return output


def _end(module: nn.Module) -> nn.Module:
    """The module that a chain ends with; what is fused leaves identities behind it."""
    while isinstance(module, nn.Sequential):
        parts = [part for part in module if not isinstance(part, nn.Identity)]
        if not parts:
            break
        module = parts[-1]
    return module


def _before_pooling(module: nn.Module, input: Tensor, output: Tensor) -> Tensor:
    if isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
        return input
    if isinstance(module, NormReLUPool2d):  # the maps between never leave its kernel
        return norm_relu_pool(
            input,
            module.weight,
            module.bias,
            num_groups=module.num_groups,
            pool=1,
            eps=module.eps,
        )
    return output
