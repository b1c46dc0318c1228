"""A training that is kept in a file, so that a stop or a kill costs a minute of it at most."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim4dd.distill.files.atomic import load_tensors, save_tensors
from mim4dd.distill.files.fields import require_fields
from mim4dd.distill.identity.describe import differences, named_differences
from mim4dd.distill.runtime.ranks import rank

__all__ = ["KeptTraining"]

_FORMAT = "mim4dd.training.1"
_SECONDS = 60.0  # between two writes: one takes half a second for a ResNet-18
_NETWORK, _MOMENTUM, _BESIDE = "network.", "momentum.", "beside."
_GENERATOR, _ORDER = "generator", "order"


class KeptTraining:
    """Where a training is, in a file from which :func:`train_network` goes on bit for bit.

    Of several ranks that train the same, the first one writes.

    Args:
        path: The file. It need not be there.
        identity: What is trained and how, as JSON holds it.

    Raises:
        ValueError: If the file is of another training, truncated, or something else.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = identity
        self.step = 0  # of the state in the file
        self.beside: dict[str, Tensor] = {}  # what the caller keeps with it
        self._tensors: dict[str, Tensor] = {}
        self._seconds_before = 0.0
        if path.exists():
            self._read()
        self._started = self._written = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long the training took so far, with what earlier processes kept of it."""
        return self._seconds_before + time.perf_counter() - self._started

    def restore(
        self,
        network: nn.Module,
        optimizer: torch.optim.SGD,
        generator: torch.Generator,
        num_images: int,
    ) -> Tensor:
        """Take up the state in the file; return the images that are left of the epoch. (n,)

        Raises:
            ValueError: If it is not the state of such a training.
        """
        found, self._tensors = self._tensors, {}
        order = found.pop(_ORDER, torch.empty(0))
        weights = _named(_NETWORK, network.state_dict())
        momenta = _named(_MOMENTUM, dict(enumerate(network.parameters())))
        expected = weights | {name: momenta[name] for name in momenta if name in found}
        expected[_GENERATOR] = generator.get_state()
        if (
            _shapes(found) != _shapes(expected)
            or (order.dim(), order.dtype) != (1, torch.int64)
            or not ((order >= 0) & (order < num_images)).all()
        ):
            raise self._unusable()
        try:
            generator.set_state(found[_GENERATOR])
        except RuntimeError as error:
            raise self._unusable() from error
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(found[name])
        for name, parameter in momenta.items():
            if name in found:
                optimizer.state[parameter]["momentum_buffer"] = found[name].to(parameter.device)
        return order

    def note(
        self,
        step: int,
        network: nn.Module,
        optimizer: torch.optim.SGD,
        generator: torch.Generator,
        order: Sequence[Tensor],
        is_last: bool,
    ) -> None:
        """Write the state after so many steps, if it is the last one or a minute has passed.

        ``order`` are the batches that are left of the epoch.
        """
        waits = not is_last and time.perf_counter() - self._written < _SECONDS
        if waits or rank() > 0:
            return
        buffers = {
            number: optimizer.state[parameter]["momentum_buffer"]
            for number, parameter in enumerate(network.parameters())
            if optimizer.state[parameter].get("momentum_buffer") is not None
        }
        tensors = _named(_NETWORK, network.state_dict()) | _named(_MOMENTUM, buffers)
        tensors |= _named(_BESIDE, self.beside)
        tensors[_GENERATOR] = generator.get_state()
        tensors[_ORDER] = torch.cat([torch.empty(0, dtype=torch.int64), *(o.cpu() for o in order)])
        header = {"format": _FORMAT, "identity": self.identity, "step": step}
        save_tensors(self.path, tensors, header | {"seconds": self.seconds})
        self._written = time.perf_counter()

    def _read(self) -> None:
        tensors, header = load_tensors(self.path)
        if header.get("format") != _FORMAT:
            raise self._unusable()
        require_fields(header, f"the header of {self.path}", identity=dict, step=int, seconds=float)
        if found := differences(header["identity"], self.identity):
            raise ValueError(
                f"{self.path} holds another training, which differs in (there → here) "
                f"{named_differences(found)}: remove it, or choose another directory"
            )
        if header["step"] < 1:
            raise self._unusable()
        self.step, self._seconds_before = header["step"], header["seconds"]
        self.beside = {
            name.removeprefix(_BESIDE): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(_BESIDE)
        }
        self._tensors = tensors

    def _unusable(self) -> ValueError:
        return ValueError(f"{self.path} does not hold the state of this training: remove it")


def _named(prefix: str, tensors: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
