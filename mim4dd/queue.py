"""Keys of earlier batches, kept as negatives for later ones."""

import torch
from torch import Tensor, nn

from mim4dd._checks import (
    check_floating,
    check_integer,
    check_matching,
    check_rank,
    check_same_device,
)
from mim4dd.reference import IGNORE

__all__ = ["KeyQueue"]


class KeyQueue(nn.Module):
    """The last ``num_keys`` keys that were pushed, detached, with their labels.

    The queue of MoCo as ``negative_keys`` of :func:`mim4dd.info_nce`; with its labels, as the keys
    of :func:`mim4dd.sup_con`, a cross-batch memory. A ring buffer: pushing costs what is pushed.

    Nothing in it has a gradient. ``state_dict`` holds it, and ``to`` moves it; how many keys were
    pushed is a Python number, so that no GPU waits.

    Args:
        num_keys: How many keys it holds; the oldest make room.
        dimension: D, the features per key.

    Raises:
        ValueError: On sizes, shapes or devices that do not fit.
        TypeError: On keys in another dtype than the queue's, which ``to`` changes.

    Example:
        >>> import torch, mim4dd
        >>> queue = mim4dd.KeyQueue(num_keys=3, dimension=2)
        >>> queue.push(torch.eye(2), torch.tensor([7, 8]))
        >>> queue.labels
        tensor([7, 8])
        >>> queue.push(torch.zeros(2, 2))
        >>> queue.keys
        tensor([[0., 0.],
                [0., 1.],
                [0., 0.]])
        >>> mim4dd.info_nce(torch.eye(2), torch.eye(2), negative_keys=queue.keys, temperature=1.0)
        tensor(0.8750)

    References:
        He et al. Momentum Contrast for Unsupervised Visual Representation Learning.
        arXiv:1911.05722. With labels: Wang et al., Cross-Batch Memory, arXiv:1912.06798.
    """

    _keys: Tensor
    _labels: Tensor

    def __init__(self, num_keys: int, dimension: int) -> None:
        super().__init__()
        for name, size in (("num_keys", num_keys), ("dimension", dimension)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.register_buffer("_keys", torch.zeros(num_keys, dimension))
        self.register_buffer("_labels", torch.full((num_keys,), IGNORE))
        self._num_pushed = 0

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        num_keys, dimension = self._keys.shape
        return f"num_keys={num_keys}, dimension={dimension}, filled={len(self)}"

    def __len__(self) -> int:
        return min(self._num_pushed, len(self._keys))

    @property
    def keys(self) -> Tensor:
        """What is filled, (len, D), in no particular order.

        A copy, so that a push between a loss and its backward leaves that untouched.
        """
        return self._keys[: len(self)].clone()

    @property
    def labels(self) -> Tensor:
        """The label of each of ``keys``, (len,); -1, which takes no part, where none was given."""
        return self._labels[: len(self)].clone()

    @torch.no_grad()
    def push(
        self,
        key: Tensor,  # (B, D)
        labels: Tensor | None = None,  # (B,)
    ) -> None:
        """Put keys in place of the oldest, those of one call in their order."""
        check_rank("key", key, 2)
        check_floating("key", key)
        check_matching("key", key, "the queue", self._keys)
        num_keys, dimension = self._keys.shape
        if key.shape[1] != dimension:
            raise ValueError(f"key must be (B, {dimension}), got shape {tuple(key.shape)}")
        if labels is None:
            labels = self._labels.new_full(key.shape[:1], IGNORE)
        check_rank("labels", labels, 1)
        check_integer("labels", labels)
        check_same_device("labels", labels, "key", key)
        if len(labels) != len(key):
            raise ValueError(
                f"labels must hold one entry per key, got {len(labels)} for {len(key)} keys"
            )
        self._num_pushed += len(key)
        kept = min(len(key), num_keys)
        places = torch.arange(self._num_pushed - kept, self._num_pushed, device=key.device)
        places %= num_keys
        self._keys[places] = key[len(key) - kept :]
        self._labels[places] = labels[len(key) - kept :].long()

    def get_extra_state(self) -> Tensor:
        """How many keys were pushed, for ``state_dict``."""
        return torch.tensor(self._num_pushed)

    def set_extra_state(self, state: Tensor) -> None:
        """The same from there."""
        self._num_pushed = int(state)
