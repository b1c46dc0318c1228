"""NTXentLoss and SupConLoss of pytorch-metric-learning 2.9, with their default reducers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mim4dd._checks import check_positive, check_rank, check_tensor
from mim4dd.ops._contrastive import (
    Layers,
    Positives,
    as_layers,
    as_logit_scale,
    by_label,
)
from mim4dd.ops._exclusion import excluded_keys
from mim4dd.ops.contrastive import contrastive
from mim4dd.reference import Contrast, Critic

__all__ = ["NTXentLoss", "SupConLoss"]

# Queries whose positive logits exist at one time.
_ROWS = 256


class _LabelledLoss(nn.Module):
    """What both losses take: cosine logits, positives by label."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature

    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor | None = None,  # (N,)
        indices_tuple: None = None,
        ref_emb: Tensor | None = None,  # (M, D)
        ref_labels: Tensor | None = None,  # (M,)
    ) -> Tensor:
        """The loss, (), of embeddings among themselves or, if given, against ``ref_emb``."""
        if indices_tuple is not None:
            raise ValueError(
                "indices_tuple must be None: pairs that a miner chose are not supported, "
                "positives and negatives are all that labels say"
            )
        alone = ref_emb is None
        if ref_emb is None:
            ref_emb, ref_labels = embeddings, labels
        if labels is None or ref_labels is None:
            raise ValueError("labels must be given, and ref_labels with ref_emb")
        check_rank("embeddings", embeddings, 2)
        check_rank("ref_emb", ref_emb, 2)
        for name, vector in (("labels", labels), ("ref_labels", ref_labels)):
            check_tensor(name, vector)
        layers = as_layers(embeddings, ref_emb)
        # Labels may be on another device, as in the peer.
        positives = by_label(layers, labels.to(layers.device), ref_labels.to(layers.device))
        return self._of(layers, _without_ignored(positives), alone)

    def _of(self, layers: Layers, positives: Positives, alone: bool) -> Tensor:
        raise NotImplementedError

    def _contrast(
        self, layers: Layers, positives: Positives, critic: Critic, alone: bool, uniform: bool
    ) -> Contrast:
        scale = as_logit_scale(layers, self.temperature, None)
        shared = *positives, excluded_keys(layers, alone, None, None), scale, None, critic
        return contrastive(layers.query, layers.key, *shared, uniform=uniform)


def _without_ignored(positives: Positives) -> Positives:
    """Labels from 0 on: -1 is a class like any other there."""
    labels, key_labels = positives
    assert key_labels is not None
    lowest = torch.minimum(labels.min(), key_labels.min())
    return Positives(labels - lowest, key_labels - lowest)


class SupConLoss(_LabelledLoss):
    """``losses.SupConLoss``: the mean over the embeddings that have a positive.

    Zero where no pair of the batch is positive, and where none is negative.

    Args:
        temperature: Softmax temperature τ > 0.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.pytorch_metric_learning import SupConLoss
        >>> SupConLoss(temperature=1.0)(torch.eye(3), torch.tensor([0, 0, 1]))
        tensor(0.6931)
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__(temperature)

    def _of(self, layers: Layers, positives: Positives, alone: bool) -> Tensor:
        critic = Critic(normalize=True)
        contrast = self._contrast(layers, positives, critic, alone, uniform=True)
        # Exact losses are zero without a positive alone; computed ones also where they underflow.
        num_queries = (contrast.positive_weight > 0).sum().clamp(min=1)
        classes = torch.cat([labels for labels in positives if labels is not None])
        has_negative = (classes != classes[0]).any()
        return contrast.loss.sum() / num_queries * has_negative


class NTXentLoss(_LabelledLoss):
    r"""``losses.NTXentLoss``: every positive pair against the negatives of its anchor.

    .. math::
        \frac{1}{|P|} \sum_{(i, p) \in P}
            -\log \frac{e^{s_{ip}}}{e^{s_{ip}} + \sum_{n: y_n \neq y_i} e^{s_{in}}}

    The negatives go through the kernels. The logits of positive pairs are computed for some rows
    at a time, and again for each derivative: no (N, M) matrix is kept.

    Args:
        temperature: Softmax temperature τ > 0.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.pytorch_metric_learning import NTXentLoss
        >>> NTXentLoss(temperature=1.0)(torch.eye(3), torch.tensor([0, 0, 1]))
        tensor(0.6931)
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__(temperature)

    def _of(self, layers: Layers, positives: Positives, alone: bool) -> Tensor:
        critic = Critic(decoupled=True, normalize=True)
        lse = self._contrast(layers, positives, critic, alone, uniform=False).lse.squeeze(0)
        # In the order of their classes, the positives of consecutive rows are consecutive keys.
        (labels, rows), (key_labels, columns) = (
            side.sort(stable=True) for side in positives if side is not None
        )
        query = F.normalize(layers.query[0].to(layers.dtype), dim=1)[rows] / self.temperature
        key = F.normalize(layers.key[0].to(layers.dtype), dim=1)[columns]
        lse = lse[rows]
        first = torch.searchsorted(key_labels, labels)
        last = torch.searchsorted(key_labels, labels, right=True)
        total = lse.new_zeros(())
        for start in range(0, layers.num_queries, _ROWS):
            some = slice(start, start + _ROWS)
            begin, end = int(first[some][0]), int(last[some][-1])
            total = total + checkpoint(
                _sum_over_pairs,
                query[some],
                key[begin:end],
                lse[some],
                labels[some],
                key_labels[begin:end],
                start - begin if alone else None,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        num_pairs = (last - first).sum() - (layers.num_queries if alone else 0)
        return total / num_pairs.clamp(min=1)


def _sum_over_pairs(
    query: Tensor,  # (N, D)
    key: Tensor,  # (M, D)
    lse: Tensor,  # (N,), of the negatives
    labels: Tensor,  # (N,)
    key_labels: Tensor,  # (M,)
    self_diagonal: int | None,  # on which a query meets itself
) -> Tensor:
    positive = labels[:, None] == key_labels
    if self_diagonal is not None:
        positive.diagonal(self_diagonal).fill_(False)
    with torch.autocast(query.device.type, enabled=False):
        logits = query @ key.T
    # Not softplus, which PyTorch replaces by its asymptote from 20 on.
    return -F.logsigmoid(logits - lse[:, None]).where(positive, 0).sum()
