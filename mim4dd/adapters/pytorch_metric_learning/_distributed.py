"""DistributedLossWrapper: the loss of the batches of all processes."""

import warnings

import torch
from torch import Tensor, distributed, nn

from mim4dd._checks import check_tensor
from mim4dd.adapters._processes import num_processes
from mim4dd.adapters.pytorch_metric_learning._losses import LabelledLoss, check_no_miner
from mim4dd.adapters.pytorch_metric_learning._memory import CrossBatchMemory


class DistributedLossWrapper(nn.Module):
    """``utils.distributed.DistributedLossWrapper``: embeddings of all processes in every loss.

    Every process must bring a batch of the same size. Those of the others have no gradient here:
    the loss is that of all, times their number, so that the mean over the processes that
    DistributedDataParallel takes of the gradients is the gradient of the whole.

    Args:
        loss: A loss of this module, or its :class:`CrossBatchMemory`.
        efficient: Take the loss of the own embeddings against those of all.

    Raises:
        TypeError: On another loss.
        ValueError: On a memory with ``efficient``.

    Example:
        >>> from mim4dd.adapters.pytorch_metric_learning import DistributedLossWrapper, NTXentLoss
        >>> loss = DistributedLossWrapper(NTXentLoss())
    """

    def __init__(self, loss: LabelledLoss | CrossBatchMemory, efficient: bool = False) -> None:
        super().__init__()
        if not isinstance(loss, (LabelledLoss, CrossBatchMemory)):
            raise TypeError(
                "loss must be one of mim4dd.adapters.pytorch_metric_learning, got "
                f"{type(loss).__name__}; use pytorch_metric_learning's own wrapper for others"
            )
        if efficient and isinstance(loss, CrossBatchMemory):
            raise ValueError("efficient must be False with CrossBatchMemory, got True")
        self.loss = loss
        self.efficient = efficient

    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor | None = None,  # (N,)
        indices_tuple: None = None,
        ref_emb: Tensor | None = None,  # (M, D)
        ref_labels: Tensor | None = None,  # (M,)
        enqueue_mask: Tensor | None = None,  # (N,)
    ) -> Tensor:
        """The loss, (); arguments as those of the wrapped one."""
        check_no_miner("indices_tuple", indices_tuple)
        check_tensor("embeddings", embeddings)
        if labels is None or (ref_labels is None) != (ref_emb is None):
            raise ValueError("labels must be given, and ref_labels with ref_emb")
        is_memory = isinstance(self.loss, CrossBatchMemory)
        if is_memory and ref_emb is not None:
            raise ValueError("ref_emb must be None with CrossBatchMemory, whose memory it is")
        if not is_memory and enqueue_mask is not None:
            raise ValueError("enqueue_mask needs a CrossBatchMemory, got another loss")
        count = num_processes()
        if count == 1:
            if not distributed.is_available() or not distributed.is_initialized():
                warnings.warn(
                    "DistributedLossWrapper is used in one process: the loss is as it is",
                    stacklevel=2,
                )
            return self._of(embeddings, labels, ref_emb, ref_labels, enqueue_mask)
        labels = labels.to(embeddings.device)
        own = None
        if ref_emb is not None and ref_labels is not None:
            ref_emb, ref_labels = _gathered(ref_emb), _gathered(ref_labels.to(ref_emb.device))
        elif self.efficient:
            ref_emb, ref_labels = _gathered(embeddings), _gathered(labels)
            own = torch.arange(len(embeddings), device=embeddings.device)
        if not self.efficient:
            embeddings, labels = _gathered(embeddings), _gathered(labels)
            enqueue_mask = None if enqueue_mask is None else _gathered(enqueue_mask)
            return count * self._of(embeddings, labels, ref_emb, ref_labels, enqueue_mask)
        assert isinstance(self.loss, LabelledLoss)
        assert ref_emb is not None
        return count * self.loss.against(embeddings, labels, ref_emb, ref_labels, own)

    def _of(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        enqueue_mask: Tensor | None,
    ) -> Tensor:
        if isinstance(self.loss, CrossBatchMemory):
            return self.loss(embeddings, labels, enqueue_mask=enqueue_mask)
        return self.loss(embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels)


def _gathered(own: Tensor) -> Tensor:
    """Own rows, and behind them those of the other processes, without a gradient."""
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own.detach().contiguous())
    del parts[distributed.get_rank()]
    return torch.cat([own, *parts])
