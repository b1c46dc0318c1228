"""Mean features of every class."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["class_means", "class_weights"]


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean features of every class; NaN where a class has none. (C, D) of (N, D)

    Example:
        >>> import torch
        >>> from mim4dd.distill.training.class_means import class_means
        >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2)
        tensor([[2.],
                [5.]])
    """
    return class_weights(labels, num_classes, features.dtype).T @ features


def class_weights(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """What each sample counts in the mean of each class; NaN where a class has none. (N, C)"""
    members = F.one_hot(labels, num_classes).to(dtype)
    return members / members.sum(0)
