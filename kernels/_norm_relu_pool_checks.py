"""What the launchers of norm_relu_pool refuse, in the words of the CPU's op."""

from collections.abc import Mapping, Sequence

from torch import Tensor


def require_fitting(
    input: Tensor,
    num_groups: int,
    pool: int,
    images: Mapping[str, tuple[Tensor | None, Sequence[int]]],
    numbers: Mapping[str, tuple[Tensor | None, int]],
) -> None:
    """Require images of a height and width, and numbers of a count: kernels read just as many.

    The public function has checked what it passes on; the bare op is called by others too.
    """
    shape, channels = input.shape, input.shape[1]
    if num_groups < 1 or channels % num_groups:
        raise RuntimeError(
            f"norm_relu_pool: num_groups must divide {channels} channels, got {num_groups}"
        )
    if pool < 1:
        raise RuntimeError(f"norm_relu_pool: pool must be positive, got {pool}")
    for name, (image, pixels) in images.items():
        size = *shape[:2], *pixels
        fits = image is None or (image.shape == size and image.dtype == input.dtype)
        if not fits or (image is not None and image.device != input.device):
            raise RuntimeError(
                f"norm_relu_pool: {name} must be {size} with dtype and device of input"
            )
    for name, (given, count) in numbers.items():
        if given is not None and (given.numel() != count or given.device != input.device):
            raise RuntimeError(
                f"norm_relu_pool: {name} must have {count} elements on the device of input, "
                f"got {given.numel()}"
            )


def require_saved(
    input: Tensor,
    num_groups: int,
    pool: int,
    grad_out: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """Require what the forward was given and left, and the upstream gradient of its output."""
    B, C, H, W = input.shape
    numbers = {"weight": (weight, C), "bias": (bias, C)}
    numbers |= {"mean": (mean, B * num_groups), "rstd": (rstd, B * num_groups)}
    require_fitting(input, num_groups, pool, {}, numbers)
    windows = H // pool, W // pool
    require_fitting(input, num_groups, pool, {"grad_out": (grad_out, windows)}, {})
