"""How a method trains a network on the synthetic set, within every outer step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mim4dd.distill.methods.augmentation_settings import AugmentationSettings

__all__ = ["InnerSettings"]


@dataclass(frozen=True)
class InnerSettings(AugmentationSettings):
    """Of methods that differentiate through training on the synthetic set.

    Args:
        syn_steps: Training steps T of the student network.
        batch_syn: Synthetic images in each training step; by default all.
        memory_budget: Bytes to keep activations in, to save time.
    """

    syn_steps: int = 20
    batch_syn: int | None = None
    memory_budget: int = 2**30

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(syn_steps=1, batch_syn=1, memory_budget=0)

    def schedule(self, num_samples: int, num_steps: int, generator: torch.Generator) -> Tensor:
        """Batches (T, B) that walk through one random permutation of the samples after another."""
        batch = min(self.batch_syn or num_samples, num_samples)
        per_permutation = num_samples // batch
        rows = []
        for _ in range(-(-num_steps // per_permutation)):
            permutation = torch.randperm(num_samples, generator=generator)
            rows.append(permutation[: per_permutation * batch].view(per_permutation, batch))
        return torch.cat(rows)[:num_steps]
