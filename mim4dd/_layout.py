"""The two memory layouts of maps (B, C, H, W), planes and channels-last, as PyTorch sees them."""

import torch
from torch import Tensor

__all__: list[str] = []


def is_channels_last(maps: Tensor) -> bool:
    """Whether PyTorch's layers take maps for channels-last, and so return channels-last ones.

    By strides alone, dense or not; where sizes of 1 fit both layouts, the strides say which is
    meant, and else it is planes. ``Tensor.is_contiguous`` says yes to both there.
    """
    if maps.dim() != 4:
        return False
    _, channels, height, width = maps.shape
    of_image, of_channel, of_row, of_pixel = maps.stride()
    return (
        of_pixel >= of_channel * channels > 0
        and of_row >= of_pixel * width
        and of_image >= of_row * height > 0
        and of_row * height != of_channel  # one number is no channels-last map
        and maps.numel() > 0
    )


def planes(maps: Tensor) -> Tensor:
    """A copy, with strides that no other layout has where sizes of 1 allow for several."""
    return maps.clone(memory_format=torch.contiguous_format)


def channels_last(maps: Tensor) -> Tensor:
    """A copy, channels-last by its strides even where sizes of 1 allow for others."""
    return maps.clone(memory_format=torch.channels_last)


def laid_out_as(like: Tensor, maps: Tensor) -> Tensor:
    """``maps`` in the layout that PyTorch's layers give what they make of ``like``."""
    if is_channels_last(like) == is_channels_last(maps):
        return maps
    return channels_last(maps) if is_channels_last(like) else planes(maps)
