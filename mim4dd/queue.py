"""Keys of earlier batches, kept as negatives for later ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mim4dd._checks import check_floating, check_integer, check_rank, check_same_device
from mim4dd.reference import IGNORE

__all__ = ["KeyQueue"]


class KeyQueue(nn.Module):
    """The last ``num_keys`` keys that were pushed, detached, with their labels.

    The queue of MoCo as ``negative_keys`` of :func:`mim4dd.info_nce`; with its labels, as the keys
    of :func:`mim4dd.sup_con`, a cross-batch memory. A ring buffer: pushing costs what is pushed,
    and no GPU waits for it.

    Nothing in it has a gradient. ``state_dict`` holds it, and ``to`` moves it; but it is not among
    ``buffers()``, so that under DistributedDataParallel each rank keeps the keys that it pushed:
    what is a buffer there becomes that of rank 0. To share keys, gather them before pushing.

    Args:
        num_keys: How many keys it holds; the oldest make room.
        dimension: D, the features per key.

    Raises:
        ValueError: On sizes, shapes or devices that do not fit.
        TypeError: On keys that are no floating-point numbers, and labels that are no integers.

    Example:
        >>> import torch, mim4dd
        >>> queue = mim4dd.KeyQueue(num_keys=3, dimension=2)
        >>> queue.push(torch.eye(2), torch.tensor([7, 8]))
        tensor([0, 1])
        >>> queue.labels
        tensor([7, 8])
        >>> queue.push(torch.zeros(2, 2))
        tensor([2, 0])
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

    _ring: "_Ring"

    def __init__(self, num_keys: int, dimension: int) -> None:
        super().__init__()
        for name, size in (("num_keys", num_keys), ("dimension", dimension)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        # Not a submodule: its buffers would be among those of whatever holds this queue.
        self.__dict__["_ring"] = _Ring(num_keys, dimension)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        num_keys, dimension = self._keys.shape
        return f"num_keys={num_keys}, dimension={dimension}, filled={len(self)}"

    def __len__(self) -> int:
        return self._ring.filled.shape[0]

    @property
    def keys(self) -> Tensor:
        """What is filled, (len, D), in the order of the slots that ``push`` returns.

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
    ) -> Tensor:
        """Put keys in place of the oldest, those of one call in their order.

        Args:
            key: Of any floating-point dtype; it is kept in the queue's. (B, D)
            labels: Their labels; -1 where there is none. (B,), integer

        Returns:
            The row of ``keys`` that each went to: as ``self_index`` of a loss whose queries they
            are, it leaves a query's own key out. -1 where a push of more than ``num_keys`` keys
            overtakes itself. (B,), int64

        Raises:
            ValueError: On shapes or devices that do not fit.
            TypeError: On keys that are no floating-point numbers, and labels that are no integers.
        """
        check_rank("key", key, 2)
        check_floating("key", key)
        check_same_device("key", key, "the queue", self._keys)
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
        ring = self._ring
        slots = (ring.num_pushed + torch.arange(len(key), device=key.device)) % num_keys
        overtaken = max(len(key) - num_keys, 0)
        kept = slots[overtaken:]
        self._keys[kept] = key[overtaken:].to(self._keys.dtype)
        self._labels[kept] = labels[overtaken:].long()
        ring.num_pushed += len(key)
        ring.fill_to(len(self) + len(key))
        slots[:overtaken] = IGNORE
        return slots

    # By these names in state_dict, where tools look them up.

    @property
    def _keys(self) -> Tensor:
        return self._ring._keys

    @property
    def _labels(self) -> Tensor:
        return self._ring._labels

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KeyQueue":
        self._ring._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self._ring._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._ring._load_from_state_dict(*arguments)


class _Ring(nn.Module):
    """What a queue holds, as buffers of a module that no other one sees.

    torch.compile takes Python numbers in a module for constants, and compiles anew for each value.
    So both counts are tensors: ``num_pushed`` beside the keys, where no push waits for it, and how
    many keys are filled as the *size* of one without elements, which is a variable there, and known
    without looking at the GPU.
    """

    _keys: Tensor  # (num_keys, D)
    _labels: Tensor  # (num_keys,)
    num_pushed: Tensor  # ()
    filled: Tensor  # (len, 0)

    def __init__(self, num_keys: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("_keys", torch.zeros(num_keys, dimension))
        self.register_buffer("_labels", torch.full((num_keys,), IGNORE))
        self.register_buffer("num_pushed", torch.tensor(0), persistent=False)
        self.fill_to(0)

    def fill_to(self, count: int) -> None:
        """State that the first ``count`` rows are filled, if there are as many."""
        # No buffer: the sizes of those are constants too.
        self.filled = self._keys.new_empty(min(count, len(self._keys)), 0)

    def get_extra_state(self) -> Tensor:
        """How many keys were pushed, for ``state_dict``."""
        return self.num_pushed.clone()

    def set_extra_state(self, state: Tensor) -> None:
        """The same from there."""
        self.num_pushed.fill_(int(state))
        self.fill_to(int(state))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Ring":
        self.filled = fn(self.filled)
        return super()._apply(fn, recurse)
