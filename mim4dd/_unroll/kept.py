"""Which steps keep their graph, so that the walk back need not recompute them."""

import torch
from torch import Tensor

from mim4dd._unroll.history import History
from mim4dd._unroll.steps import Linearization, Steps


class KeptSteps:
    """The last steps, as many as fit into a budget of bytes.

    The last, because the walk back frees them before it recomputes the others.
    """

    def __init__(self, memory_budget: int, history: History) -> None:
        self.memory_budget = memory_budget
        self.history = history
        self.begin = history.first if memory_budget > 0 else history.num_steps
        self.linearizations: dict[int, Linearization] = {}

    def linearize(self, steps: Steps, index: int, theta: Tensor) -> Linearization:
        """One step of the forward sweep, with its graph if it is to be kept."""
        if index < self.begin:
            return steps.linearize(index, theta, create_graph=False)
        saved = _SavedBytes()
        with saved:
            linear = steps.linearize(index, theta, create_graph=True)
        if index == self.history.first:  # steps are alike: this one tells how many fit
            fitting = self.memory_budget // max(1, saved.total)
            self.begin = max(index, self.history.num_steps - fitting)
        if index >= self.begin:
            self.linearizations[index] = linear
        return linear


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Count the bytes that autograd holds for the graph built inside, each storage once."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        # A node that held its own output, which holds the node, would never be freed.
        return tensor.detach()

    @property
    def total(self) -> int:
        return sum(self.storages.values())
