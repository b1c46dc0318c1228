"""ClipLoss and SigLipLoss of open_clip 3.3."""

import torch
import torch.nn.functional as F
from torch import distributed, nn

from mim4dd._checks import check_choice as _check_choice
from mim4dd.adapters._processes import num_processes as _num_processes
from mim4dd.ops.clip_loss import clip_loss as _clip_loss
from mim4dd.ops.contrastive.ranks import Ranks as _Ranks
from mim4dd.ops.nce import nce as _nce

__all__ = ["ClipLoss", "SigLipLoss"]

# Pairs of a rank that have labels of their own.
_PAIRS_OF_RANK = 1 << 40


class ClipLoss(nn.Module):
    """``open_clip.ClipLoss``: the mean of both directions, over one process or all.

    The loss is computed without the logits, and over several processes no rank holds the features
    of all (:class:`mim4dd.Ranks`). Its methods are there for subclasses, such as CoCa's
    and the distilling one: what overrides them is called by ``forward``, as in open_clip.

    Args:
        local_loss: Return the mean over the rank's own pairs, not over all. Averaged over the
            ranks, as DistributedDataParallel does, the gradients are the same.
        gather_with_grad: Without effect: gradients are always those of the loss over all ranks.
        cache_labels: Keep what ``get_ground_truth`` returns.
        rank: This process's number.
        world_size: How many processes there are; above 1, all of ``torch.distributed``'s.
        use_horovod: False where there are several processes.

    Raises:
        ValueError: If ``rank`` and ``world_size`` are not those of ``torch.distributed``, for
            Horovod, and for a subclass with logits of its own in several processes.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.open_clip import ClipLoss
        >>> ClipLoss()(torch.eye(3), torch.eye(3), logit_scale=1.0)
        tensor(0.5514)
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if world_size > 1 and use_horovod:
            raise ValueError("use_horovod must be False: mim4dd supports only torch.distributed")
        _check_processes(rank, world_size)
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod
        self.prev_num_logits = 0
        self.labels: dict[torch.device, torch.Tensor] = {}

    def get_ground_truth(self, device: torch.device, num_logits: int) -> torch.Tensor:
        """Which text belongs to each image: ``arange(num_logits)``, kept with ``cache_labels``."""
        cached = self.labels.get(device)
        if cached is not None and len(cached) == num_logits:
            return cached
        labels = torch.arange(num_logits, device=device)
        if self.cache_labels:
            self.labels[device] = labels
            self.prev_num_logits = num_logits
        return labels

    def get_logits(
        self,
        image_features: torch.Tensor,  # (N, D)
        text_features: torch.Tensor,  # (N, D)
        logit_scale: torch.Tensor | float,  # () or (1,)
        logit_bias: torch.Tensor | float | None = None,  # () or (1,)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of every pair, per image and per text: two (N, N) that are stored."""
        per_image = logit_scale * image_features @ text_features.T
        per_text = logit_scale * text_features @ image_features.T
        if logit_bias is not None:
            per_image, per_text = per_image + logit_bias, per_text + logit_bias
        return per_image, per_text

    def forward(
        self,
        image_features: torch.Tensor,  # (N, D)
        text_features: torch.Tensor,  # (N, D)
        logit_scale: torch.Tensor | float,  # () or (1,)
        logit_bias: torch.Tensor | float | None = None,  # () or (1,)
        output_dict: bool = False,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """The loss, (), or ``{"contrastive_loss": loss}``; features are used as they are."""
        arguments = image_features, text_features, logit_scale, logit_bias
        if self._is_overridden():
            loss = self._of_logits(*arguments)
        else:
            loss = _fused(*arguments, self.world_size > 1, self.local_loss)
        return {"contrastive_loss": loss} if output_dict else loss

    def _is_overridden(self) -> bool:
        return any(
            getattr(getattr(self, name), "__func__", None) is not getattr(ClipLoss, name)
            for name in ("get_logits", "get_ground_truth")
        )

    def _of_logits(
        self,
        image_features: torch.Tensor,  # (N, D)
        text_features: torch.Tensor,  # (N, D)
        logit_scale: torch.Tensor | float,  # () or (1,)
        logit_bias: torch.Tensor | float | None,  # () or (1,)
    ) -> torch.Tensor:
        if self.world_size > 1:
            raise ValueError(
                "world_size must be 1 for a subclass with its own get_logits or get_ground_truth, "
                f"got {self.world_size}: mim4dd never stores the logits of several processes"
            )
        # Not by name: a get_logits of one's own need not take a bias.
        bias = {} if logit_bias is None else {"logit_bias": logit_bias}
        both = self.get_logits(image_features, text_features, logit_scale, **bias)
        labels = self.get_ground_truth(image_features.device, both[0].shape[0])
        per_image, per_text = (F.cross_entropy(logits, labels) for logits in both)
        return (per_image + per_text) / 2


class SigLipLoss(nn.Module):
    """``open_clip.SigLipLoss``: is each image of each text, or not? Over one process or all.

    The loss is computed without the logits, and over several processes no rank holds the features
    of all (:class:`mim4dd.Ranks`). Each returns the mean over its own images. Averaged over the
    ranks, as DistributedDataParallel does, the gradients are those of the mean over all images.

    Args:
        cache_labels: Without effect: no labels are stored.
        rank: This process's number.
        world_size: How many processes there are; above 1, all of ``torch.distributed``'s.
        dist_impl: ``"bidir"``, ``"shift"``, ``"reduce"`` or ``"gather"``, or None. Without effect
            but for ``"gather"``: texts travel from rank to rank, or all at once.

    Raises:
        ValueError: If ``rank`` and ``world_size`` are not those of ``torch.distributed``, or
            ``dist_impl`` is another.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.open_clip import SigLipLoss
        >>> SigLipLoss()(torch.eye(3), torch.eye(3), logit_scale=1.0, logit_bias=-1.0)
        tensor(1.3197)

    References:
        Zhai et al. Sigmoid Loss for Language Image Pre-Training. arXiv:2303.15343.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
    ) -> None:
        super().__init__()
        _check_processes(rank, world_size)
        _check_choice("dist_impl", dist_impl, (None, "bidir", "shift", "reduce", "gather"))
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl or "bidir"

    def forward(
        self,
        image_features: torch.Tensor,  # (N, D)
        text_features: torch.Tensor,  # (N, D)
        logit_scale: torch.Tensor | float,  # () or (1,)
        logit_bias: torch.Tensor | float | None,  # () or (1,)
        output_dict: bool = False,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """The loss, (), or ``{"contrastive_loss": loss}``; features are used as they are."""
        first = self.rank * _PAIRS_OF_RANK
        labels = torch.arange(first, first + len(image_features), device=image_features.device)
        loss = _nce(
            image_features,
            text_features,
            labels,
            labels,
            logit_scale=logit_scale,
            bias=0.0 if logit_bias is None else logit_bias,
            reduction="none",
            group=self._ranks(),
        ).mean()
        return {"contrastive_loss": loss} if output_dict else loss

    def _ranks(self) -> _Ranks | None:
        world = distributed.group.WORLD
        if self.world_size == 1 or world is None:
            return None
        return _Ranks(world, exchange="gather" if self.dist_impl == "gather" else "ring")


def _check_processes(rank: int, world_size: int) -> None:
    there = _num_processes()
    if world_size > 1 and (world_size, rank) != (there, there > 1 and distributed.get_rank()):
        raise ValueError(
            "world_size and rank must be 1 and 0, or those of torch.distributed, which has "
            f"{there} processes here: got {world_size} and {rank}"
        )


def _fused(
    image_features: torch.Tensor,  # (N, D)
    text_features: torch.Tensor,  # (N, D)
    logit_scale: torch.Tensor | float,  # () or (1,)
    logit_bias: torch.Tensor | float | None,  # () or (1,)
    across_ranks: bool,
    local_loss: bool,
) -> torch.Tensor:
    loss = _clip_loss(
        image_features,
        text_features,
        logit_scale=logit_scale,
        reduction="none" if across_ranks and local_loss else "mean",
        group=distributed.group.WORLD if across_ranks else None,
    ).mean()
    if isinstance(logit_bias, torch.Tensor):
        # A softmax does not see a constant. A gradient of 0 instead of none, as in open_clip:
        # DistributedDataParallel waits for one.
        loss = loss + 0 * logit_bias.sum()
    return loss
