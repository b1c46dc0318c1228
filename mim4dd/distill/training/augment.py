"""Differentiable Siamese Augmentation (DSA), replayable from a generator."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mim4dd._layout import is_channels_last, planes

__all__ = ["Augmentation", "ComposedAugmentation", "augmentation", "cropped"]


class Augmentation:
    """Augment a batch by one transformation family, drawn for the batch, with a draw per image.

    A call draws everything random from the generator it is given, so the same generator state gives
    the same augmentation, bit for bit: :func:`mim4dd.unroll_sgd` relies on it.

    Args:
        strategy: Families to draw from, joined by ``_``: ``color``, ``crop``, ``cutout``, ``flip``,
            ``scale``, ``rotate``. The field's default for photographs is all of them; for digits
            leave out ``flip``.
        siamese: All images of a batch share one draw. The same generator state then transforms
            batches of different sizes alike, as a real and a synthetic one that are to be matched.

    Raises:
        ValueError: If a family is unknown or none is named.

    Example:
        >>> import torch
        >>> from mim4dd.distill.training.augment import Augmentation
        >>> images = torch.rand(4, 3, 32, 32)
        >>> Augmentation("crop_scale_rotate")(images, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 3, 32, 32])

    References:
        Zhao, Bilen. Dataset Condensation with Differentiable Siamese Augmentation.
        arXiv:2102.08259; strengths as in its code and MTT's.
    """

    def __init__(
        self, strategy: str = "color_crop_cutout_flip_scale_rotate", siamese: bool = False
    ) -> None:
        self.families = strategy.split("_")
        self.siamese = siamese
        unknown = [family for family in self.families if family not in FAMILIES]
        if unknown:
            raise ValueError(
                f"strategy must join some of {', '.join(FAMILIES)} by '_', got {strategy!r}"
            )

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented images, contiguous; differentiable in ``images``. (B, C, H, W)

        Raises:
            ValueError: If they are not images but rows.
        """
        if images.dim() != 4:
            raise ValueError(
                f"augmentation takes images (B, C, H, W), got {tuple(images.shape)}; "
                'set the strategies of experts, students and evaluation to "none" for rows'
            )
        families = self._drawn(generator)
        draws = _Draws(images, generator, self.siamese)
        for family in families:
            for transform in FAMILIES[family]:
                images = transform(images, draws)
        return planes(images) if is_channels_last(images) else images.contiguous()

    def _drawn(self, generator: torch.Generator) -> list[str]:
        """The families that a batch is transformed by, in their order."""
        draw = torch.randint(len(self.families), (), generator=generator, device=generator.device)
        return [self.families[int(draw)]]


class ComposedAugmentation(Augmentation):
    """Augment a batch by all families of the strategy, one after another in its order.

    Args and errors as of :class:`Augmentation`.

    Example:
        >>> import torch
        >>> from mim4dd.distill.training.augment import ComposedAugmentation
        >>> images = torch.rand(4, 3, 32, 32)
        >>> augment = ComposedAugmentation("color_crop_cutout", siamese=True)
        >>> augment(images, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 3, 32, 32])

    References:
        Kim et al. Dataset Condensation via Efficient Synthetic-Data Parameterization (IDC).
        arXiv:2205.14959, and its code.
    """

    def _drawn(self, generator: torch.Generator) -> list[str]:
        return self.families


