"""CrossBatchMemory: a loss of a batch against this and earlier ones."""

import torch
from torch import Tensor, nn

from mim4dd._checks import check_rank, check_tensor
from mim4dd.adapters.pytorch_metric_learning._losses import LabelledLoss, check_no_miner
from mim4dd.queue import KeyQueue


class CrossBatchMemory(nn.Module):
    """``losses.CrossBatchMemory``: embeddings against the last ``memory_size``, these included.

    The pairs of an embedding with itself are left out. The memory follows the embeddings to their
    device and dtype. It is saved with its place, so that a run goes on where it was.

    Args:
        loss: :class:`NTXentLoss` or :class:`SupConLoss` of this module.
        embedding_size: D.
        memory_size: How many embeddings it holds, at least a batch.
        miner: None.
        collect_stats: None or False.

    Raises:
        ValueError: On a miner, and on a batch that is larger than the memory.
        TypeError: On another loss.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.pytorch_metric_learning import CrossBatchMemory, SupConLoss
        >>> memory = CrossBatchMemory(SupConLoss(temperature=1.0), embedding_size=3, memory_size=9)
        >>> memory(torch.eye(3), torch.tensor([0, 0, 1]))
        tensor(0.6931)
        >>> memory(torch.eye(3), torch.tensor([0, 0, 1]))
        tensor(1.3493)

    References:
        Wang et al. Cross-Batch Memory for Embedding Learning. arXiv:1912.06798.
    """

    def __init__(
        self,
        loss: LabelledLoss,
        embedding_size: int,
        memory_size: int = 1024,
        miner: None = None,
        *,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(loss, LabelledLoss):
            raise TypeError(
                "loss must be NTXentLoss or SupConLoss of mim4dd.adapters.pytorch_metric_learning, "
                f"got {type(loss).__name__}; use pytorch_metric_learning's own memory for others"
            )
        check_no_miner("miner", miner)
        if collect_stats:
            raise ValueError(
                f"collect_stats must be off, got {collect_stats}: no statistics are kept"
            )
        self.loss = loss
        self.embedding_size = embedding_size
        self.memory_size = memory_size
        self.reset_queue()

    def reset_queue(self) -> None:
        """Forget all embeddings."""
        self.queue = KeyQueue(self.memory_size, self.embedding_size)

    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
        indices_tuple: None = None,
        enqueue_mask: Tensor | None = None,  # (N,)
    ) -> Tensor:
        """The loss, (), with the batch in the memory.

        Args:
            embeddings: The batch. (N, D)
            labels: The class of each. (N,), integer
            indices_tuple: None.
            enqueue_mask: True for those that go into the memory alone; the loss is that of the
                others, none of which does. (N,), bool

        Raises:
            ValueError: On shapes that do not fit, and on a batch larger than the memory.
        """
        check_no_miner("indices_tuple", indices_tuple)
        check_rank("embeddings", embeddings, 2)
        check_tensor("labels", labels)
        labels = labels.to(embeddings.device)
        pushed, pushed_labels = embeddings, labels
        if enqueue_mask is not None:
            mask = _checked_mask(enqueue_mask, embeddings)
            pushed, pushed_labels = embeddings[mask], labels[mask]
            embeddings, labels = embeddings[~mask], labels[~mask]
        elif len(embeddings) > self.memory_size:
            raise ValueError(
                f"memory_size must be at least the batch, got {self.memory_size} for "
                f"{len(embeddings)} embeddings"
            )
        slots = self.queue.to(embeddings.device, embeddings.dtype).push(pushed, pushed_labels)
        if not len(embeddings) or not len(self.queue):
            return (embeddings * 0).sum()
        self_index = slots if enqueue_mask is None else None
        return self.loss.against(embeddings, labels, self.queue.keys, self.queue.labels, self_index)


def _checked_mask(mask: Tensor, embeddings: Tensor) -> Tensor:
    check_rank("enqueue_mask", mask, 1)
    if mask.dtype != torch.bool:
        raise TypeError(f"enqueue_mask must have dtype torch.bool, got {mask.dtype}")
    if len(mask) != len(embeddings):
        raise ValueError(
            "enqueue_mask must hold one entry per embedding, "
            f"got {len(mask)} for {len(embeddings)} embeddings"
        )
    return mask.to(embeddings.device)
