"""Matching Training Trajectories (MTT)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mim4dd.distill.data import ImageData
from mim4dd.distill.experts.train import ExpertBuffer
from mim4dd.distill.methods.base import (
    BaseMethod,
    ComparedNetwork,
    Ingredients,
    Objective,
    RealData,
)
from mim4dd.distill.methods.inner_settings import InnerSettings
from mim4dd.distill.methods.networks_settings import NetworksSettings
from mim4dd.distill.methods.registry import method
from mim4dd.distill.training.augment import augmentation
from mim4dd.ops.trajectory_loss import trajectory_loss
from mim4dd.unroll import unroll_sgd

__all__ = ["MTT", "MTTSettings"]


@dataclass(frozen=True)
class MTTSettings(NetworksSettings, InnerSettings):
    """What trajectory matching matches.

    Args:
        expert_epochs: Epochs of the expert from start to target.
        max_start_epoch: Start epochs are drawn below this number.
    """

    expert_epochs: int = 2
    max_start_epoch: int = 5

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(expert_epochs=1, max_start_epoch=1)


@method(
    "mtt",
    title="MTT",
    settings=MTTSettings,
    needs_experts=True,
    learns=("syn_lr",),
)
class MTT(BaseMethod):
    """Match where a student, trained on the synthetic set, ends to where an expert got.

    Every step draws an expert and a start epoch, trains the student from there for ``syn_steps``
    steps, and compares with the expert ``expert_epochs`` epochs later by
    :func:`mim4dd.trajectory_loss`; or does so for ``num_networks`` of them, side by side.

    Args:
        network: The network that the experts are; its own parameters are not used.
        experts: Their trajectories.
        settings: What to match.

    Raises:
        ValueError: If the experts are of another network or too short.

    References:
        Cazenavette et al. Dataset Distillation by Matching Training Trajectories. arXiv:2203.11932.
    """

    gradient: Literal["exact", "tesla"] = "exact"

    def __init__(self, network: nn.Module, experts: ExpertBuffer, settings: MTTSettings) -> None:
        experts.require_parameters_of(network)
        last_target = settings.max_start_epoch - 1 + settings.expert_epochs
        if last_target > experts.num_epochs:
            raise ValueError(
                "max_start_epoch - 1 + expert_epochs must be within the experts' "
                f"{experts.num_epochs} epochs, got {last_target}"
            )
        self.network = network
        self.experts = experts
        self.settings = settings
        self.augment = augmentation(settings.dsa_strategy)

    @classmethod
    def make(cls, ingredients: Ingredients, settings: MTTSettings) -> "MTT":
        """From what a configuration holds."""
        return cls(ingredients.new_network(), ingredients.experts(), settings)

    def require_data(self, data: ImageData) -> None:
        """Raise ValueError if the experts are of another network or of other data."""
        self.experts.require_task(self.network, data)

    def loss(
        self, image_syn: Tensor, label_syn: Tensor, syn_lr: Tensor, real: RealData
    ) -> Objective:
        """The trajectory loss, the mean over the drawn segments."""
        device, settings = image_syn.device, self.settings
        drawn = [self._draw(len(image_syn), real) for _ in range(settings.num_networks)]
        starts, targets, schedules = zip(*drawn, strict=True)
        theta_0, theta_target = torch.stack(starts).to(device), torch.stack(targets).to(device)
        batches = torch.stack(schedules, 1).to(device)  # (T, K, B)
        if settings.num_networks == 1:
            theta_0, theta_target, batches = theta_0[0], theta_target[0], batches[:, 0]
        theta_T = unroll_sgd(
            self.network,
            theta_0,
            image_syn,
            label_syn,
            batches,
            lr=syn_lr,
            augment=self.augment,
            seed=real.seed(),
            method=self.gradient,
            memory_budget=settings.memory_budget,
        )
        value = trajectory_loss(theta_T, theta_0, theta_target).mean()
        compared = [
            ComparedNetwork(self.network, theta_syn=end, theta_real=target)
            for end, target in zip(
                torch.atleast_2d(theta_T), torch.atleast_2d(theta_target), strict=True
            )
        ]
        return Objective(value, compared, {"trajectory_loss": value.item()})

    def _draw(self, num_samples: int, real: RealData) -> tuple[Tensor, Tensor, Tensor]:
        """An expert's parameters at start and target, (P,) each, and a schedule (T, B)."""
        expert, start = real.integer(len(self.experts)), self._start_epoch(real)
        theta_0, theta_target = self.experts.segment(expert, start, self.settings.expert_epochs)
        steps = self.settings.syn_steps
        return theta_0, theta_target, self.settings.schedule(num_samples, steps, real.generator)

    def _start_epoch(self, real: RealData) -> int:
        """Where on the expert's trajectory the student starts."""
        return real.integer(self.settings.max_start_epoch)
