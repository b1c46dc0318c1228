"""Where the states of inner training wait for the walk back."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mim4dd._unroll.optimizers import State

Place = Literal["device", "host", "checkpoints"]


@dataclass(frozen=True)
class History:
    """Every state on the device, every state in host memory, or every ⌈√W⌉-th on the device.

    Args:
        place: Which of the three.
        first: The first step to walk back through.
        num_steps: Steps in all, T = first + W.
    """

    place: Place
    first: int
    num_steps: int

    def segments(self) -> list[range]:
        """The runs of steps that begin with a stored state, in order."""
        window = self.num_steps - self.first
        length = math.isqrt(window - 1) + 1 if self.place == "checkpoints" else 1
        starts = range(self.first, self.num_steps, length)
        return [range(start, min(start + length, self.num_steps)) for start in starts]

    def pack(self, state: State) -> list[Tensor]:
        """A state as it is stored."""
        return [_to_host(tensor) for tensor in state] if self.place == "host" else list(state)


def _to_host(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor
    # Pinned, so that the host need not wait for the copy.
    waiting = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return waiting.copy_(tensor, non_blocking=True)
