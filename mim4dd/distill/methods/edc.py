"""Elucidating the design space of condensation (EDC), with G-VBSM as a setting of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd.distill.data import ImageData
from mim4dd.distill.evaluation import ByTeacher
from mim4dd.distill.identity.describe import describe_object
from mim4dd.distill.methods.base import Ingredients, Objective, RealData
from mim4dd.distill.methods.layer_statistics import (
    RealStatistics,
    layers_with_statistics,
    moments,
    real_statistics,
)
from mim4dd.distill.methods.named_networks import parse_networks
from mim4dd.distill.methods.rded import random_crop
from mim4dd.distill.methods.registry import method
from mim4dd.distill.methods.side_by_side import unchanged
from mim4dd.distill.methods.squeeze_settings import SqueezeSettings
from mim4dd.distill.methods.teachers import LabellingMethod, require_tileable
from mim4dd.distill.networks import make_network, networks_with
from mim4dd.distill.training.augment import augmentation
from mim4dd.distill.training.features import reading_inputs
from mim4dd.distill.training.network import seeded_network

__all__ = ["EDC", "EDCSettings"]


@dataclass(frozen=True)
class EDCSettings(SqueezeSettings):
    """What EDC recovers from its teachers.

    Args:
        other_teachers: More teachers, joined by commas, with options after colons:
            resnet18,convnet:width=32:depth=3. All have BatchNorm.
        images_together: Images whose statistics are computed together.
        r_statistics: Weight of the layers' statistics in the loss.
        first_multiplier: Relative weight of the first layer.
        category_weight: Weight w of class statistics; those of all images have 1 − w.
        average_decay: Decay of the moving average of the statistics.
        drop_rate: Probability that a convolution is skipped in a step.
        least_area: Smallest crop, as a fraction of the image area.
    """

    other_teachers: str = ""
    images_together: int = 100
    r_statistics: float = 0.01
    first_multiplier: float = 10.0
    category_weight: float = 0.5
    average_decay: float = 0.8
    drop_rate: float = 0.0
    least_area: float = 0.08

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(images_together=1, r_statistics=0, first_multiplier=0)
        for name in ("average_decay", "drop_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.category_weight <= 1:
            raise ValueError(f"category_weight must lie in [0, 1], got {self.category_weight}")
        if not 0 < self.least_area <= 1:
            raise ValueError(f"least_area must lie in (0, 1], got {self.least_area}")
        parse_networks("other_teachers", self.other_teachers)


_JUDGED_BY = ByTeacher(loss="mse", hard_weight=0.025, least_area=0.08, ema_decay=0.99)


@method("edc", title="EDC", settings=EDCSettings, judged_by=_JUDGED_BY)
class EDC(LabellingMethod):
    r"""Recover images that BatchNorm networks, in turn, take for their classes and for real data.

    .. math::
        \mathrm{CE} + r \sum_l m_l \sum_v \big( (1 - w)\, \|v_l - \tilde v_l(s)\|_2 +
            w\, \|v_l^y - \tilde v_l(s)\|_2 \big)

    of one teacher, another one in the next step. l are its convolutions and its BatchNorm layers,
    and v the mean and variance of what goes into one, by channel, and of convolutions also by
    place: :func:`~mim4dd.distill.methods.layer_statistics.moments`. :math:`v_l` is of all real
    images, :math:`v_l^y` of the classes in the batch, :math:`\tilde v_l(s)` an exponential average
    over the steps with the gradient of this step's. The images are cropped by one draw.

    Args:
        networks: The untrained teachers. The add-on looks into the first one.
        data: What they are trained on.
        seed: Of the first one's training; the others follow.
        settings: How to train and what to match.

    Raises:
        ValueError: If a network has no BatchNorm.

    References:
        Shao et al. Elucidating the Design Space of Dataset Condensation. arXiv:2404.13733; G-VBSM:
        Shao et al. Generalized Large-Scale Data Condensation via Various Backbone and Statistical
        Matching. arXiv:2311.17950.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        data: ImageData,
        seed: int,
        settings: EDCSettings,
    ) -> None:
        for network in networks:
            if not any(isinstance(each, nn.BatchNorm2d) for each in network.modules()):
                raise ValueError(
                    "method 'edc' needs networks with BatchNorm: --norm batch, which --network "
                    f"{', '.join(networks_with('batch'))} take"
                )
        self.data = data
        self.seed = seed
        self.settings = settings
        self.augment = augmentation(settings.dsa_strategy)
        self.teachers = settings.teachers(networks, seed)
        self.statistics: dict[int, list[RealStatistics]] = {}  # by teacher
        self.averages: dict[str, Tensor] = {}

    @classmethod
    def make(cls, ingredients: Ingredients, settings: EDCSettings) -> "EDC":
        """From what a configuration holds."""
        data, seed = ingredients.data, ingredients.seed
        others = [
            seeded_network(
                partial(
                    make_network,
                    name,
                    num_classes=data.num_classes,
                    channels=data.channels,
                    image_size=data.image_size,
                    settings=options,
                ),
                seed + index,
            ).to(data.image_train.device)
            for index, (name, options) in enumerate(
                parse_networks("other_teachers", settings.other_teachers), start=1
            )
        ]
        return cls([ingredients.new_network(seed), *others], data, seed, settings)

    def identity(self) -> dict[str, Any]:
        """What defines the method: not what it has seen."""
        return describe_object(self, without=("statistics", "averages"))

    def loss(
        self, image_syn: Tensor, label_syn: Tensor, syn_lr: Tensor, real: RealData
    ) -> Objective:
        """Cross entropy and distance of one teacher's statistics, in the mean over the batches."""
        teachers = self.teachers.trained_on(self.data)
        turn = real.iteration % len(teachers)
        if turn not in self.statistics:
            self.statistics[turn] = real_statistics(teachers[turn], self.data, self.seed)
        images = self._moved(image_syn, real)
        together = self.settings.images_together
        groups = zip(images.split(together), label_syn.split(together), strict=True)
        parts = [
            self._recovery(teachers[turn], f"{turn}.{group}", *batch, real)
            for group, batch in enumerate(groups)
        ]
        cross_entropy, distance = torch.stack(parts).mean(0)
        metrics = {"cross_entropy": cross_entropy.item(), "statistics_distance": distance.item()}
        value = cross_entropy + self.settings.r_statistics * distance
        return Objective(value, [unchanged(teachers[0])], metrics)

    def require_data(self, data: ImageData) -> None:
        """Raise ValueError if the teachers are not of ``data``, or these are no images to crop."""
        require_tileable("edc", "least_area", 1, data)
        super().require_data(data)

    def state(self) -> dict[str, Tensor]:
        """The teachers, once they are trained, and the averages of the images' statistics."""
        averages = {f"{_AVERAGE}{name}": value for name, value in self.averages.items()}
        return super().state() | averages

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up the teachers and the averages."""
        averages = {name: value for name, value in state.items() if name.startswith(_AVERAGE)}
        super().restore({name: value for name, value in state.items() if name not in averages})
        self.averages = {name.removeprefix(_AVERAGE): each for name, each in averages.items()}
        self.statistics = {}

    def _moved(self, image_syn: Tensor, real: RealData) -> Tensor:
        """The images, cropped to one square, enlarged and augmented."""
        maps = image_syn.flatten(0, 1)
        size, least_area = image_syn.shape[-1], self.settings.least_area
        images = random_crop(maps, size, real.generator, least_area).view_as(image_syn)
        if self.augment is None:
            return images
        return self.augment(images, torch.Generator(images.device).manual_seed(real.seed()))

    def _recovery(
        self, teacher: nn.Module, key: str, images: Tensor, labels: Tensor, real: RealData
    ) -> Tensor:
        """Cross entropy, and how far the layers' statistics are from those of real images. (2,)"""
        layers = layers_with_statistics(teacher)
        numbers = {id(layer): number for number, layer in enumerate(layers)}
        statistics = self.statistics[int(key.partition(".")[0])]

        def distance(layer: nn.Module, inputs: Tensor) -> Tensor:
            number = numbers[id(layer)]
            times = self.settings.first_multiplier if number == 0 else 1.0
            if isinstance(layer, nn.Conv2d) and self._drops(real):
                return inputs.new_zeros(())
            parts = zip(moments(layer, inputs), *statistics[number], strict=True)
            return times * sum(
                (
                    self._apart(
                        f"{key}.{number}.{part}", found, running, of_classes[labels].mean(0)
                    )
                    for part, (found, running, of_classes) in enumerate(parts)
                ),
                start=inputs.new_zeros(()),
            )

        with reading_inputs(teacher, layers, distance) as distances:
            logits = teacher(images)
        return torch.stack([F.cross_entropy(logits, labels), torch.stack(distances).sum()])

    def _apart(self, key: str, found: Tensor, running: Tensor, of_classes: Tensor) -> Tensor:
        """How far an average, with the gradient of what was found now, is from both targets. ()"""
        share, decay = self.settings.category_weight, self.settings.average_decay
        now = found.detach()
        # The published code starts at 0, from which the average takes many steps to come up.
        average = now.lerp(self.averages[key], decay) if key in self.averages else now
        self.averages[key] = average
        value = average + (found - now)
        return (1 - share) * (running - value).norm() + share * (of_classes - value).norm()

    def _drops(self, real: RealData) -> bool:
        """Whether to leave a convolution out; draws nothing where none is."""
        rate = self.settings.drop_rate
        return rate > 0 and torch.rand((), generator=real.generator).item() < rate


_AVERAGE = "average."
