"""Several networks of one kind on the same images."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from mim4dd.distill.methods.base import ComparedNetwork
from mim4dd.unroll import flatten_parameters

__all__ = ["State", "for_each_network", "stack_networks", "unchanged"]

State = dict[str, Tensor]
"""Parameters and buffers by name; of K networks with a leading axis K."""


def stack_networks(networks: Sequence[nn.Module]) -> State:
    """The constants that the networks are, one beside the other."""
    parameters, buffers = stack_module_state(list(networks))
    return {name: tensor.detach() for name, tensor in (parameters | buffers).items()}


def for_each_network(
    function: Callable[[State, Tensor], Tensor], state: State, images: Tensor
) -> Tensor:
    """``function(state of one network, images)`` of every network. (K, ...)

    On a GPU the networks share their launches. On a CPU one network fills the machine, and its
    convolutions are faster than those of several in groups.
    """
    if images.device.type != "cpu":
        return torch.vmap(function, in_dims=(0, None))(state, images)
    names = list(state)
    return torch.stack(
        [
            function(dict(zip(names, parts, strict=True)), images)
            for parts in zip(*(tensor.unbind() for tensor in state.values()), strict=True)
        ]
    )


def unchanged(network: nn.Module) -> ComparedNetwork:
    """A network that the synthetic set did not train."""
    theta = flatten_parameters(network)
    return ComparedNetwork(network, theta_syn=theta, theta_real=theta)
