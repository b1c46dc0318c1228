"""What the launchers of norm_relu_pool refuse, in the words of the CPU's op.

The public function has checked what it passes on; the bare op is called by others too, and kernels
read as much as shapes and counts here say.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor


def require_groups_and_windows(input: Tensor, num_groups: int, pool: int) -> None:
    """Require groups that divide the channels, and windows of some size."""
    channels = input.shape[1]
    if num_groups < 1 or channels % num_groups:
        raise RuntimeError(
            f"norm_relu_pool: num_groups must divide {channels} channels, got {num_groups}"
        )
    if pool < 1:
        raise RuntimeError(f"norm_relu_pool: pool must be positive, got {pool}")


def require_image(input: Tensor, name: str, image: Tensor | None, pixels: Sequence[int]) -> None:
    """Require samples and channels of ``input``, of this height and width; None is not given."""
    if image is None:
        return
    size = *input.shape[:2], *pixels
    if image.shape != size or image.dtype != input.dtype or image.device != input.device:
        raise RuntimeError(f"norm_relu_pool: {name} must be {size} with dtype and device of input")


def require_numbers(input: Tensor, count: int, numbers: Mapping[str, Tensor | None]) -> None:
    """Require this many of each that is given."""
    for name, given in numbers.items():
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
    require_groups_and_windows(input, num_groups, pool)
    require_numbers(input, C, {"weight": weight, "bias": bias})
    require_numbers(input, B * num_groups, {"mean": mean, "rstd": rstd})
    require_image(input, "grad_out", grad_out, (H // pool, W // pool))
