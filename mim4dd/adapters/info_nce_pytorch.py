"""InfoNCE of info-nce-pytorch 0.1.4."""

from typing import Literal

from torch import Tensor, nn

from mim4dd._checks import Reduction, check_choice, check_rank
from mim4dd.ops.info_nce import info_nce

__all__ = ["InfoNCE"]


class InfoNCE(nn.Module):
    """``info_nce.InfoNCE``: cosine logits, one positive key per query.

    Args:
        temperature: Softmax temperature τ > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        negative_mode: Whether queries share their ``negative_keys`` (``"unpaired"``, (M, D)) or
            each has its own (``"paired"``, (N, M, D)).

    Example:
        >>> import torch
        >>> from mim4dd.adapters.info_nce_pytorch import InfoNCE
        >>> InfoNCE(temperature=1.0)(torch.eye(3), torch.eye(3))
        tensor(0.5514)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        reduction: Reduction = "mean",
        negative_mode: Literal["unpaired", "paired"] = "unpaired",
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        check_choice("negative_mode", negative_mode, ("unpaired", "paired"))
        self.temperature = temperature
        self.reduction: Reduction = reduction
        self.negative_mode = negative_mode

    def forward(
        self,
        query: Tensor,  # (N, D)
        positive_key: Tensor,  # (N, D)
        negative_keys: Tensor | None = None,  # (M, D) or (N, M, D)
    ) -> Tensor:
        """The loss; without ``negative_keys`` those of a query are the keys of the others."""
        check_rank("query", query, 2)
        check_rank("positive_key", positive_key, 2)
        if len(query) != len(positive_key):
            raise ValueError(
                "positive_key must hold one key per query, "
                f"got {len(positive_key)} for {len(query)} queries"
            )
        if negative_keys is not None:
            check_rank("negative_keys", negative_keys, 3 if self.negative_mode == "paired" else 2)
        return info_nce(
            query,
            positive_key,
            negative_keys=negative_keys,
            temperature=self.temperature,
            reduction=self.reduction,
            normalize=True,
        )
