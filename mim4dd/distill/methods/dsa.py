"""Differentiable Siamese Augmentation (DSA): gradient matching of images augmented alike."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mim4dd.distill.methods.augmentation_settings import AugmentationSettings
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.dc import DC, DCSettings
from mim4dd.distill.methods.registry import method
from mim4dd.distill.training.augment import Augmentation

__all__ = ["DSA", "DSASettings"]


@dataclass(frozen=True)
class DSASettings(DCSettings, AugmentationSettings):
    """What gradient matching matches, and under which augmentation."""


@method("dsa", title="DSA", settings=DSASettings)
class DSA(DC):
    """:class:`DC` of images augmented alike: one draw for all real and synthetic ones of a class.

    The training between two steps augments as well, with a draw per image.

    Args:
        new_network: Makes a freshly initialised network from a seed.
        settings: What to match.

    Raises:
        ValueError: If no augmentation is named, which is :class:`DC`.

    References:
        Zhao, Bilen. Dataset Condensation with Differentiable Siamese Augmentation.
        arXiv:2102.08259.
    """

    def __init__(self, new_network: Callable[[int], nn.Module], settings: DSASettings) -> None:
        if settings.dsa_strategy == "none":
            raise ValueError(
                "dsa_strategy must name the families to draw from for DSA, such as "
                "'color_crop_cutout_flip_scale_rotate'; without any it is DC, got 'none'"
            )
        super().__init__(new_network, settings)
        self.augment_inner = Augmentation(settings.dsa_strategy)
        self.augment_alike = Augmentation(settings.dsa_strategy, siamese=True)

    def augment_pair(self, samples: Tensor, batch: Tensor, real: RealData) -> tuple[Tensor, Tensor]:
        """Both batches, by one draw."""
        seed = real.seed()
        alike = [
            self.augment_alike(part, torch.Generator(part.device).manual_seed(seed))
            for part in (samples, batch)
        ]
        return alike[0], alike[1]
