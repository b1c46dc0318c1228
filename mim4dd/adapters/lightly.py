"""NTXentLoss of lightly 1.6."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd._checks import check_matching, check_positive, check_rank
from mim4dd.adapters._processes import num_processes
from mim4dd.ops.info_nce import info_nce
from mim4dd.queue import KeyQueue

__all__ = ["NTXentLoss"]


class NTXentLoss(nn.Module):
    """``lightly.loss.NTXentLoss``: SimCLR on both views, or MoCo with a memory bank.

    Args:
        temperature: Softmax temperature τ > 0 of the cosine logits.
        memory_bank_size: (M, D) of the bank, or 0 for none. It starts with random keys of unit
            length, and takes the keys of every call whose ``out0`` requires a gradient.
        gather_distributed: Allowed in a single process, where it is without effect.

    Raises:
        ValueError: On a bad size, and in more than one process with ``gather_distributed``.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.lightly import NTXentLoss
        >>> NTXentLoss()(torch.eye(3), torch.eye(3))
        tensor(0.4327)
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.memory_bank: KeyQueue | None = None
        size = [memory_bank_size] if isinstance(memory_bank_size, int) else list(memory_bank_size)
        if size[:1] == [0]:
            return
        if len(size) != 2:
            raise ValueError(f"memory_bank_size must be (M, D), or 0, got {memory_bank_size}")
        self.memory_bank = KeyQueue(*size)
        self.memory_bank.push(F.normalize(torch.randn(size), dim=1))

    def forward(
        self,
        out0: Tensor,  # (N, D)
        out1: Tensor,  # (N, D)
    ) -> Tensor:
        """The mean over both views, or over ``out0`` where the bank holds the negatives."""
        if self.gather_distributed and num_processes() > 1:
            raise ValueError(
                "gather_distributed must be False in more than one process, got True in "
                f"{num_processes()}: features are not gathered across them here"
            )
        check_rank("out0", out0, 2)
        check_matching("out0", out0, "out1", out1)
        if out0.shape != out1.shape:
            raise ValueError(
                "out0 and out1 must have the same shape, "
                f"got {tuple(out0.shape)} and {tuple(out1.shape)}"
            )
        if self.memory_bank is None:
            views = torch.cat([out0, out1])
            other_view = torch.arange(len(views), device=views.device).roll(len(out0))
            return info_nce(
                views,
                views,
                positive_index=other_view,
                exclude_self=True,
                temperature=self.temperature,
                normalize=True,
            )
        loss = info_nce(
            out0,
            out1,
            negative_keys=self.memory_bank.keys,
            temperature=self.temperature,
            normalize=True,
        )
        if out0.requires_grad:
            self.memory_bank.push(F.normalize(out1, dim=1))
        return loss
