"""The contrastive losses as modules, with the mutual information they certify beside them."""

import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd import reference
from mim4dd._checks import Reduction, check_choice, check_positive
from mim4dd._transforms import untraced
from mim4dd.ops.contrastive import evaluate
from mim4dd.ops.contrastive.inputs import (
    Features,
    Positives,
    Sides,
    as_bias,
    as_logit_scale,
    as_sides,
    by_label,
    excluded_keys,
    positives_of,
)
from mim4dd.ops.contrastive.ranks import Group
from mim4dd.reference import IGNORE, Critic, Kind
from mim4dd.temperature import LearnedTemperature

__all__ = ["InfoNCELoss", "MIM4DDLoss", "NCELoss", "SupConLoss"]

Temperature = float | nn.Parameter | LearnedTemperature
Kept = TypeVar("Kept")

# Pixels per side that feature maps are pooled to. One would throw away what instance norm leaves:
# it fixes mean and variance of every map, so where a map is active says more than how much.
_POOLED = 4


_QUERIES_ARE_KEYS = (
    "mi_lower_bound needs keys that are drawn independently of the queries, and the last call had "
    "exclude_self or self_index: it certifies nothing"
)
_OTHER_RANKS = (
    "mi_lower_bound is formed of the keys of one process, and the last call had a group: by index "
    "it is log M, with M keys on all ranks, minus the mean loss"
)


