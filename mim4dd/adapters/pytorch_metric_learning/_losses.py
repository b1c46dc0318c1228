"""NTXentLoss and SupConLoss, with their default distance and reducers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mim4dd._checks import check_positive, check_rank, check_tensor
from mim4dd.adapters.pytorch_metric_learning._defaults import check_defaults
from mim4dd.ops.contrastive import contrastive
from mim4dd.ops.contrastive.inputs import (
    Positives,
    Sides,
    as_logit_scale,
    as_sides,
    by_label,
)
from mim4dd.reference import Contrast, Critic

# Queries whose positive logits exist at one time.
_ROWS = 256


class LabelledLoss(nn.Module):
    """What both losses take: cosine logits, positives by label."""

    _default_reducer: str

    def __init__(
        self,
        temperature: float,
        distance: object = None,
        reducer: object = None,
        embedding_regularizer: object = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        check_defaults(
            type(self).__name__,
            self._default_reducer,
            distance=distance,
            reducer=reducer,
            embedding_regularizer=embedding_regularizer,
            collect_stats=collect_stats,
        )
        self.temperature = temperature
        self.embedding_reg_weight = embedding_reg_weight

    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor | None = None,  # (N,)
        indices_tuple: None = None,
        ref_emb: Tensor | None = None,  # (M, D)
        ref_labels: Tensor | None = None,  # (M,)
    ) -> Tensor:
        """The loss, (), of embeddings among themselves or, if given, against ``ref_emb``."""
        check_no_miner("indices_tuple", indices_tuple)
        if ref_emb is not None:
            return self.against(embeddings, labels, ref_emb, ref_labels, None)
        check_tensor("embeddings", embeddings)
        own = torch.arange(len(embeddings), device=embeddings.device)
        return self.against(embeddings, labels, embeddings, labels, own)

    def against(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor | None,  # (N,)
        ref_emb: Tensor,  # (M, D)
        ref_labels: Tensor | None,  # (M,)
        self_index: Tensor | None,  # (N,)
    ) -> Tensor:
        """The loss, (), against ``ref_emb``, without the pairs of a query with itself there."""
        if labels is None or ref_labels is None:
            raise ValueError("labels must be given, and ref_labels with ref_emb")
        check_rank("embeddings", embeddings, 2)
        check_rank("ref_emb", ref_emb, 2)
        for name, vector in (("labels", labels), ("ref_labels", ref_labels)):
            check_tensor(name, vector)
        sides = as_sides(embeddings, ref_emb)
        # Labels may be on another device, as in the peer.
        positives = by_label(sides, labels.to(sides.device), ref_labels.to(sides.device))
        return self._of(sides, _without_ignored(positives), self_index)

    def _of(self, sides: Sides, positives: Positives, self_index: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _contrast(
        self,
        sides: Sides,
        positives: Positives,
        self_index: Tensor | None,
        critic: Critic,
        uniform: bool,
    ) -> Contrast:
        excluded = None if self_index is None else self_index[:, None]
        scale = as_logit_scale(sides, self.temperature, None)
        shared = *positives, excluded, scale, None, critic
        return contrastive(sides.query, sides.key, *shared, uniform=uniform)


def check_no_miner(name: str, value: object) -> None:
    """Refuse chosen pairs."""
    if value is not None:
        raise ValueError(
            f"{name} must be None: pairs that a miner chose are not supported; labels alone say "
            f"which pairs are positive"
        )


def _without_ignored(positives: Positives) -> Positives:
    """Labels from 0 on: -1 is a class like any other there."""
    labels, key_labels = positives
    assert key_labels is not None
    lowest = torch.minimum(labels.min(), key_labels.min())
    return Positives(labels - lowest, key_labels - lowest)


class SupConLoss(LabelledLoss):
    """``losses.SupConLoss``: the mean over the embeddings that have a positive.

    Zero where no pair of the batch is positive, and where none is negative.

    Args:
        temperature: Softmax temperature τ > 0.
        distance: None, or ``CosineSimilarity()`` of the peer, which is the default.
        reducer: None, or ``AvgNonZeroReducer()`` of the peer, likewise.
        embedding_regularizer: None.
        embedding_reg_weight: Without effect, as there is no regulariser.
        collect_stats: None or False.

    Raises:
        ValueError: On another distance or reducer, and on a regulariser.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.pytorch_metric_learning import SupConLoss
        >>> SupConLoss(temperature=1.0)(torch.eye(3), torch.tensor([0, 0, 1]))
        tensor(0.6931)
    """

    _default_reducer = "AvgNonZeroReducer"

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        distance: object = None,
        reducer: object = None,
        embedding_regularizer: object = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(
            temperature,
            distance,
            reducer,
            embedding_regularizer,
            embedding_reg_weight,
            collect_stats,
        )

    def _of(self, sides: Sides, positives: Positives, self_index: Tensor | None) -> Tensor:
        contrast = self._contrast(
            sides, positives, self_index, Critic(normalize=True), uniform=True
        )
        # Exact losses are zero without a positive alone; computed ones also where they underflow.
        num_queries = (contrast.positive_weight > 0).sum().clamp(min=1)
        classes = torch.cat([labels for labels in positives if labels is not None])
        has_negative = (classes != classes[0]).any()
        return contrast.loss.sum() / num_queries * has_negative


class NTXentLoss(LabelledLoss):
    r"""``losses.NTXentLoss``: every positive pair against the negatives of its anchor.

    .. math::
        \frac{1}{|P|} \sum_{(i, p) \in P}
            -\log \frac{e^{s_{ip}}}{e^{s_{ip}} + \sum_{n: y_n \neq y_i} e^{s_{in}}}

    The negatives go through the kernels. The logits of positive pairs are computed for some rows
    at a time, and again for each derivative: no (N, M) matrix is kept.

    Args:
        temperature: Softmax temperature τ > 0.
        distance: None, or ``CosineSimilarity()`` of the peer, which is the default.
        reducer: None, or ``MeanReducer()`` of the peer, likewise.
        embedding_regularizer: None.
        embedding_reg_weight: Without effect, as there is no regulariser.
        collect_stats: None or False.

    Raises:
        ValueError: On another distance or reducer, and on a regulariser.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.pytorch_metric_learning import NTXentLoss
        >>> NTXentLoss(temperature=1.0)(torch.eye(3), torch.tensor([0, 0, 1]))
        tensor(0.6931)
    """

    _default_reducer = "MeanReducer"

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        distance: object = None,
        reducer: object = None,
        embedding_regularizer: object = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(
            temperature,
            distance,
            reducer,
            embedding_regularizer,
            embedding_reg_weight,
            collect_stats,
        )

    def _of(self, sides: Sides, positives: Positives, self_index: Tensor | None) -> Tensor:
        # A query's own key is of its class, and so no negative.
        critic = Critic(decoupled=True, normalize=True)
        lse = self._contrast(sides, positives, None, critic, uniform=False).lse.squeeze(0)
        # In the order of their classes, the positives of consecutive rows are consecutive keys.
        (labels, rows), (key_labels, columns) = (
            side.sort(stable=True) for side in positives if side is not None
        )
        query = F.normalize(sides.query[0].to(sides.dtype), dim=1)[rows] / self.temperature
        key = F.normalize(sides.key[0].to(sides.dtype), dim=1)[columns]
        lse = lse[rows]
        own = None if self_index is None else self_index[rows]
        first = torch.searchsorted(key_labels, labels)
        last = torch.searchsorted(key_labels, labels, right=True)
        total = lse.new_zeros(())
        for start in range(0, sides.num_queries, _ROWS):
            some = slice(start, start + _ROWS)
            begin, end = int(first[some][0]), int(last[some][-1])
            total = total + checkpoint(
                _sum_over_pairs,
                query[some],
                key[begin:end],
                lse[some],
                labels[some],
                key_labels[begin:end],
                None if own is None else own[some],
                columns[begin:end],
                use_reentrant=False,
                preserve_rng_state=False,
            )
        num_pairs = (last - first).sum() - (0 if own is None else (own >= 0).sum())
        return total / num_pairs.clamp(min=1)


def _sum_over_pairs(
    query: Tensor,  # (N, D)
    key: Tensor,  # (M, D)
    lse: Tensor,  # (N,), of the negatives
    labels: Tensor,  # (N,)
    key_labels: Tensor,  # (M,)
    own: Tensor | None,  # (N,), which column is the query itself
    columns: Tensor,  # (M,), of the keys
) -> Tensor:
    positive = labels[:, None] == key_labels
    if own is not None:
        positive &= own[:, None] != columns
    with torch.autocast(query.device.type, enabled=False):
        logits = query @ key.T
    # Not softplus, which PyTorch replaces by its asymptote from 20 on.
    return -F.logsigmoid(logits - lse[:, None]).where(positive, 0).sum()
