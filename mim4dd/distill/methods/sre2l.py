"""Matching the statistics of BatchNorm, after SRe2L: squeeze, recover and relabel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mim4dd.distill.data import ImageData
from mim4dd.distill.evaluation import ByTeacher
from mim4dd.distill.methods.base import (
    Ingredients,
    Objective,
    RealData,
)
from mim4dd.distill.methods.networks_settings import NetworksSettings
from mim4dd.distill.methods.registry import method
from mim4dd.distill.methods.side_by_side import (
    State,
    for_each_network,
    stack_networks,
    unchanged,
)
from mim4dd.distill.methods.squeeze_settings import SqueezeSettings
from mim4dd.distill.methods.teachers import LabellingMethod
from mim4dd.distill.networks import networks_with
from mim4dd.distill.training.augment import augmentation
from mim4dd.distill.training.features import reading_inputs

__all__ = ["JUDGED_BY", "SRe2L", "SRe2LSettings"]


@dataclass(frozen=True)
class SRe2LSettings(NetworksSettings, SqueezeSettings):
    """What SRe2L recovers from its teachers.

    Args:
        r_bn: Weight of the BatchNorm statistics in the loss.
        first_bn_multiplier: Relative weight of the first BatchNorm layer.
        jitter: Largest random shift of the images, in pixels.
    """

    r_bn: float = 0.05
    first_bn_multiplier: float = 10.0
    jitter: int = 4

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(r_bn=0, first_bn_multiplier=0, jitter=0)


JUDGED_BY = ByTeacher(temperature=30, mix="mixup", smoothing=1)


@method("sre2l", title="SRe2L", settings=SRe2LSettings, judged_by=JUDGED_BY)
class SRe2L(LabellingMethod):
    r"""Recover images that a trained BatchNorm network takes for its classes and for real data.

    .. math::
        \mathrm{CE} + r \sum_l c_l \left( \|\mu_l(s) - \mu_l\|_2 +
            \|\sigma^2_l(s) - \sigma^2_l\|_2 \right)

    with the mean and variance of the input of BatchNorm layer l, per channel, over one synthetic
    image of every class, and the running ones of the teacher, which is in eval mode. Where there
    are more images per class, the loss is the mean over such groups: each is recovered by itself.
    The teachers are trained before the first step; in the end they label the images. Augmentation
    is of both the real images that they learn and the synthetic ones.

    Args:
        make_teacher: Makes an untrained teacher with the initial weights of a seed.
        data: What the teachers are trained on.
        seed: Seed of the first teacher; the others follow.
        settings: How to train and what to match.

    Raises:
        ValueError: If the network has no BatchNorm with running statistics.

    References:
        Yin, Xing, Shen. Squeeze, Recover and Relabel. arXiv:2306.13092.
    """

    name = "sre2l"
    title = "SRe2L"
    variance_weight = 1.0  # beside the means

    def __init__(
        self,
        make_teacher: Callable[[int], nn.Module],
        data: ImageData,
        seed: int,
        settings: SRe2LSettings,
    ) -> None:
        networks = [make_teacher(seed + index) for index in range(settings.num_networks)]
        if not _batch_norms(networks[0]):
            raise ValueError(
                f"method {self.name!r} needs a network with BatchNorm: --norm batch, which "
                f"--network {', '.join(networks_with('batch'))} take"
            )
        self.data = data
        self.settings = settings
        self.augment = augmentation(settings.dsa_strategy)
        self.teachers = settings.teachers(networks, seed)

    @classmethod
    def make(cls, ingredients: Ingredients, settings: SRe2LSettings) -> "SRe2L":
        """From what a configuration holds."""
        return cls(ingredients.new_network, ingredients.data, ingredients.seed, settings)

    def loss(
        self, image_syn: Tensor, label_syn: Tensor, syn_lr: Tensor, real: RealData
    ) -> Objective:
        """Cross entropy and distance of the statistics, in the mean over the teachers."""
        teachers = self.teachers.trained_on(self.data)
        images = self._moved(image_syn, real)

        def parts(state: State, images: Tensor) -> Tensor:
            return self._recovery(teachers[0], state, images, label_syn)

        return self._objective(for_each_network(parts, stack_networks(teachers), images).mean(0))

    def require_per_class(self, counts: Sequence[int]) -> None:
        """Raise ValueError unless every class has as many images."""
        if len(set(counts)) > 1:
            raise ValueError(
                f"ipc_by_class must be one number for all classes with {self.title}, which "
                "recovers groups of one image of every class, got "
                f"{', '.join(map(str, counts))}"
            )

    def _moved(self, image_syn: Tensor, real: RealData) -> Tensor:
        """The images, rolled and augmented by one draw."""
        shifts = [real.integer(self.settings.jitter + 1) for _ in range(2)]
        images = image_syn.roll(shifts, dims=(2, 3))
        if self.augment is None:
            return images
        return self.augment(images, torch.Generator(images.device).manual_seed(real.seed()))

    def _objective(self, parts: Tensor) -> Objective:
        """Of what :meth:`_recovery` gives."""
        cross_entropy, distance = parts
        value = cross_entropy + self.settings.r_bn * distance
        metrics = {"cross_entropy": cross_entropy.item(), "batch_norm_distance": distance.item()}
        compared = [unchanged(teacher) for teacher in self.teachers.networks]
        return Objective(value, compared, metrics)

    def _recovery(self, teacher: nn.Module, state: State, images: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy, and how far the inputs of all BatchNorm layers are from their own. (2,)"""
        with reading_inputs(teacher, _batch_norms(teacher), self._distance) as distances:
            logits = functional_call(teacher, state, (images,))
        first, *others = distances
        distance = sum(others, self.settings.first_bn_multiplier * first)
        return torch.stack([F.cross_entropy(logits, labels), distance])

    def _distance(self, norm: nn.Module, inputs: Tensor) -> Tensor:
        """Mean over the groups of one image per class of the distances of mean and variance."""
        # The set is ordered by class: (C, ipc, channels, ...).
        groups = inputs.unflatten(0, (self.data.num_classes, -1))
        axes = (0, *range(3, groups.dim()))
        mean, variance = groups.mean(axes), groups.var(axes, correction=0)
        return (
            torch.linalg.vector_norm(mean - norm.running_mean, dim=1)
            + self.variance_weight * torch.linalg.vector_norm(variance - norm.running_var, dim=1)
        ).mean()


def _batch_norms(network: nn.Module) -> list[nn.Module]:
    """Its BatchNorm layers that have statistics."""
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
