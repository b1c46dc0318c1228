"""As many threads as the work is large enough for, where the user set no number."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mim4dd._threads import process_threads, use_threads, user_threads

__all__ = ["threads_for", "work_of", "workers_for", "working_threads"]

# Training steps on two idle cores (EPYC, Zen 3) are with two threads so many times as fast as with
# one: of ConvNet-2, width 32 on 8 × 8 pixels, the demo's, 0.70, 0.79 and 1.06 times at batches of
# 10, 64 and 256 (work of 6, 39 and 156 million); of ConvNet-3 on 32 × 32, batches of 10, 1.00, 1.18
# and 1.40 times at widths 32, 64 and 128 (198, 773 and 3055 million). So below this a second thread
# gains nothing, and beside processes that keep the cores busy a step takes 2 to 50 times as long.
_LARGE = 500_000_000


def work_of(network: nn.Module, images: Tensor) -> int:
    """Multiply–adds of ``images`` going through ``network`` once, at most.

    Every convolution counts as if it looked at all pixels, whatever was pooled before. To run the
    network would tell exactly, but a user's may draw random numbers or note what it saw.

    Args:
        network: Any module.
        images: What goes through at once: images (N, channels, H, W) or rows (N, D).

    Example:
        >>> import torch
        >>> from mim4dd.distill.runtime.threads import work_of
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(50, 10))
        >>> work_of(network, torch.zeros(4, 3, 16, 16)) == 4 * (16 * 16 * 3 * 8 * 9 + 50 * 10)
        True
    """
    places = images[0, 0].numel() if images.dim() == 4 else 1
    weights = [weight for weight in network.parameters() if weight.dim() > 1]
    each = sum(weight.numel() * (places if weight.dim() == 4 else 1) for weight in weights)
    return len(images) * each


def threads_for(work: int) -> int:
    """The threads to do ``work`` with, of :func:`work_of`: what the user set, else all or one."""
    return process_threads() if user_threads() is not None or work >= _LARGE else 1


def workers_for(work: int, device: torch.device) -> int:
    """How many processes to train or test networks in at the same time, where the user set none.

    As many as the threads of this one are enough for, each with ``work``, of :func:`work_of`, to do
    at once; one where that is not on a CPU.
    """
    return process_threads() // threads_for(work) if device.type == "cpu" else 1


@contextmanager
def working_threads(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Give torch's operators the threads for images that go through a network on a CPU.

    Args:
        network: What is trained or tested.
        images: What goes through at once. On another device the threads stay as they are.
    """
    if images.device.type != "cpu":
        yield
        return
    with use_threads(threads_for(work_of(network, images))):
        yield
