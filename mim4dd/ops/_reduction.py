"""From the losses of queries to the loss that is returned."""

from torch import Tensor

from mim4dd._checks import Reduction, can_look_at
from mim4dd.reference import Contrast, Reduce, count_queries, reduce_queries


def reduce_all(loss: Tensor, reduction: Reduction) -> Tensor:
    """Reduce over losses that all count."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def check_count(count: Tensor, num_queries: int) -> None:
    """Require queries to reduce over, where that can be seen."""
    if can_look_at(count) and count.item() == 0:
        raise ValueError(
            f"none of the {num_queries} queries has a positive key (with decoupled, both a "
            "positive and a negative one), so there is nothing to reduce; "
            "do labels and key_labels share no class, or are the positives among the keys left out?"
        )


def reduced_loss(contrast: Contrast, reduction: Reduction) -> Tensor:
    """The reduced loss of every layer, (L,), or (L, N)."""
    if reduction == "none":
        return contrast.loss
    count = count_queries(contrast.positive_weight)
    check_count(count, contrast.positive_weight.shape[0])
    return reduce_queries(contrast.loss, count, Reduce[reduction.upper()])
