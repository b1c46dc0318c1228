"""From the losses of queries to the loss that is returned."""

from enum import IntEnum

from torch import Tensor


class Reduce(IntEnum):
    """A reduction's number, as ops take it: those of at::Reduction and csrc/contrastive.h."""

    NONE = 0
    MEAN = 1
    SUM = 2


def count_queries(positive_weight: Tensor) -> Tensor:
    """How many queries have a positive: what a mean is divided by."""
    return (positive_weight > 0).sum(dtype=positive_weight.dtype)


def reduce_queries(loss: Tensor, count: Tensor, how: Reduce) -> Tensor:
    """Reduce over the last axis, where the loss of a query without a positive is 0."""
    total = loss.sum(-1)
    return total / count if how == Reduce.MEAN else total