class _ContrastiveLoss(nn.Module):
    """Options and results that the losses share."""

    def __init__(
        self,
        temperature: Temperature = 0.1,
        reduction: Reduction = "mean",
        normalize: bool = False,
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.temperature = temperature
        check_positive("temperature", self._temperature())
        self.reduction: Reduction = reduction
        self.normalize = normalize
        self._loss_per_query: Tensor | None = None
        self._certificate: tuple[Tensor, Positives, int] | None = None
        self._no_bound = ""

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        temperature = float(torch.as_tensor(self._temperature()).detach())
        return (
            f"temperature={temperature:g}, reduction={self.reduction!r}, normalize={self.normalize}"
        )

    def _temperature(self) -> Tensor | float:
        temperature = self.temperature
        return temperature() if isinstance(temperature, LearnedTemperature) else temperature

    def _evaluate(
        self,
        sides: Sides,
        positives: Positives,
        kind: Kind,
        excluded: Tensor | None,  # (N, 1) int64
        bias: Tensor | float | None = None,
    ) -> Tensor:
        """The reduced loss, with the results that stand beside it stored."""
        logit_scale = as_logit_scale(sides, self._temperature(), None)
        critic = Critic(kind, normalize=self.normalize)
        loss, contrast = evaluate(
            sides,
            positives,
            logit_scale,
            as_bias(sides, bias),
            critic,
            self.reduction,
            None,
            excluded,
        )
        self._loss_per_query = untraced(sides.shaped(contrast.loss))
        self._certificate, self._no_bound = None, _why_no_bound(sides, excluded)
        if self._no_bound:
            return sides.shaped(loss)
        if kind != Kind.OUT:  # the bound needs InfoNCE of the pairs, with marginal negatives
            with torch.no_grad():
                critic = critic._replace(kind=Kind.OUT)
                _, contrast = evaluate(
                    sides, positives, logit_scale, None, critic, "none", None, excluded
                )
        self._certificate = _certificate(sides.shaped(contrast.loss), positives, sides.num_keys)
        return sides.shaped(loss)

    @property
    def loss_per_query(self) -> Tensor:
        """Of the last call, in nats: (N,), or (L, N) for layers."""
        return _of_last_call("loss_per_query", self._loss_per_query)

    @property
    def mi_lower_bound(self) -> Tensor:
        """Of the last call, in nats: (), or (L,) for layers. Computed when it is asked for.

        Raises:
            RuntimeError: Before the first call, and after one whose queries are among the keys, or
                whose keys are on several ranks.
        """
        if self._no_bound:
            raise RuntimeError(self._no_bound)
        certificate = _of_last_call("mi_lower_bound", self._certificate)
        losses, (labels, key_labels), num_keys = certificate
        if key_labels is not None:
            return reference.mi_lower_bound(losses, labels, key_labels)
        # By index every other key is a marginal draw, also one that is no query's positive.
        return math.log(num_keys) - losses[..., labels != IGNORE].mean(-1)


def _why_no_bound(sides: Sides, excluded: Tensor | None) -> str:
    """Why a call certifies nothing; empty where it does."""
    if excluded is not None:
        return _QUERIES_ARE_KEYS
    return "" if sides.across is None else _OTHER_RANKS


def _certificate(
    losses: Tensor, positives: Positives, num_keys: int
) -> tuple[Tensor, Positives, int] | None:
    """What the bound is made of, if it outlives the transforms that are going on."""
    # Copies: the caller may fill the same labels anew before the bound is asked for.
    kept = [None if each is None else untraced(each.clone()) for each in positives]
    kept_losses, (labels, key_labels) = untraced(losses), kept
    lost = labels is None or (key_labels is None and positives.key_labels is not None)
    if kept_losses is None or labels is None or lost:
        return None
    return kept_losses, Positives(labels, key_labels), num_keys


def _of_last_call(name: str, value: Kept | None) -> Kept:
    if value is None:
        raise RuntimeError(
            f"{name} is that of the last call: call the loss first, and not within torch.vmap, "
            "from which no value gets out"
        )
    return value


class InfoNCELoss(_ContrastiveLoss):
    """:func:`mim4dd.info_nce` as a module.

    After a call, ``loss_per_query`` (N,) holds the loss of every query and ``mi_lower_bound`` ()
    log M minus their mean, each class counted by its share of the keys; in nats, both detached.
    The bound is valid for keys drawn independently; between classes alone it can reach log C, with
    C classes: read it beside that (docs/math.md, "The bound"). There is none where the queries are
    among the keys (``exclude_self``, ``self_index``).

    Args:
        temperature: Softmax temperature τ > 0. An ``nn.Parameter`` is learned as it is;
            :class:`mim4dd.LearnedTemperature` so that it stays positive.
        reduction: ``"mean"`` or ``"sum"`` over the queries that have a positive, or ``"none"``.
        normalize: Scale every row of both sides to unit length first.

    Example:
        >>> import torch, mim4dd
        >>> loss = mim4dd.InfoNCELoss(temperature=0.5)
        >>> loss(torch.eye(4), torch.eye(4))
        tensor(0.3408)
        >>> loss.mi_lower_bound
        tensor(1.0455)
    """

    def forward(
        self,
        query: Features,  # (N, D)
        key: Features,  # (M, D)
        *,
        positive_index: Tensor | None = None,  # (N,)
        labels: Tensor | None = None,  # (N,)
        key_labels: Tensor | None = None,  # (M,)
        exclude_self: bool = False,
        self_index: Tensor | None = None,  # (N,)
        group: Group | None = None,
    ) -> Tensor:
        """The reduced loss; arguments as in :func:`mim4dd.info_nce`."""
        sides = as_sides(query, key, group)
        positives = positives_of(sides, positive_index, labels, key_labels)
        excluded = excluded_keys(sides, exclude_self, self_index, None)
        return self._evaluate(sides, positives, Kind.OUT, excluded)


class SupConLoss(_ContrastiveLoss):
    """:func:`mim4dd.sup_con` as a module.

    After a call, ``loss_per_query`` (N,) and ``mi_lower_bound`` () are as in
    :class:`mim4dd.InfoNCELoss`; the bound is InfoNCE's whichever the variant.

    Args:
        temperature: Softmax temperature τ > 0. An ``nn.Parameter`` is learned as it is;
            :class:`mim4dd.LearnedTemperature` so that it stays positive.
        reduction: ``"mean"`` or ``"sum"`` over the queries that have a positive, or ``"none"``.
        normalize: Scale every row of both sides to unit length first.
        variant: Whether the mean over the positives stands outside the logarithm or inside.

    Example:
        >>> import torch, mim4dd
        >>> labels = torch.tensor([0, 0, 1])
        >>> mim4dd.SupConLoss(temperature=1.0)(torch.eye(3), torch.eye(3), labels, labels)
        tensor(0.8848)
    """

    def __init__(
        self,
        temperature: Temperature = 0.1,
        reduction: Reduction = "mean",
        normalize: bool = False,
        variant: Literal["out", "in"] = "out",
    ) -> None:
        super().__init__(temperature, reduction, normalize)
        check_choice("variant", variant, ("out", "in"))
        self.variant: Literal["out", "in"] = variant

    def forward(
        self,
        query: Features,  # (N, D)
        key: Features,  # (M, D)
        labels: Tensor,  # (N,)
        key_labels: Tensor,  # (M,)
        *,
        exclude_self: bool = False,
        self_index: Tensor | None = None,  # (N,)
        group: Group | None = None,
    ) -> Tensor:
        """The reduced loss; arguments as in :func:`mim4dd.sup_con`."""
        sides = as_sides(query, key, group)
        positives = by_label(sides, labels, key_labels)
        excluded = excluded_keys(sides, exclude_self, self_index, None)
        return self._evaluate(sides, positives, Kind[self.variant.upper()], excluded)


class NCELoss(_ContrastiveLoss):
    """:func:`mim4dd.nce` as a module: the binary critic of CRD and CMIM.

    After a call, ``loss_per_query`` (N,) and ``mi_lower_bound`` () are as in
    :class:`mim4dd.InfoNCELoss`; the bound is InfoNCE's on the same pairs, whose negatives are
    marginal, as a valid bound needs.

    Args:
        temperature: Temperature τ > 0 of the logits. An ``nn.Parameter`` is learned as it is;
            :class:`mim4dd.LearnedTemperature` so that it stays positive.
        reduction: ``"mean"`` or ``"sum"`` over the queries that have a positive, or ``"none"``.
        normalize: Scale every row of both sides to unit length first.
        bias: Added to every logit, as in :func:`mim4dd.nce`; an ``nn.Parameter`` is learned.

    Example:
        >>> import torch, mim4dd
        >>> labels = torch.arange(3)
        >>> mim4dd.NCELoss(temperature=1.0)(torch.eye(3), torch.eye(3), labels, labels)
        tensor(2.0519)
    """

    def __init__(
        self,
        temperature: Temperature = 0.1,
        reduction: Reduction = "mean",
        normalize: bool = False,
        bias: float | nn.Parameter | None = None,
    ) -> None:
        super().__init__(temperature, reduction, normalize)
        self.bias = bias

    def forward(
        self,
        query: Features,  # (N, D)
        key: Features,  # (M, D)
        labels: Tensor,  # (N,)
        key_labels: Tensor,  # (M,)
        *,
        exclude_self: bool = False,
        self_index: Tensor | None = None,  # (N,)
        group: Group | None = None,
    ) -> Tensor:
        """The reduced loss; arguments as in :func:`mim4dd.nce`."""
        sides = as_sides(query, key, group)
        positives = by_label(sides, labels, key_labels)
        excluded = excluded_keys(sides, exclude_self, self_index, None)
        return self._evaluate(sides, positives, Kind.NCE, excluded, self.bias)


class MIM4DDLoss(nn.Module):
    r"""Mutual information between the features of synthetic and of real samples, over K layers.

    .. math:: \sum_{k=1}^{K} \gamma^{K-k}\, \ell(a_k^{syn}, a_k^{real})

    where samples of one class attract and all others repel. Feature maps (N, C, H, W) are averaged
    down to at most 4 × 4 pixels; features of any shape are then flattened, projected where a
    projection is given, scaled to unit length, and compared by the critic.

    After a call, ``loss_per_layer`` (K,) and ``mi_lower_bound`` (K,), in nats, are there, detached.
    The bound uses marginal negatives whatever the critic, and is valid for real samples drawn
    independently; pairs that share only a class carry at most log C nats, so read it beside that
    (docs/math.md, "The bound").

    Args:
        temperature: Temperature τ > 0 of the logits. An ``nn.Parameter`` is learned as it is;
            :class:`mim4dd.LearnedTemperature` so that it stays positive.
        critic: ``"info_nce"`` or ``"nce"``.
        layer_decay: γ in (0, 1]: each layer counts γ times the one after it.
        projection: One module per layer, applied to the pooled and flattened features of both
            sides, or None. Its parameters are trained or frozen by the caller, as any.

    Example:
        >>> import torch, mim4dd
        >>> features = [torch.eye(4), torch.eye(4).reshape(4, 1, 2, 2)]
        >>> labels = torch.arange(4)
        >>> loss = mim4dd.MIM4DDLoss(temperature=0.5)
        >>> loss(features, features, labels, labels)
        tensor(0.6815)
        >>> loss.mi_lower_bound
        tensor([1.0455, 1.0455])

    References:
        Shang, Yuan, Yan. MIM4DD: Mutual Information Maximization for Dataset Distillation.
        NeurIPS 2023, arXiv:2312.16627. docs/math.md says what it leaves open and what is taken.
    """

    def __init__(
        self,
        temperature: Temperature = 0.1,
        critic: Literal["info_nce", "nce"] = "info_nce",
        layer_decay: float = 1.0,
        projection: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_choice("critic", critic, ("info_nce", "nce"))
        if not 0 < layer_decay <= 1:
            raise ValueError(f"layer_decay must lie in (0, 1], got {layer_decay}")
        loss = InfoNCELoss if critic == "info_nce" else NCELoss
        self.critic = loss(temperature=temperature, normalize=True)
        self.layer_decay = layer_decay
        self._loss_per_layer: Tensor | None = None
        self.projection = None if projection is None else nn.ModuleList(projection)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"layer_decay={self.layer_decay:g}"

    def forward(
        self,
        features_syn: Sequence[Tensor],  # K of (N, ...)
        features_real: Sequence[Tensor],  # K of (M, ...)
        labels_syn: Tensor,  # (N,)
        labels_real: Tensor,  # (M,)
    ) -> Tensor:
        """The weighted sum over the layers, a scalar in nats."""
        num_layers = len(features_syn)
        if num_layers == 0 or len(features_real) != num_layers:
            raise ValueError(
                "features_syn and features_real must hold the same layers, at least one, "
                f"got {num_layers} and {len(features_real)}"
            )
        if self.projection is not None and len(self.projection) != num_layers:
            raise ValueError(
                f"projection must hold one module per layer, got {len(self.projection)} modules "
                f"and {num_layers} layers"
            )
        per_layer = self.critic(
            [self._embed(layer, features) for layer, features in enumerate(features_syn)],
            [self._embed(layer, features) for layer, features in enumerate(features_real)],
            labels=labels_syn,
            key_labels=labels_real,
        )
        return self._weigh(per_layer)

    @property
    def loss_per_layer(self) -> Tensor:
        """Of every layer in the last call, (K,), in nats."""
        return _of_last_call("loss_per_layer", self._loss_per_layer)

    @property
    def mi_lower_bound(self) -> Tensor:
        """Of every layer in the last call, (K,), in nats."""
        return self.critic.mi_lower_bound

    def _weigh(self, per_layer: Tensor) -> Tensor:
        """The sum over the layers, each counting γ times the one after it; keeps them apart too."""
        self._loss_per_layer = untraced(per_layer)
        exponents = torch.arange(len(per_layer) - 1, -1, -1).to(per_layer)
        decay: Tensor | float = self.layer_decay
        if torch.compiler.is_compiling():  # a number would be compiled for each value anew
            decay = torch.ones_like(exponents) * decay
        return (per_layer * decay**exponents).sum()

    def _embed(self, layer: int, features: Tensor) -> Tensor:
        """Features of one layer as rows of the contrastive space, not yet normalised."""
        rows = pooled_rows(features)
        return rows if self.projection is None else self.projection[layer](rows)


def pooled_rows(features: Tensor) -> Tensor:
    """Features of one layer, (N, ...), as rows (N, D): maps averaged to at most 4 × 4 pixels."""
    if features.dim() < 2:
        raise ValueError(
            f"features must be (N, ...) with at least 2 dimensions, got {tuple(features.shape)}"
        )
    if features.dim() == 4:
        height, width = features.shape[2:]
        features = F.adaptive_avg_pool2d(features, (min(height, _POOLED), min(width, _POOLED)))
    return features.flatten(1)
