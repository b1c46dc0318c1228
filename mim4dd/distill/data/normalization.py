"""From pixels to what networks are trained on, and back for pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mim4dd.distill.runtime.memory import available_memory

__all__ = ["Normalization", "fit_zca", "fixed_normalization", "standardize"]


@dataclass(frozen=True)
class Normalization:
    """An invertible affine map of whole images or rows: x ↦ (x − mean) · whiten.

    ``whiten`` scales each channel (channels, 1, 1) or column (D,) for standardisation, or is a
    matrix over all pixels and channels (D, D) for ZCA; ``restore`` undoes it.
    """

    mean: Tensor  # (channels, 1, 1), or (D,) for rows and for ZCA
    whiten: Tensor
    restore: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise pixels (N, channels, H, W), or features (N, D)."""
        if self.whiten.dim() == 2:
            return ((images.flatten(1) - self.mean) @ self.whiten).view_as(images)
        return (images - self.mean) * self.whiten

    def inverse(self, images: Tensor) -> Tensor:
        """From normalised to pixels (N, channels, H, W), or to features (N, D)."""
        if self.whiten.dim() == 2:
            return (images.flatten(1) @ self.restore + self.mean).view_as(images)
        return images * self.restore + self.mean

    def clip(self, images: Tensor) -> Tensor:
        """Normalised images with every pixel below 0 or above 1 set to that. (N, channels, H, W)"""
        if self.whiten.dim() == 2:
            return self(self.inverse(images).clamp(0, 1))
        low, high = ((pixel - self.mean) * self.whiten for pixel in (0, 1))
        return images.clamp(low, high)

    def float(self) -> "Normalization":
        """The same map in float32."""
        return Normalization(self.mean.float(), self.whiten.float(), self.restore.float())

    def to(self, device: torch.device | str) -> "Normalization":
        """The same map on another device."""
        return Normalization(self.mean.to(device), self.whiten.to(device), self.restore.to(device))


def standardize(images: Tensor) -> Normalization:
    """Zero mean and unit deviation of every channel (N, channels, H, W), or column (N, D).

    Raises:
        ValueError: If one does not vary.
    """
    kind = "channel" if images.dim() == 4 else "column"
    over = (0, 2, 3) if kind == "channel" else (0,)
    # By their ends: of a constant that float32 cannot hold, the deviation is not quite 0.
    constant = torch.where(images.amax(over) == images.amin(over))[0].tolist()
    if constant:
        raise ValueError(
            f"images must vary in every {kind} to be standardised, {kind} {constant} does not"
        )
    return fixed_normalization(images.mean(over), images.std(over), kind == "channel")


def fixed_normalization(mean: Tensor, std: Tensor, of_images: bool = True) -> Normalization:
    """The map to zero mean and unit deviation of channels, or columns, that have these. (C,)"""
    if of_images:
        mean, std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
    return Normalization(mean, 1 / std, std)


# Added to the variances, as MTT does.
_ZCA_EPS = 0.1
# Measured 42 at D = 1500 and 38 at 3072: the decomposition is in float64, and has a workspace.
_BYTES_PER_ENTRY = 48


def fit_zca(images: Tensor) -> Normalization:
    """ZCA whitening over ``images``, with MTT's regularisation.

    Raises:
        ValueError: If the matrices over all pixels and channels do not fit into memory.
    """
    _require_memory(images)
    pixels = images.flatten(1)
    mean = pixels.mean(0)
    centred = pixels - mean
    covariance = centred.T @ centred / (len(pixels) - 1)
    variances, directions = torch.linalg.eigh(covariance.double())
    deviations = (variances.clamp(min=0) + _ZCA_EPS).sqrt()
    whiten = directions / deviations @ directions.T
    restore = directions * deviations @ directions.T
    return Normalization(mean, whiten.to(images.dtype), restore.to(images.dtype))


def _require_memory(images: Tensor) -> None:
    """Require memory for the decomposition of the covariance and a centred copy of the images."""
    features = images[0].numel()
    needed = _BYTES_PER_ENTRY * features**2 + 4 * images.numel()
    available = available_memory(images.device)
    if available is not None and needed > available:
        raise ValueError(
            f"zca must be False for images of {features} pixels and channels here: its matrix of "
            f"{features} × {features} takes {_gibibytes(4 * features**2)}, fitting it "
            f"{_gibibytes(needed)}, and {_gibibytes(available)} are available"
        )


def _gibibytes(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"
