"""From pixels to what networks are trained on, and back for pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Normalization", "fit_zca", "standardize"]


@dataclass(frozen=True)
class Normalization:
    """An invertible affine map of whole images: x ↦ (x − mean) · whiten.

    ``whiten`` scales each channel (channels,) for standardisation, or is a matrix over all pixels
    and channels (D, D) for ZCA; ``restore`` undoes it.
    """

    mean: Tensor  # (channels, 1, 1), or (D,) for ZCA
    whiten: Tensor
    restore: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Pixels to normalised images. (N, channels, H, W)"""
        if self.whiten.dim() == 2:
            return ((images.flatten(1) - self.mean) @ self.whiten).view_as(images)
        return (images - self.mean) * self.whiten

    def inverse(self, images: Tensor) -> Tensor:
        """Normalised images to pixels. (N, channels, H, W)"""
        if self.whiten.dim() == 2:
            return (images.flatten(1) @ self.restore + self.mean).view_as(images)
        return images * self.restore + self.mean

    def to(self, device: torch.device | str) -> "Normalization":
        """The same map on another device."""
        return Normalization(self.mean.to(device), self.whiten.to(device), self.restore.to(device))


def standardize(images: Tensor) -> Normalization:
    """Zero mean and unit deviation of every channel over ``images``."""
    mean = images.mean((0, 2, 3)).view(-1, 1, 1)
    std = images.std((0, 2, 3)).view(-1, 1, 1)
    if not (std > 0).all():
        raise ValueError("images must vary in every channel to be standardised")
    return Normalization(mean, 1 / std, std)


def fit_zca(images: Tensor) -> Normalization:
    """ZCA whitening over ``images``, with MTT's regularisation, by kornia."""
    from kornia.enhance import ZCAWhitening

    zca = ZCAWhitening(eps=0.1, compute_inv=True).fit(images)
    return Normalization(zca.mean_vector.flatten(), zca.transform_matrix, zca.transform_inv)
