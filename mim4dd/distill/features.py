"""Features of a network: what its submodules give out."""

from collections.abc import Sequence

from torch import Tensor, nn

from mim4dd._unroll.functional import FunctionalModel

__all__ = ["layer_features"]


def layer_features(
    network: nn.Module, theta: Tensor, images: Tensor, layers: Sequence[str]
) -> list[Tensor]:
    """Outputs of the named submodules for ``images``, with ``network`` at the parameters ``theta``.

    Raises:
        ValueError: If no layer is named, or the network has no submodule of a name.
    """
    submodules = dict(network.named_modules())
    unknown = [name for name in layers if not name or name not in submodules]
    if unknown or not layers:
        names = ", ".join(name for name in submodules if name)
        raise ValueError(
            f"layers must name submodules of the network, got {list(layers)}; it has: {names}"
        )
    outputs: dict[str, Tensor] = {}
    handles = [
        submodules[name].register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.__setitem__(name, output)
        )
        for name in layers
    ]
    try:
        FunctionalModel(network)(theta, images)
    finally:
        for handle in handles:
            handle.remove()
    return [outputs[name] for name in layers]
