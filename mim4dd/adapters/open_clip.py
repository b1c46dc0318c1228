"""ClipLoss of open_clip 3.3."""

from torch import Tensor, nn

from mim4dd.ops.clip_loss import clip_loss

__all__ = ["ClipLoss"]


class ClipLoss(nn.Module):
    """``open_clip.ClipLoss`` of one process: the mean of both directions.

    Args:
        local_loss: Of the distributed loss; without effect in one process.
        gather_with_grad: Likewise.
        cache_labels: There are no labels to cache.
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

    def forward(
        self,
        image_features: Tensor,  # (N, D)
        text_features: Tensor,  # (N, D)
        logit_scale: Tensor | float,  # () or (1,)
        logit_bias: Tensor | float | None = None,  # () or (1,)
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss, (), or ``{"contrastive_loss": loss}``; features are used as they are."""
        if isinstance(logit_scale, Tensor):
            logit_scale = logit_scale.squeeze()
        loss = clip_loss(image_features, text_features, logit_scale=logit_scale)
        if isinstance(logit_bias, Tensor):
            # A softmax does not see a constant. A gradient of 0 instead of none, as in open_clip:
            # DistributedDataParallel waits for one.
            loss = loss + 0 * logit_bias.sum()
        return {"contrastive_loss": loss} if output_dict else loss
