"""Splits that keep the shares of the classes."""

from collections.abc import Callable

import torch
from torch import Tensor

from mim4dd.distill.data.per_class import draw_of_class

__all__ = ["hold_out_a_fifth", "stratified"]


def hold_out_a_fifth(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to test on: a fifth of every class, the same on each call.

    Raises:
        ValueError: If a class is too small to be in both.
    """
    from sklearn.model_selection import train_test_split

    counts = labels.bincount()
    if (counts == 1).any():
        raise ValueError(
            "labels must have at least 2 images of every class to hold some out, class "
            f"{int((counts == 1).int().argmax())} has 1; pass test explicitly"
        )
    held_out = max(int((counts > 0).sum()), round(0.2 * len(labels)))
    train, test = train_test_split(
        torch.arange(len(labels)).numpy(),
        test_size=held_out,
        stratify=labels.cpu().numpy(),
        random_state=0,
    )
    missing = torch.where((labels[test].bincount(minlength=len(counts)) == 0) & (counts > 0))[0]
    if len(missing):
        raise ValueError(
            f"labels must have enough images of every class to hold some out, class "
            f"{int(missing[0])} with {int(counts[missing[0]])} gets none; pass test explicitly"
        )
    return torch.from_numpy(train), torch.from_numpy(test)


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to test on: ``fraction`` of every class, one at least, not all.

    The order of ``labels`` is kept in both, and both are on its device.
    """
    generator = torch.Generator().manual_seed(seed)
    on_cpu = labels.cpu()
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in on_cpu.unique().tolist():
        held_out[draw_of_class(on_cpu, label, _share_of(fraction), generator)] = True
    train, test = torch.where(~held_out)[0], torch.where(held_out)[0]
    return train.to(labels.device), test.to(labels.device)


def _share_of(fraction: float) -> Callable[[int], int]:
    return lambda size: min(max(1, round(fraction * size)), size - 1)
