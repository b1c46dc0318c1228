"""InfoNCE and info_nce of info-nce-pytorch 0.1.4."""

import typing

import torch
from torch import nn

from mim4dd import _checks
from mim4dd.ops.info_nce import info_nce as _info_nce

__all__ = ["InfoNCE", "info_nce"]

_NegativeMode = typing.Literal["unpaired", "paired"]


def info_nce(
    query: torch.Tensor,  # (N, D)
    positive_key: torch.Tensor,  # (N, D)
    negative_keys: torch.Tensor | None = None,  # (M, D) or (N, M, D)
    temperature: float = 0.1,
    reduction: _checks.Reduction = "mean",
    negative_mode: _NegativeMode = "unpaired",
) -> torch.Tensor:
    """``info_nce.info_nce``: cosine logits, one positive key per query.

    Args:
        query: Queries, of any length. (N, D)
        positive_key: The key of each. (N, D)
        negative_keys: What a query is told apart from; by default the keys of the others.
        temperature: Softmax temperature τ > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        negative_mode: Whether queries share their ``negative_keys`` (``"unpaired"``, (M, D)) or
            each has its own (``"paired"``, (N, M, D)).

    Returns:
        Loss in nats, () or, for ``reduction="none"``, (N,).

    Raises:
        ValueError: On shapes or options that do not fit.
        TypeError: On dtypes that differ.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.info_nce_pytorch import info_nce
        >>> info_nce(3 * torch.eye(3), 5 * torch.eye(3), temperature=1.0)
        tensor(0.5514)
    """
    _checks.check_choice("negative_mode", negative_mode, ("unpaired", "paired"))
    _checks.check_rank("query", query, 2)
    _checks.check_rank("positive_key", positive_key, 2)
    if len(query) != len(positive_key):
        raise ValueError(
            "positive_key must hold one key per query, "
            f"got {len(positive_key)} for {len(query)} queries"
        )
    if negative_keys is not None:
        rank = 3 if negative_mode == "paired" else 2
        _checks.check_rank("negative_keys", negative_keys, rank)
    return _info_nce(
        query,
        positive_key,
        negative_keys=negative_keys,
        temperature=temperature,
        reduction=reduction,
        normalize=True,
    )


class InfoNCE(nn.Module):
    """``info_nce.InfoNCE``: :func:`info_nce` as a module.

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
        reduction: _checks.Reduction = "mean",
        negative_mode: _NegativeMode = "unpaired",
    ) -> None:
        super().__init__()
        _checks.check_choice("reduction", reduction, ("mean", "sum", "none"))
        _checks.check_choice("negative_mode", negative_mode, ("unpaired", "paired"))
        self.temperature = temperature
        self.reduction: _checks.Reduction = reduction
        self.negative_mode: _NegativeMode = negative_mode

    def forward(
        self,
        query: torch.Tensor,  # (N, D)
        positive_key: torch.Tensor,  # (N, D)
        negative_keys: torch.Tensor | None = None,  # (M, D) or (N, M, D)
    ) -> torch.Tensor:
        """The loss; without ``negative_keys`` those of a query are the keys of the others."""
        return info_nce(
            query,
            positive_key,
            negative_keys,
            temperature=self.temperature,
            reduction=self.reduction,
            negative_mode=self.negative_mode,
        )