def cropped(images: Tensor, least_area: float, generator: torch.Generator) -> Tensor:
    """A square of every image, anywhere in it, enlarged to the image's size. (B, C, H, W)

    Its share of the area is uniform between ``least_area`` and 1.

    Example:
        >>> import torch
        >>> from mim4dd.distill.training.augment import cropped
        >>> cropped(torch.rand(4, 3, 32, 32), 0.08, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 3, 32, 32])
    """
    draws = _Draws(images, generator, shared=False)
    area, right, down = (draws.uniform().flatten() for _ in range(3))
    side = (least_area + (1 - least_area) * area).sqrt()
    shift_x, shift_y = ((1 - side) * (2 * part - 1) for part in (right, down))
    zero = torch.zeros_like(side)
    maps = torch.stack([side, zero, shift_x, zero, side, shift_y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def augmentation(strategy: str) -> Augmentation | None:
    """:class:`Augmentation` with a strategy as options name it, or None for ``"none"``."""
    return None if strategy == "none" else Augmentation(strategy)


class _Draws:
    """Random numbers for the images of a batch: one for each, or one that all of them share."""

    def __init__(self, images: Tensor, generator: torch.Generator, shared: bool) -> None:
        self.size = len(images)
        self.drawn = 1 if shared else self.size
        self.dtype, self.device = images.dtype, images.device
        self.generator = generator

    def uniform(self) -> Tensor:
        """One number in [0, 1) per image, shaped to scale it. (B, 1, 1, 1)"""
        drawn = torch.rand(
            (self.drawn, 1, 1, 1), generator=self.generator, dtype=self.dtype, device=self.device
        )
        return drawn.expand(self.size, 1, 1, 1)

    def integers(self, low: int, high: int) -> Tensor:
        """One integer in [low, high) per image, shaped to meet rows or columns. (B, 1)"""
        shape = (self.drawn, 1)
        drawn = torch.randint(low, high, shape, generator=self.generator, device=self.device)
        return drawn.expand(self.size, 1)


def _brightness(images: Tensor, draws: _Draws) -> Tensor:
    return images + (draws.uniform() - 0.5)


def _saturation(images: Tensor, draws: _Draws) -> Tensor:
    grey = images.mean(1, keepdim=True)
    return (images - grey) * (2 * draws.uniform()) + grey


def _contrast(images: Tensor, draws: _Draws) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (0.5 + draws.uniform()) + mean


def _crop(images: Tensor, draws: _Draws) -> Tensor:
    """Shift by up to an eighth of the size, filling with zeros."""
    height, width = images.shape[2:]
    pad_y, pad_x = int(height / 8 + 0.5), int(width / 8 + 0.5)
    rows = torch.arange(height, device=images.device) + draws.integers(0, 2 * pad_y + 1)
    columns = torch.arange(width, device=images.device) + draws.integers(0, 2 * pad_x + 1)
    padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y))
    batch = torch.arange(images.shape[0], device=images.device)[:, None, None]
    # Indexing around the slice puts the channels last: (B, H, W, C).
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(images: Tensor, draws: _Draws) -> Tensor:
    """Blank a box of half the height and width, centred anywhere."""
    height, width = images.shape[2:]
    inside = []
    for size in (height, width):
        box = int(size / 2 + 0.5)
        centre = draws.integers(0, size + (1 - box % 2))
        offset = torch.arange(size, device=images.device) - centre + box // 2
        inside.append((offset >= 0) & (offset < box))
    rows, columns = inside
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _flip(images: Tensor, draws: _Draws) -> Tensor:
    return torch.where(draws.uniform() < 0.5, images.flip(3), images)


def _scale(images: Tensor, draws: _Draws) -> Tensor:
    """Zoom rows and columns by independent factors in [1/1.2, 1.2)."""
    low, high = 1 / 1.2, 1.2
    zoom_x = draws.uniform().flatten() * (high - low) + low
    zoom_y = draws.uniform().flatten() * (high - low) + low
    zero = torch.zeros_like(zoom_x)
    return _warp(images, (zoom_x, zero, zero, zoom_y))


def _rotate(images: Tensor, draws: _Draws) -> Tensor:
    """Turn by up to 15 degrees."""
    angle = (draws.uniform().flatten() - 0.5) * (2 * math.radians(15))
    return _warp(images, (angle.cos(), angle.sin().neg(), angle.sin(), angle.cos()))


def _warp(images: Tensor, matrix: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Resample every image (B, ...) under its linear map ((a, b), (c, d))."""
    a, b, c, d = matrix
    zero = torch.zeros_like(a)
    maps = torch.stack([a, b, zero, c, d, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, align_corners=True)


FAMILIES: dict[str, tuple[Callable[[Tensor, _Draws], Tensor], ...]] = {
    "color": (_brightness, _saturation, _contrast),
    "crop": (_crop,),
    "cutout": (_cutout,),
    "flip": (_flip,),
    "scale": (_scale,),
    "rotate": (_rotate,),
}
