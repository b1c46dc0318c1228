"""Directed weight adjustment (DWA): SRe2L from teachers that each group of images changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.data import ImageData
from mim4dd.distill.identity.describe import describe_object
from mim4dd.distill.methods.base import Objective, RealData
from mim4dd.distill.methods.registry import method
from mim4dd.distill.methods.sre2l import JUDGED_BY, SRe2L, SRe2LSettings
from mim4dd.unroll import flatten_parameters

__all__ = ["DWA", "DWASettings"]

_LEAST_LENGTH = 1e-12  # of a gradient, in the published code


@dataclass(frozen=True)
class DWASettings(SRe2LSettings):
    """How far DWA adjusts its teachers, and what it recovers from them.

    Args:
        ascent_steps: Ascent steps of the teacher's weights for each group of images.
        ascent_length: Total length of these steps.
        variance_weight: Weight of the variances; the means have weight 1.
    """

    ascent_steps: int = 12
    ascent_length: float = 0.015
    variance_weight: float = 11.0

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(ascent_steps=1, ascent_length=0, variance_weight=0)


@method("dwa", title="DWA", settings=DWASettings, judged_by=JUDGED_BY)
class DWA(SRe2L):
    r"""Recover every group of one image of each class as :class:`SRe2L`, from weights of its own.

    .. math::
        \theta \leftarrow \theta + \frac{\rho}{K}\,
            \frac{\nabla_\theta\, \mathrm{CE}(\theta; s_0)}
            {\|\nabla_\theta\, \mathrm{CE}(\theta; s_0)\|_2 + 10^{-12}}

    K times from the teacher's weights on, in which :math:`s_0` are the group's images in the first
    step, rolled and augmented. The weights stay for all steps. BatchNorm's running statistics are
    the teacher's. The weights of all groups are in memory, ipc times the teacher's; checkpoints
    hold :math:`s_0` instead, of which they are computed again.

    Args:
        make_teacher: Makes an untrained teacher with the initial weights of a seed.
        data: What the teachers are trained on.
        seed: Seed of the first teacher; the others follow.
        settings: How to train, to adjust and what to match.

    Raises:
        ValueError: If the network has no BatchNorm with running statistics.

    References:
        Du et al. Diversity-Driven Synthesis: Enhancing Dataset Distillation through Directed Weight
        Adjustment. arXiv:2409.17612.
    """

    name = "dwa"
    title = "DWA"
    settings: DWASettings

    def __init__(
        self,
        make_teacher: Callable[[int], nn.Module],
        data: ImageData,
        seed: int,
        settings: DWASettings,
    ) -> None:
        super().__init__(make_teacher, data, seed, settings)
        self.variance_weight = settings.variance_weight
        self.start: Tensor | None = None  # (n, channels, H, W)
        self.adjusted: list[list[Tensor]] = []  # of a teacher, of a group (P,)

    def identity(self) -> dict[str, Any]:
        """What defines the method: not what it began with."""
        return describe_object(self, without=("start", "adjusted"))

    def loss(
        self, image_syn: Tensor, label_syn: Tensor, syn_lr: Tensor, real: RealData
    ) -> Objective:
        """Cross entropy and distance of the statistics, in the mean over teachers and groups."""
        teachers = self.teachers.trained_on(self.data)
        images = self._moved(image_syn, real)
        if self.start is None:
            self.start = images.detach().clone()
        if not self.adjusted:
            self.adjusted = [self._adjust(teacher, self.start, label_syn) for teacher in teachers]
        parts = [
            self._recovery(teacher, FunctionalModel(teacher).parameters(theta), *group)
            for teacher, thetas in zip(teachers, self.adjusted, strict=True)
            for theta, group in zip(thetas, self._groups(images, label_syn), strict=True)
        ]
        return self._objective(torch.stack(parts).mean(0))

    def state(self) -> dict[str, Tensor]:
        """The teachers, once they are trained, and the images that adjusted them."""
        state = super().state()
        return state if self.start is None else state | {_START: self.start}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up the teachers and the images."""
        super().restore({name: tensor for name, tensor in state.items() if name != _START})
        self.start, self.adjusted = state.get(_START), []

    def _groups(self, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Images and labels of every group of one image of each class."""
        shape = self.data.num_classes, -1  # the set is ordered by class
        of_groups = images.unflatten(0, shape), labels.unflatten(0, shape)
        return list(zip(*(each.unbind(1) for each in of_groups), strict=True))

    def _adjust(self, teacher: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
        """The weights of a teacher (P,) for every group."""
        return [self._climb(teacher, *group) for group in self._groups(images, labels)]

    def _climb(self, teacher: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """A teacher's weights, from which a group's cross entropy is larger. (P,)"""
        call, theta = FunctionalModel(teacher), flatten_parameters(teacher).detach()
        step = self.settings.ascent_length / self.settings.ascent_steps
        for _ in range(self.settings.ascent_steps):
            theta.requires_grad_()
            loss = F.cross_entropy(call(theta, images), labels)
            (gradient,) = torch.autograd.grad(loss, theta)
            theta = theta.detach() + step * gradient / (gradient.norm() + _LEAST_LENGTH)
        return theta.detach()


_START = "start"
