"""A module as a function of its flat parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from torch import Tensor, nn
from torch.func import functional_call

from mim4dd._turns import alone_in
from mim4dd._unroll.checks import trainable
from mim4dd._unroll.regions import regions_of


class FunctionalModel:
    """``model`` as a function of its flat trainable parameters (P,) and its input.

    Every call gets fresh copies of the buffers, so that none sees another's running statistics and
    the model itself stays as it is. Frozen parameters are constants.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        with alone_in(model):
            self._look_at(model)

    def _look_at(self, model: nn.Module) -> None:
        self.regions = regions_of(model)
        parameters = trainable(model)
        self.shapes = [parameter.shape for parameter in parameters]
        self.sizes = [parameter.numel() for parameter in parameters]
        place = {id(parameter): index for index, parameter in enumerate(parameters)}
        # Every slot once. functional_call ties weights on its own, but fills a module that occurs
        # twice in the model twice, and puts the replacement back instead of the original.
        self.slots = {
            f"{path}.{name}".lstrip("."): place[id(parameter)]
            for path, module in model.named_modules()
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if id(parameter) in place
        }
        self.buffer_slots = [
            (f"{path}.{name}".lstrip("."), module, name)
            for path, module in model.named_modules()
            for name, _ in module.named_buffers(recurse=False, remove_duplicate=False)
        ]

    def __call__(
        self, theta: Tensor, images: Tensor, buffers: dict[str, Tensor] | None = None
    ) -> Tensor:
        state = self.parameters(theta) | (self.buffers() if buffers is None else buffers)
        with alone_in(self.model):
            return self.with_state(state, images)

    def with_state(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        """Call with parameters and buffers by name, within :func:`alone_in`."""
        return functional_call(self.model, state, (images,), tie_weights=False)

    def parameters(self, theta: Tensor) -> dict[str, Tensor]:
        """The trainable parameters as views of ``theta``, by every name they have."""
        parts = [
            part.view(shape)
            for part, shape in zip(theta.split(self.sizes), self.shapes, strict=True)
        ]
        return {name: parts[index] for name, index in self.slots.items()}

    def buffers(self, copies: int | None = None) -> dict[str, Tensor]:
        """Copies of the buffers, with a leading axis if there are to be several of each.

        One that several modules share is copied once, so that what one writes the others read.
        """
        named = {path: module.get_buffer(name) for path, module, name in self.buffer_slots}
        copied = {
            id(buffer): (
                buffer.clone() if copies is None else buffer.expand(copies, *buffer.shape).clone()
            )
            for buffer in named.values()
        }
        return {name: copied[id(buffer)] for name, buffer in named.items()}

    @contextmanager
    def refusing_calls(self) -> Iterator[None]:
        """Within it, a module that is called raises: it would have its own parameters, not θ's."""
        handles = [each.register_forward_pre_hook(_refuse_call) for each in self.model.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _refuse_call(module: nn.Module, _: object) -> NoReturn:
    raise RuntimeError(
        f"{type(module).__name__} is run again in the backward pass, as torch.utils.checkpoint "
        f"does. There it would use the model's own parameters, not those of the step. Remove the "
        f"checkpoint: the unroll keeps the activations of only one step"
    )
