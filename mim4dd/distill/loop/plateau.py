"""A step size that is halved where the loss stops falling."""

import math
from typing import Any

import torch

__all__ = ["Plateau"]


class Plateau:
    """Halves an optimiser's step size after more than ``patience`` losses that are no new least.

    Args:
        optimizer: Of one step size.
        lr: The step size that it begins with.
        patience: How many losses to wait for a lower one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, lr: float, patience: int) -> None:
        self.optimizer, self.lr, self.patience = optimizer, lr, patience
        self.least, self.waited, self.halvings = math.inf, 0, 0

    def step(self, loss: float) -> None:
        """Take up the loss of one more iteration."""
        if loss < self.least:
            self.least, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.waited, self.halvings = 0, self.halvings + 1
            self._set()

    def state(self) -> dict[str, Any]:
        """What to go on from, as JSON holds it."""
        least = None if math.isinf(self.least) else self.least
        return {"least": least, "waited": self.waited, "halvings": self.halvings}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave, with as many halvings of a step size that may differ.

        Of a run that had none yet, as a new one does.
        """
        least = state.get("least")
        self.least = math.inf if least is None else least
        self.waited, self.halvings = state.get("waited", 0), state.get("halvings", 0)
        self._set()

    def _set(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr / 2**self.halvings
