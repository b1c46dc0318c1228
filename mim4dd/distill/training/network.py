"""Making, training and testing a network on fixed images: what experts and evaluation share."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd._turns import alone_with
from mim4dd._unroll.steps import Augment
from mim4dd.distill.data.byte_images import ByteImages, Images
from mim4dd.distill.runtime.threads import working_threads
from mim4dd.distill.training.kept import KeptTraining
from mim4dd.distill.training.passes import in_passes
from mim4dd.distill.training.precision import Precision, arithmetic

Network = TypeVar("Network", bound=nn.Module)

__all__ = ["accuracy", "seeded_network", "soft_labels", "train_network"]


def seeded_network(make_network: Callable[[], Network], seed: int) -> Network:
    """A network whose initial weights depend on ``seed`` alone, the global stream left as it is."""
    # The stream is one for all threads.
    with alone_with(torch.random), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_network()


def train_network(
    network: nn.Module,
    images: Images,  # (n, channels, H, W)
    labels: Tensor,  # (n,), or (n, C) as probabilities
    *,
    num_steps: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    generator: torch.Generator,
    augment: Augment | None = None,
    lr_drop: int | None = None,
    after_epoch: Callable[[], object] | None = None,
    after_step: Callable[[int], object] | None = None,
    precision: Precision = "float32",
    kept: KeptTraining | None = None,
) -> None:
    """Train ``network`` in place by SGD for ``num_steps`` batches of reshuffled images.

    On a CPU it takes as many threads as a batch is large enough for, where the user set none.

    Args:
        network: What to train; its parameters are changed.
        images: The training set.
        labels: Its classes.
        num_steps: Number of SGD steps.
        lr: Step size.
        momentum: As in :class:`torch.optim.SGD`.
        weight_decay: As in :class:`torch.optim.SGD`.
        batch_size: Images per step; the last batch of an epoch may be smaller.
        generator: Source of every random draw, on the device of ``images``.
        augment: Applied to every batch.
        lr_drop: Step at which ``lr`` falls to a tenth and the momentum starts anew: the field makes
            its optimiser again there.
        after_epoch: Called whenever all images have been seen once more.
        after_step: Called after every step with the number of steps so far.
        precision: Arithmetic of the passes through the network.
        kept: Where the state is written as it goes, and read at the start. ``after_epoch`` and
            ``after_step`` are called before it is.

    Raises:
        ValueError: If what is kept is not of this training.
    """

    def make_optimizer(lr: float) -> torch.optim.SGD:
        return torch.optim.SGD(
            network.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
        )

    optimizer = make_optimizer(lr)
    order: list[Tensor] = []
    first_step = 0 if kept is None else kept.step
    if kept is not None and first_step > 0:
        if lr_drop is not None and first_step > lr_drop:
            optimizer = make_optimizer(0.1 * lr)
        left = kept.restore(network, optimizer, generator, len(images))
        order = list(left.to(images.device).split(batch_size)) if len(left) else []
    network.train()
    with working_threads(network, images[:batch_size]):
        for step in range(first_step, num_steps):
            if not order:
                permutation = torch.randperm(len(images), generator=generator, device=images.device)
                order = list(permutation.split(batch_size))
            if step == lr_drop:
                optimizer = make_optimizer(0.1 * lr)
            rows = order.pop(0)
            batch = images[rows]
            if order and isinstance(images, ByteImages):
                images.expect(order[0])
            if augment is not None:
                batch = augment(batch, generator)
            optimizer.zero_grad()
            with arithmetic(precision, images.device):
                loss = F.cross_entropy(network(batch), labels[rows])
            loss.backward()
            optimizer.step()
            if after_step is not None:
                after_step(step + 1)
            if not order and after_epoch is not None:
                after_epoch()
            if kept is not None:
                is_last = step + 1 == num_steps
                kept.note(step + 1, network, optimizer, generator, order, is_last)


@torch.no_grad()
def soft_labels(network: nn.Module, images: Tensor) -> Tensor:
    """What a network in eval mode takes images for, as probabilities. (n, C)"""
    return torch.cat([network(batch).softmax(1) for batch in in_passes(images)])


@torch.no_grad()
def accuracy(network: nn.Module, images: Images, labels: Tensor) -> float:
    """Fraction of ``images`` whose most likely class is their label; NaN if any logit is one."""
    network.eval()
    hits = 0
    passes = in_passes(images)
    with working_threads(network, passes[0]):
        for batch, truth in zip(passes, labels.split(len(passes[0])), strict=True):
            logits = network(batch)
            if logits.isnan().any():  # argmax would take them for the first class
                return math.nan
            hits += int((logits.argmax(1) == truth).sum())
    return hits / len(labels)
