"""NTXentLoss of lightly 1.6."""

from collections import abc

import torch
import torch.nn.functional as F
from torch import distributed, nn

from mim4dd import _checks
from mim4dd import queue as _queue
from mim4dd.adapters._processes import num_processes as _num_processes
from mim4dd.ops.info_nce import info_nce as _info_nce

__all__ = ["NTXentLoss"]


class NTXentLoss(nn.Module):
    """``lightly.loss.NTXentLoss``: SimCLR on both views, or MoCo with a memory bank.

    Args:
        temperature: Softmax temperature τ of the cosine logits; below 0 it repels the positives.
        memory_bank_size: (M, D) of the bank, or 0 for none. It starts with random keys of unit
            length, takes the keys of every call whose ``out0`` requires a gradient, and follows
            the features to their device.
        gather_distributed: Negatives from all processes, whose batches may differ in size. Each
            returns the mean over its own queries.

    Raises:
        ValueError: On a bad size, and for a bank that several processes would share.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.lightly import NTXentLoss
        >>> NTXentLoss()(torch.eye(3), torch.eye(3))
        tensor(0.4327)
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | abc.Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        _checks.check_positive("abs(temperature)", abs(temperature))
        if gather_distributed and not distributed.is_available():
            raise ValueError(
                "gather_distributed needs torch.distributed, which this PyTorch does not have"
            )
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.memory_bank: _queue.KeyQueue | None = None
        size = [memory_bank_size] if isinstance(memory_bank_size, int) else list(memory_bank_size)
        if size[:1] == [0]:
            return
        if len(size) != 2:
            raise ValueError(f"memory_bank_size must be (M, D), or 0, got {memory_bank_size}")
        self.memory_bank = _queue.KeyQueue(*size)
        self.memory_bank.push(F.normalize(torch.randn(size), dim=1))

    def forward(
        self,
        out0: torch.Tensor,  # (N, D)
        out1: torch.Tensor,  # (N, D)
    ) -> torch.Tensor:
        """The mean over both views, or over ``out0`` where the bank holds the negatives."""
        across_ranks = self.gather_distributed and _num_processes() > 1
        if across_ranks and self.memory_bank is not None:
            raise ValueError(
                "gather_distributed must be False with a memory bank, got True in "
                f"{_num_processes()} processes: each process keeps a bank of its own keys"
            )
        _checks.check_rank("out0", out0, 2)
        _checks.check_same_device("out0", out0, "out1", out1)
        if out0.shape != out1.shape:
            raise ValueError(
                "out0 and out1 must have the same shape, "
                f"got {tuple(out0.shape)} and {tuple(out1.shape)}"
            )
        if self.memory_bank is not None:
            return self._against_bank(out0, out1, self.memory_bank.to(out0.device))
        views = torch.cat([out0, out1])
        other_view = torch.arange(len(views), device=views.device).roll(len(out0))
        return _info_nce(
            self._signed(views),
            views,
            positive_index=other_view,
            exclude_self=True,
            temperature=abs(self.temperature),
            normalize=True,
            reduction="none" if across_ranks else "mean",
            group=distributed.group.WORLD if across_ranks else None,
        ).mean()

    def _against_bank(
        self, out0: torch.Tensor, out1: torch.Tensor, bank: _queue.KeyQueue
    ) -> torch.Tensor:
        loss = _info_nce(
            self._signed(out0),
            out1,
            # Under autocast features may be narrower than the bank.
            negative_keys=bank.keys.to(out0.dtype),
            temperature=abs(self.temperature),
            normalize=True,
        )
        if out0.requires_grad:
            bank.push(F.normalize(out1, dim=1))
        return loss

    def _signed(self, query: torch.Tensor) -> torch.Tensor:
        return query if self.temperature > 0 else -query
