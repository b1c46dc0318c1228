"""Images that hold several smaller ones side by side, and what they hold."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["decode", "mosaic"]


def mosaic(parts: Tensor, tiles: int) -> Tensor:
    """Lay every ``tiles²`` parts that follow each other into one image, row by row.

    Args:
        parts: The parts of one image after those of another. (n · tiles², channels, h, w)
        tiles: Parts beside each other, and above each other.

    Returns:
        (n, channels, tiles · h, tiles · w)

    Example:
        >>> import torch
        >>> from mim4dd.distill.training.tiles import mosaic
        >>> mosaic(torch.arange(4.0).view(4, 1, 1, 1), tiles=2)
        tensor([[[[0., 1.],
                  [2., 3.]]]])
    """
    grid = parts.unflatten(0, (-1, tiles, tiles))  # (n, rows, columns, channels, h, w)
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def decode(images: Tensor, tiles: int) -> Tensor:
    """Cut images into ``tiles²`` parts, row by row, each enlarged bilinearly to the full size.

    Args:
        images: Images, as :func:`mosaic` makes them. (n, channels, H, W)
        tiles: Parts beside each other, and above each other; 1 leaves the images as they are.

    Returns:
        The parts of one image after those of another. (n · tiles², channels, H, W)

    Raises:
        ValueError: If height or width is no multiple of ``tiles``.

    Example:
        >>> import torch
        >>> from mim4dd.distill.training.tiles import decode
        >>> decode(torch.rand(3, 1, 8, 8), tiles=2).shape
        torch.Size([12, 1, 8, 8])

    References:
        Kim et al. Dataset Condensation via Efficient Synthetic-Data Parameterization (IDC).
        arXiv:2205.14959.
    """
    if tiles == 1:
        return images
    height, width = images.shape[2:]
    if height % tiles or width % tiles:
        raise ValueError(
            f"tiles must divide the height and width of the images, {height} and {width}, "
            f"got {tiles}"
        )
    shape = (tiles, height // tiles)
    grid = images.unflatten(3, (tiles, width // tiles)).unflatten(2, shape)
    parts = grid.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    return F.interpolate(parts, size=(height, width), mode="bilinear", align_corners=False)
