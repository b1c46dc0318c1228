"""Unit-length queries and keys with class labels, for the losses that take them."""

import torch
import torch.nn.functional as F


def make_labelled(shape, device):
    """Query, key, labels, key_labels of shape (N, M, D): float64, four classes of keys."""
    n, m, d = shape
    query = F.normalize(torch.randn(n, d, dtype=torch.float64, device=device), dim=1)
    key = F.normalize(torch.randn(m, d, dtype=torch.float64, device=device), dim=1)
    key_labels = torch.randint(4, (m,), device=device)
    labels = torch.randint(5, (n,), device=device)  # class 4 has no key
    labels[0] = key_labels[0]
    return query.requires_grad_(), key.requires_grad_(), labels, key_labels
