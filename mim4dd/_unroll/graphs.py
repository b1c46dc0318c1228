"""Inner steps captured once as CUDA graphs, and replayed."""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mim4dd._unroll.step_gradient import (
    Differentiate,
    EagerGradient,
    Products,
    StepGradient,
    StepLoss,
    Wanted,
)

__all__ = ["StepGraphs"]

Result = TypeVar("Result")

_WARM_UPS = 3  # before a capture: cuDNN chooses its algorithms, Triton compiles


class StepGraphs:
    """Captured steps of one network, to be passed to every unroll of it.

    On a GPU small networks are bound by launches, several hundred per step. A step captured as a
    CUDA graph is one launch. Shapes are static: a new shape of parameters, batch or labels, or
    another mode of the model, is captured anew, which takes about as long as ten steps. Owned by
    the caller, who decides how long the captures and their memory live.

    A network that cannot be captured (it reads values back to the host) is run as it is, with one
    warning that says why.

    Example:
        >>> import torch, mim4dd
        >>> step_graphs = mim4dd.StepGraphs() if torch.cuda.is_available() else None
        >>> model = torch.nn.Linear(4, 2)
        >>> for _ in range(3):
        ...     theta_T = mim4dd.unroll_sgd(
        ...         model, mim4dd.flatten_parameters(model), torch.randn(2, 4),
        ...         torch.tensor([0, 1]), torch.tensor([[0, 1]] * 5), lr=0.1,
        ...         step_graphs=step_graphs,
        ...     )
    """

    def __init__(self) -> None:
        self._captured: dict[Any, CapturedStep] = {}
        self._refused = False
        self._owner: tuple[object, object] | None = None

    def bound_to(self, loss: StepLoss) -> Differentiate:
        """:meth:`StepLoss.differentiate` by replay. Each result lasts until the next call."""
        self._check_owner(loss)
        baked_in = _baked_in(loss.call.model)

        def differentiate(
            theta: Tensor, inputs: Tensor, labels: Tensor, *, create_graph: bool
        ) -> StepGradient:
            arguments = (theta, inputs, labels)
            tensors = (_static(tensor) for tensor in arguments)
            key = (create_graph, loss.own_samples, baked_in, *tensors)
            if key not in self._captured and not self._refused:
                self._capture(key, loss, arguments, create_graph)
            if self._refused:
                return loss.differentiate(*arguments, create_graph=create_graph)
            captured = self._captured[key]
            captured.replay(arguments)
            return captured

        return differentiate

    def _capture(
        self, key: Any, loss: StepLoss, arguments: tuple[Tensor, Tensor, Tensor], create_graph: bool
    ) -> None:
        try:
            self._captured[key] = CapturedStep(loss, arguments, create_graph)
        except RuntimeError as error:
            self._refused = True
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"{type(loss.call.model).__name__} can't be captured as a CUDA graph ({reason}): "
                "its steps are launched kernel by kernel",
                stacklevel=2,
            )

    def _check_owner(self, loss: StepLoss) -> None:
        owner = (loss.call.model, loss.loss)
        if self._owner is None:
            self._owner = owner
        elif any(mine is not theirs for mine, theirs in zip(self._owner, owner, strict=True)):
            raise ValueError(
                "step_graphs has captured another model or loss: give each its own StepGraphs()"
            )


class CapturedStep:
    """One step as a graph of its gradient, and graphs of what that is differentiated by."""

    def __init__(
        self, loss: StepLoss, arguments: tuple[Tensor, Tensor, Tensor], create_graph: bool
    ) -> None:
        theta, inputs, labels = (tensor.detach().clone() for tensor in arguments)
        self._arguments = (theta, inputs, labels)
        self._cotangent = torch.zeros_like(theta)
        self._products: dict[Wanted, tuple[torch.cuda.CUDAGraph, Products]] = {}

        def run() -> EagerGradient:
            return loss.differentiate(theta, inputs, labels, create_graph=create_graph)

        self._graph, self._step = _capture(run, pool=None)

    @property
    def losses(self) -> Tensor:
        return self._step.losses.clone()  # they are gathered over the steps

    @property
    def gradient(self) -> Tensor:
        return self._step.gradient

    def replay(self, arguments: tuple[Tensor, Tensor, Tensor]) -> None:
        """Run the step on new values."""
        for static, new in zip(self._arguments, arguments, strict=True):
            static.copy_(new)
        self._graph.replay()

    def products(self, cotangent: Tensor, wanted: Wanted) -> Products:
        self._cotangent.copy_(cotangent)
        if wanted not in self._products:

            def run() -> Products:
                return self._step.products(self._cotangent, wanted, keep_graph=True)

            # The pool of the gradient's graph, whose activations this one reads.
            self._products[wanted] = _capture(run, pool=self._graph.pool())
        graph, products = self._products[wanted]
        graph.replay()
        # The next replay of the gradient may use this memory for its intermediate results.
        theta, inputs, labels = (None if each is None else each.clone() for each in products)
        return theta, inputs, labels


def _baked_in(model: nn.Module) -> tuple[Any, ...]:
    """What a capture has of the model beside its arguments: modes, and places in memory."""
    frozen = (each for each in model.parameters() if not each.requires_grad)
    return (
        *(module.training for module in model.modules()),
        *((tensor.data_ptr(), _static(tensor)) for tensor in (*frozen, *model.buffers())),
    )


def _static(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _capture(run: Callable[[], Result], pool: Any) -> tuple[torch.cuda.CUDAGraph, Result]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = run()
    return graph, result
