"""ClipLoss of open_clip 3.3."""

import torch
import torch.nn.functional as F
from torch import nn

from mim4dd.ops.clip_loss import clip_loss as _clip_loss

__all__ = ["ClipLoss"]


class ClipLoss(nn.Module):
    """``open_clip.ClipLoss`` of one process: the mean of both directions.

    The loss is computed without the logits. Its methods are there for subclasses, such as CoCa's
    and the distilling one: what overrides them is called by ``forward``, as in open_clip.

    Args:
        local_loss: Of the distributed loss; without effect in one process.
        gather_with_grad: Likewise.
        cache_labels: Keep what ``get_ground_truth`` returns.
        rank: Likewise of the distributed loss.
        world_size: 1.
        use_horovod: Likewise of the distributed loss.

    Raises:
        ValueError: For more than one process.

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
        if world_size != 1:
            raise ValueError(
                f"world_size must be 1, got {world_size}: features are not gathered across "
                "processes here; use open_clip.ClipLoss for that"
            )
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
        loss = self._of_logits(*arguments) if self._is_overridden() else _fused(*arguments)
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
        # Not by name: a get_logits of one's own need not take a bias.
        bias = {} if logit_bias is None else {"logit_bias": logit_bias}
        both = self.get_logits(image_features, text_features, logit_scale, **bias)
        labels = self.get_ground_truth(image_features.device, both[0].shape[0])
        per_image, per_text = (F.cross_entropy(logits, labels) for logits in both)
        return (per_image + per_text) / 2


def _fused(
    image_features: torch.Tensor,  # (N, D)
    text_features: torch.Tensor,  # (N, D)
    logit_scale: torch.Tensor | float,  # () or (1,)
    logit_bias: torch.Tensor | float | None,  # () or (1,)
) -> torch.Tensor:
    loss = _clip_loss(image_features, text_features, logit_scale=logit_scale)
    if isinstance(logit_bias, torch.Tensor):
        # A softmax does not see a constant. A gradient of 0 instead of none, as in open_clip:
        # DistributedDataParallel waits for one.
        loss = loss + 0 * logit_bias.sum()
    return loss
