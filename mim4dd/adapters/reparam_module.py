"""ReparamModule of trajectory-matching code, with its inner loop in one call."""

import typing
from collections import abc
from contextlib import contextmanager as _contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call as _functional_call

from mim4dd import unroll as _unroll
from mim4dd._turns import alone_in as _alone_in
from mim4dd._unroll import checks as _checks
from mim4dd._unroll.functional import FunctionalModel as _FunctionalModel
from mim4dd._unroll.graphs import StepGraphs as _StepGraphs
from mim4dd._unroll.step_gradient import Loss as _Loss
from mim4dd._unroll.steps import Augment as _Augment

__all__ = ["ReparamModule"]

# Public names of the peer's that are not here, and what takes their place.
_NOT_HERE = {
    "trace": "torch.compile(student) takes its place",
    "clear_views": "the parameters of student.module stay there, and unflattened_param puts others "
    "in their place for a while",
}


class ReparamModule(nn.Module):
    """A module as a function of one flat parameter vector, as MTT, FTD and DATM wrap their student.

    Its only parameter is ``flat_param`` (P,), a copy of the trainable parameters of ``module`` in
    the order of :func:`mim4dd.flatten_parameters`: one that several modules share stands once.
    ``module`` itself stays whole and in use: it follows this wrapper's ``train``, ``eval`` and
    ``to``, its frozen parameters are constants, and its buffers are not in this ``state_dict``.

    Args:
        module: Any module. (P trainable parameters of one dtype)

    Raises:
        ValueError: If the module has no parameters to train.
        TypeError: If they differ in dtype.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.reparam_module import ReparamModule
        >>> student = ReparamModule(torch.nn.Linear(4, 2))
        >>> student(torch.ones(3, 4), flat_param=torch.zeros(10)).sum()
        tensor(0.)

    References:
        docs/port.md. reparam_module.py of Cazenavette et al., arXiv:2203.11932.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        dtypes = {parameter.dtype for parameter in _checks.trainable(module)}
        if len(dtypes) > 1:
            names = ", ".join(sorted(str(dtype) for dtype in dtypes))
            raise TypeError(f"module must have parameters of one dtype, got {names}")
        self.flat_param = nn.Parameter(_unroll.flatten_parameters(module))
        # Not a submodule: its parameters would stand beside flat_param in parameters().
        self._call = _FunctionalModel(module)

    @property
    def module(self) -> nn.Module:
        """What is wrapped."""
        return self._call.model

    @property
    def param_numel(self) -> int:
        """P."""
        return self.flat_param.numel()

    def forward(
        self,
        *inputs: typing.Any,
        flat_param: torch.Tensor | None = None,  # (P,) or (1, P)
        buffers: abc.Sequence[torch.Tensor] | None = None,
        **keyword_inputs: typing.Any,
    ) -> typing.Any:
        """The module at ``flat_param``, by default its own.

        Args:
            inputs: What the module takes.
            flat_param: Parameters to use instead; gradients of any order flow into them. (P,), or
                with axes of size 1 beside that one
            buffers: Buffers to use instead, in ``module.named_buffers()`` order, and to write to:
                BatchNorm in train mode moves its running statistics in them. By default those of
                the module are read, and what is written to them is dropped.
            keyword_inputs: What the module takes by name.

        Raises:
            ValueError: If ``flat_param`` is not (P,), or ``buffers`` are not as many as there are.
        """
        with _alone_in(self.module):
            state = self._parameters_from(flat_param) | self._buffers_from(buffers)
            return _functional_call(self.module, state, inputs, keyword_inputs, tie_weights=False)

    @_contextmanager
    def unflattened_param(
        self,
        flat_param: torch.Tensor,  # (P,) or (1, P)
    ) -> abc.Iterator[None]:
        """Within it the parameters of ``module`` are views of ``flat_param``.

        Raises:
            ValueError: If ``flat_param`` is not (P,).
        """
        state = self._parameters_from(flat_param)
        with _alone_in(self.module), _replaced(self.module, "_parameters", state):
            yield

    @_contextmanager
    def replaced_buffers(self, buffers: abc.Sequence[torch.Tensor]) -> abc.Iterator[None]:
        """Within it the buffers of ``module`` are these, in ``module.named_buffers()`` order.

        Raises:
            ValueError: If they are not as many as there are.
        """
        alone = _alone_in(self.module)
        with alone, _replaced(self.module, "_buffers", self._buffers_from(buffers)):
            yield

    def unroll(
        self,
        image_syn: torch.Tensor,  # (n, ...)
        label_syn: torch.Tensor,  # (n,) or (n, C)
        batches: torch.Tensor,  # (T, B) or (T, K, B)
        *,
        lr: torch.Tensor | float,
        flat_param: torch.Tensor | None = None,  # (P,) or (K, P)
        loss: _Loss = F.cross_entropy,
        augment: _Augment | None = None,
        seed: int = 0,
        window: int | None = None,
        method: typing.Literal["exact", "tesla"] = "exact",
        memory_budget: int = 0,
        step_graphs: _StepGraphs | None = None,
    ) -> torch.Tensor:
        """Train from ``flat_param`` for T steps of SGD, differentiably: the inner loop in one call.

        Args:
            image_syn: As in :func:`mim4dd.unroll_sgd`, like all that is not described here; what
                else that can do, it does with ``student.module``.
            label_syn: Classes (n,), or probabilities (n, C).
            batches: Which samples each step takes.
            lr: Step size.
            flat_param: Parameters to start from, by default its own. (P,) or (K, P)
            loss: The inner loss.
            augment: ``augment(images, generator) -> images``.
            seed: Seeds the augmentation.
            window: Walk back through the last W steps only.
            method: ``"tesla"`` for TESLA's approximation.
            memory_budget: Bytes that may be spent on recomputing less.
            step_graphs: Captures of the steps, on a GPU.

        Returns:
            The parameters after T steps, in shape and dtype of those it started from.

        Raises:
            ValueError: As :func:`mim4dd.unroll_sgd` does, with ``flat_param`` as its ``theta_0``.
            TypeError: Likewise.
        """
        return _unroll.unroll_sgd(
            self.module,
            self.flat_param if flat_param is None else flat_param,
            image_syn,
            label_syn,
            batches,
            lr=lr,
            loss=loss,
            augment=augment,
            seed=seed,
            window=window,
            method=method,
            memory_budget=memory_budget,
            step_graphs=step_graphs,
        )

    def train(self, mode: bool = True) -> "ReparamModule":
        """Set the mode of the wrapped module too."""
        self.module.train(mode)
        return super().train(mode)

    def __getattr__(self, name: str) -> typing.Any:
        if name in _NOT_HERE:
            raise AttributeError(f"ReparamModule of mim4dd has no {name}: {_NOT_HERE[name]}")
        return super().__getattr__(name)

    def _parameters_from(self, flat_param: torch.Tensor | None) -> dict[str, torch.Tensor]:
        theta = self.flat_param if flat_param is None else flat_param
        if theta.numel() != self.param_numel or max(theta.shape, default=1) != self.param_numel:
            raise ValueError(
                f"flat_param must be (P,) = ({self.param_numel},), got {tuple(theta.shape)}"
            )
        return self._call.parameters(theta.reshape(-1))

    def _buffers_from(self, buffers: abc.Sequence[torch.Tensor] | None) -> dict[str, torch.Tensor]:
        own = self._call.buffers()
        if buffers is None:
            return own
        if len(buffers) != len(own):
            raise ValueError(f"buffers must be the {len(own)} of module, got {len(buffers)}")
        return dict(zip(own, buffers, strict=True))

    def _apply(
        self, fn: abc.Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> "ReparamModule":
        self.module._apply(fn)
        return super()._apply(fn, recurse)

    def _replicate_for_data_parallel(self) -> "ReparamModule":
        # The replicas would share one module, and put their parameters into it at the same time.
        raise RuntimeError(
            "ReparamModule cannot be used within DataParallel: use one process per GPU, each with "
            "its own trajectories"
        )


@_contextmanager
def _replaced(module: nn.Module, kind: str, state: dict[str, torch.Tensor]) -> abc.Iterator[None]:
    """Put tensors in the place of parameters or buffers, and what was there back."""
    before = []
    try:
        for path, tensor in state.items():
            parent, _, name = path.rpartition(".")
            slots = getattr(module.get_submodule(parent), kind)
            before.append((slots, name, slots[name]))
            slots[name] = tensor
        yield
    finally:
        for slots, name, tensor in before:
            slots[name] = tensor
