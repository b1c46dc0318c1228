"""Random truncated back-propagation through time (RaT-BPTT)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd._checks import check_positive
from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.methods.base import (
    BaseMethod,
    ComparedNetwork,
    Objective,
    RealData,
    identity_by_network,
    network_of_seed,
)
from mim4dd.distill.methods.inner_settings import InnerSettings
from mim4dd.distill.methods.networks_settings import NetworksSettings
from mim4dd.distill.methods.registry import method
from mim4dd.distill.methods.side_by_side import State, for_each_network
from mim4dd.distill.training.augment import augmentation
from mim4dd.distill.training.passes import has_batch_norm, in_passes, sum_in_turn
from mim4dd.unroll import flatten_parameters, unroll_adam

__all__ = ["RaTBPTT", "RaTBPTTSettings"]


@dataclass(frozen=True)
class RaTBPTTSettings(NetworksSettings, InnerSettings):
    """How far RaT-BPTT trains, and how far back it differentiates.

    Args:
        window: Training steps to differentiate; by default all.
        inner_lr: Step size of the inner Adam.
        batch_target: Real images on which the trained network's loss is computed.
    """

    window: int | None = None
    inner_lr: float = 0.001
    batch_target: int = 1024

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(window=1, batch_target=1)
        check_positive("inner_lr", self.inner_lr)


@method("rat_bptt", title="RaT-BPTT", settings=RaTBPTTSettings)
class RaTBPTT(BaseMethod):
    """Train fresh networks on the set by Adam; the loss is theirs on real images.

    The number of inner steps is drawn from ``window`` to ``syn_steps``, and the gradient goes back
    through the last ``window`` of them.

    Args:
        new_network: Makes a network with the initial weights of a seed.
        settings: How far to train, and how far back to differentiate.

    Raises:
        ValueError: If the window is longer than the training.

    References:
        Feng, Vedantam, Kempe. Embarrassingly Simple Dataset Distillation. arXiv:2311.07025.
    """

    def __init__(self, new_network: Callable[[int], nn.Module], settings: RaTBPTTSettings) -> None:
        if settings.window is not None and settings.window > settings.syn_steps:
            raise ValueError(
                f"window must be at most syn_steps, {settings.syn_steps}, got {settings.window}"
            )
        self.new_network = new_network
        self.settings = settings
        self.augment = augmentation(settings.dsa_strategy)

    def identity(self) -> dict[str, Any]:
        """What defines the method: what its networks are, not how they are called."""
        return identity_by_network(self, self.new_network)

    def example_network(self) -> nn.Module:
        """A network as it draws them."""
        return network_of_seed(self.new_network)

    def loss(
        self, image_syn: Tensor, label_syn: Tensor, syn_lr: Tensor, real: RealData
    ) -> Objective:
        """Cross entropy on a real batch, in the mean over ``num_networks`` trained networks."""
        settings = self.settings
        networks = [self.new_network(real.seed()) for _ in range(settings.num_networks)]
        num_steps, window = self.truncation(image_syn, label_syn, real)
        theta_T = unroll_adam(
            networks[0],
            torch.stack([flatten_parameters(network) for network in networks]),
            image_syn,
            label_syn,
            settings.schedule(len(image_syn), num_steps, real.generator).to(image_syn.device),
            lr=settings.inner_lr,
            augment=self.augment,
            seed=real.seed(),
            window=window,
            memory_budget=settings.memory_budget,
        )
        images, labels = real.sample(settings.batch_target)
        if self.augment is not None:
            generator = torch.Generator(images.device).manual_seed(real.seed())
            images = self.augment(images, generator)
        value = self._loss_on_real(networks[0], theta_T, images, labels)
        metrics = {"target_loss": value.item()}
        metrics |= self.judged(networks[0], theta_T.detach(), images, labels)
        compared = [ComparedNetwork(networks[0], theta, theta) for theta in theta_T]
        return Objective(value, compared, metrics)

    def truncation(self, image_syn: Tensor, label_syn: Tensor, real: RealData) -> tuple[int, int]:
        """How many inner steps to take, and through how many of the last to differentiate."""
        window = self.settings.window or self.settings.syn_steps
        return window + real.integer(self.settings.syn_steps - window + 1), window

    def judged(
        self, network: nn.Module, theta: Tensor, images: Tensor, labels: Tensor
    ) -> dict[str, float]:
        """What else is to be known of the networks at the rows of ``theta`` (K, P): nothing."""
        return {}

    def _loss_on_real(
        self, network: nn.Module, theta: Tensor, images: Tensor, labels: Tensor
    ) -> Tensor:
        """The mean cross entropy of networks at the rows of ``theta`` (K, P)."""
        passes = [images] if has_batch_norm(network) else in_passes(images, otherwise=len(images))
        call, num_images = FunctionalModel(network), len(images)

        def part_of_mean(images: Tensor, labels: Tensor, theta: Tensor) -> Tensor:
            def loss_of(state: State, images: Tensor) -> Tensor:
                buffers = {name: tensor for name, tensor in state.items() if name != _THETA}
                logits = call(state[_THETA], images, buffers)
                return F.cross_entropy(logits, labels, reduction="sum") / num_images

            state = {_THETA: theta} | call.buffers(copies=len(theta))
            return for_each_network(loss_of, state, images).mean()

        parts = zip(passes, labels.split(len(passes[0])), strict=True)
        return sum_in_turn((partial(part_of_mean, *part) for part in parts), theta)


_THETA = "θ"  # no buffer's name
