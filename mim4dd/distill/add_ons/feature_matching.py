"""Feature matching without negatives: what the contrast of MIM4DD is compared with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd.losses import MIM4DDLoss

__all__ = ["FeatureMatchingLoss"]


class FeatureMatchingLoss(MIM4DDLoss):
    r"""Mean squared distance between features of one class: MIM4DD's pairs, without its negatives.

    .. math::
        \sum_k \gamma^{K-k}\, \mathrm{mean}_i\, \mathrm{mean}_{j: y_j = y_i} \|a_{ki} - b_{kj}\|^2

    over unit-length features a of synthetic and b of real samples, embedded as in
    :class:`mim4dd.MIM4DDLoss`. ``mi_lower_bound`` is that of the same features by InfoNCE, which is
    measured and not trained.

    Args:
        temperature: Of the measured bound.
        layer_decay: γ in (0, 1]: each layer counts γ times the one after it.
        projection: One module per layer, or None.

    Example:
        >>> import torch
        >>> from mim4dd.distill.add_ons.feature_matching import FeatureMatchingLoss
        >>> labels = torch.arange(4)
        >>> FeatureMatchingLoss()([torch.eye(4)], [-torch.eye(4)], labels, labels)
        tensor(4.)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        layer_decay: float = 1.0,
        projection: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__(temperature, "info_nce", layer_decay, projection)

    def forward(
        self,
        features_syn: Sequence[Tensor],  # K of (N, ...)
        features_real: Sequence[Tensor],  # K of (M, ...)
        labels_syn: Tensor,  # (N,)
        labels_real: Tensor,  # (M,)
    ) -> Tensor:
        """The weighted sum over the layers, a scalar."""
        with torch.no_grad():
            super().forward(features_syn, features_real, labels_syn, labels_real)
        weight = _pair_weights(labels_syn, labels_real)
        distances = []
        for layer, (syn, real) in enumerate(zip(features_syn, features_real, strict=True)):
            query = F.normalize(self._embed(layer, syn))
            key = F.normalize(self._embed(layer, real))
            # Rows of unit length: ‖a − b‖² = 2 − 2 a·b, and the mean over b goes inside.
            cosine = (query * (weight.to(key) @ key)).sum(1)
            distances.append(2 - 2 * cosine[weight.any(1)].mean())
        return self._weigh(torch.stack(distances))


def _pair_weights(labels_syn: Tensor, labels_real: Tensor) -> Tensor:
    """(N, M): in each row the mean over the real samples of the query's class; 0 where none is."""
    same = (labels_syn[:, None] == labels_real[None, :]).double()
    return same / same.sum(1, keepdim=True).clamp(min=1)
